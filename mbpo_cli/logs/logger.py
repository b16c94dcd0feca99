"""Scalars of a run: to TensorBoard, to `metrics.jsonl` and to the progress display, by environment step.

The only place that moves metrics from the device to the host, and only when they are due.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import torch
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard.summary import custom_scalars, histogram

from mbpo_cli.types import Metrics

log = logging.getLogger(__name__)

Scalars = Mapping[str, float]

FIRST_PLOTS = {
    "return of evaluations": ("eval/return_mean",),
    "return of episodes": ("train/episode_return",),
    "Q-value": ("agent/q_value",),
    "loss of the critics": ("agent/critic_loss",),
    "losses of the model": ("model/transition_loss", "model/reward_loss", "model/is_done_loss"),
    "hold-out error of the model": ("model/holdout_error",),
}


Exhibits = Mapping[str, bytes | Tensor]
"""What is not a scalar, by tag: pictures as PNG, and numbers whose distribution is shown."""


class Sink(Protocol):
    """Takes the scalars of one environment step."""

    def write(self, step: int, scalars: Scalars) -> None:
        """Take the scalars, possibly none, of the given step."""
        ...

    def commit(self) -> dict[str, int]:
        """Make all that was written durable; return the bytes of its file by name, if it is one."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


class LogFile:
    """A sink that is a file, durable when committed, and cut where it was committed to go on from there.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path, committed: int) -> None:
        """Create the file, or go on after its first `committed` bytes; what follows them is cut off.

        A file that has fewer is put aside as `.damaged`, and a new one begun.
        """
        self.path = path
        size = path.stat().st_size if path.exists() else 0
        if size < committed:
            log.warning("%s: %d of %d bytes are there; a new file begins", path, size, committed)
            if path.exists():
                path.rename(f"{path}.damaged")
            committed = 0
        self._file = path.open("r+b" if committed else "wb")
        self._file.truncate(committed)
        self._file.seek(committed)

    def commit(self) -> dict[str, int]:
        """Make all that was written durable; return the file's bytes by its name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return {self.path.name: self._file.tell()}

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class JsonLines(LogFile):
    """Writes one JSON object per logged step: `step`, and a number per tag."""

    def write(self, step: int, scalars: Scalars) -> None:
        """Append one line, if there is anything to say."""
        if scalars:
            self._file.write((json.dumps({"step": step, **scalars}) + "\n").encode())
            self._file.flush()


@runtime_checkable
class Gallery(Protocol):
    """A sink that also takes what is not a scalar."""

    def show(self, step: int, exhibits: Exhibits) -> None:
        """Take pictures and distributions of the given step."""
        ...


