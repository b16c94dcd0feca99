"""Live progress rows at the bottom of a terminal; log lines scroll past above them.

Loads rich, so it is imported only if `progress.on_terminal()`. Does not know what the rows stand for.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, Task, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text


class Remaining(TimeRemainingColumn):
    """Shows the time left, named as such: the task's field `left`, or an estimate without one."""

    def render(self, task: Task) -> Text:
        """Return the time left, or nothing when the task is finished."""
        if "left" in task.fields and not task.finished:
            return Text(task.fields["left"])
        return Text() if task.finished else super().render(task).append(" left")


class LiveRows(Progress):
    """Rows of name, bar, steps, a note, elapsed time and time left; below them, the caption unless empty."""

    caption = ""

    def __init__(self, transient: bool = False) -> None:
        super().__init__(
            "{task.description}",
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),
            "{task.completed:,.0f}/{task.total:,.0f}",
            "{task.fields[note]}",
            TimeElapsedColumn(),
            Remaining(),
            # Off a terminal, standard output is a file that shall have what is printed.
            console=Console(stderr=True),
            redirect_stdout=sys.stdout.isatty(),
            refresh_per_second=2,
            speed_estimate_period=600,  # a run is fast between fits of the model, and slow in them
            transient=transient,
            expand=True,
        )
        self._handlers = ExitStack()

    def start(self) -> None:
        """Show the rows, and print the log above them."""
        # Long lines are not broken: paths stay whole when copied.
        above = SimpleNamespace(write=partial(self.console.out, end="", highlight=False))
        for handler in logging.getLogger().handlers:
            if not isinstance(handler, logging.StreamHandler):
                continue
            if handler.stream in (sys.stdout, sys.stderr) and handler.stream.isatty():
                self._handlers.callback(handler.setStream, handler.stream)
                handler.setStream(above)
        super().start()

    def stop(self) -> None:
        """Leave the terminal and the log as they were."""
        self._handlers.close()
        super().stop()

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return what is drawn."""
        yield self.make_tasks_table(self.tasks)
        if self.caption:
            yield Text(self.caption, no_wrap=True, overflow="ellipsis")