class TensorBoardEvents(LogFile):
    """Writes one TensorBoard event per logged step, and the hyperparameters once.

    The records go straight to one file, without a writer thread: errors appear where they happen,
    and the file can be cut at any record.
    """

    def __init__(
        self, path: Path, committed: int, hyperparameters: Mapping[str, bool | int | float | str]
    ) -> None:
        """Create the file, or go on after its first bytes; `path.name` must contain 'tfevents'."""
        super().__init__(path, committed)
        self._records = RecordWriter(self._file)
        if self._file.tell() > 0:
            return
        self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))
        # One row per run: TensorBoard takes those of one name together, and shows the first letters of it.
        name = " in ".join(reversed(path.absolute().parts[-4:-1]))
        for summary in (hparams.hparams_pb(dict(hyperparameters), trial_id=name), first_plots()):
            self._append(Event(wall_time=time.time(), step=0, summary=summary))

    def write(self, step: int, scalars: Scalars) -> None:
        """Append one event, if there is anything to say."""
        if scalars:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
            self._append(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def show(self, step: int, exhibits: Exhibits) -> None:
        """Append pictures and distributions."""
        for tag, exhibit in exhibits.items():
            if isinstance(exhibit, Tensor):
                summary = histogram(tag, exhibit.flatten().cpu().numpy(), "auto")
            else:
                picture = Summary.Image(encoded_image_string=exhibit)
                summary = Summary(value=[Summary.Value(tag=tag, image=picture)])
            self._append(Event(wall_time=time.time(), step=step, summary=summary))

    def _append(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
        self._file.flush()


def first_plots() -> Summary:
    """Return the layout of TensorBoard's custom scalars: the plots that one looks at first."""
    charts = {title: ["Multiline", [f"^{tag}$" for tag in tags]] for title, tags in FIRST_PLOTS.items()}
    summary: Summary = custom_scalars({"MBPO": charts})
    return summary


class Dispensable:
    """A sink whose failure is told once, and does not end the run."""

    def __init__(self, sink: TensorBoardEvents) -> None:
        """Pass everything on to `sink` while it works."""
        self._sink = sink
        self._committed = sink.commit()
        self._works = True

    @contextmanager
    def _trying(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._works = False
            log.error("the run goes on without one of its logs: %s", error)

    def write(self, step: int, scalars: Scalars) -> None:
        """Take the scalars of the given step."""
        if self._works:
            with self._trying():
                self._sink.write(step, scalars)

    def show(self, step: int, exhibits: Exhibits) -> None:
        """Take pictures and distributions of the given step."""
        if self._works:
            with self._trying():
                self._sink.show(step, exhibits)

    def commit(self) -> dict[str, int]:
        """Make all that was written durable; after a failure, return what was durable before."""
        if self._works:
            with self._trying():
                self._committed = self._sink.commit()
        return self._committed

    def close(self) -> None:
        """Finish, if possible."""
        with self._trying() if self._works else suppress(OSError):
            self._sink.close()


class Logger:
    """Collects metrics during an environment step and writes them at its end."""

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        """Write to all `sinks`, and to those that are added."""
        self._sinks = list(sinks)
        self._now: dict[str, Tensor | float] = {}
        self._collected: defaultdict[str, list[Tensor | float]] = defaultdict(list)

    def add(self, sink: Sink) -> None:
        """Write to one more sink."""
        self._sinks.append(sink)

    def show(self, step: int, exhibits: Exhibits) -> None:
        """Show what is not a scalar, in the sinks that have a place for it."""
        for sink in self._sinks:
            if isinstance(sink, Gallery):
                sink.show(step, exhibits)

    def log(self, metrics: Metrics) -> None:
        """Log metrics of the present step as they are."""
        self._now.update(metrics)

    def collect(self, metrics: Metrics) -> None:
        """Keep metrics of many updates; `summarize` logs their mean."""
        for tag, value in metrics.items():
            self._collected[tag].append(value)

    def summarize(self) -> None:
        """Log the mean of everything collected since the last time."""
        for tag, values in self._collected.items():
            self._now[tag] = _stacked(values).mean()
        self._collected.clear()

    def write(self, step: int) -> None:
        """Write what was logged during this step, one record for all of it."""
        scalars = {tag: float(value) for tag, value in self._now.items()}
        self._now.clear()
        for sink in self._sinks:
            sink.write(step, scalars)

    def commit(self) -> dict[str, int]:
        """Make the log files durable; return their bytes by name."""
        return {name: size for sink in self._sinks for name, size in sink.commit().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what was collected and not yet summarized."""
        return {tag: _stacked(values) for tag, values in self._collected.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._collected.clear()
        for tag, values in state.items():
            self._collected[tag] = list(values)

    def __enter__(self) -> Logger:
        """Use as a context that closes all sinks."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all sinks."""
        for sink in self._sinks:
            sink.close()


def _stacked(values: Sequence[Tensor | float]) -> Tensor:
    """Put scalars together where the last one is; those of a checkpoint come from the CPU."""
    device = torch.as_tensor(values[-1]).device
    return torch.stack([torch.as_tensor(value, dtype=torch.float32, device=device) for value in values])
