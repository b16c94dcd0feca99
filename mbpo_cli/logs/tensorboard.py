"""Writes scalars, pictures and histograms of a run to a TensorBoard event file.

Does not know what is logged, apart from the tags of the first charts.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard.summary import custom_scalars, histogram

from mbpo_cli.logs.logger import Exhibits, Hyperparameters, LogFile, RunInfo, Scalars
from mbpo_cli.options import Component
from mbpo_cli.storage.records import EVENTS

log = logging.getLogger(__name__)

# The charts on TensorBoard's custom scalars tab, by title.
CHARTS = {
    "Evaluation return": ("eval/return_mean",),
    "Episode return": ("train/episode_return",),
    "Q-value": ("agent/q_value",),
    "Critic loss": ("agent/critic_loss",),
    "Model losses": ("model/transition_loss", "model/reward_loss", "model/is_done_loss"),
    "Model hold-out error": ("model/holdout_error",),
}


class TensorBoardEvents(LogFile):
    """Writes one TensorBoard event per logged step; a new file starts with hyperparameters and charts.

    Records are written without a writer thread: errors appear where they happen, and the file can be
    truncated after any record. The file's name must contain 'tfevents'.
    """

    def __init__(self, path: Path, committed: int, hyperparameters: Hyperparameters) -> None:
        super().__init__(path, committed)
        self._records = RecordWriter(self._file)
        if self._file.tell() > 0:
            return
        self._append(file_version="brain.Event:2")
        # TensorBoard merges sessions of the same name and shows the first letters of the name.
        name = " in ".join(reversed(path.absolute().parts[-4:-1]))
        charts = {title: ["Multiline", [f"^{tag}$" for tag in tags]] for title, tags in CHARTS.items()}
        self._append(step=0, summary=hparams.hparams_pb(dict(hyperparameters), trial_id=name))
        self._append(step=0, summary=custom_scalars({"MBPO": charts}))

    def write(self, step: int, scalars: Scalars) -> None:
        """Append one event, unless there are no scalars."""
        if scalars:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
            self._append(step=step, summary=Summary(value=values))

    def show(self, step: int, exhibits: Exhibits) -> None:
        """Append images, histograms, and films, which are images that move."""
        for tag, exhibit in exhibits.items():
            if isinstance(exhibit, Tensor):
                summary = histogram(tag, exhibit.flatten().cpu().numpy(), "auto")
            else:
                data = exhibit.read_bytes() if isinstance(exhibit, Path) else exhibit
                image = Summary.Image(encoded_image_string=data)
                summary = Summary(value=[Summary.Value(tag=tag, image=image)])
            self._append(step=step, summary=summary)

    def _append(self, **contents: Any) -> None:
        self._records.write(Event(wall_time=time.time(), **contents).SerializeToString())
        self._file.flush()


class TensorBoard(TensorBoardEvents):
    """The TensorBoard events of a run.

    Without `trainer.events_required`, the first error is logged and ends these events, not the run.
    """

    Options = Component

    def __init__(self, options: Component, run: RunInfo) -> None:
        new = f"{EVENTS}0000000000.{uuid.uuid4().hex[:12]}"  # unique among all runs
        name = next((name for name in run.logs if name.startswith(EVENTS)), new)
        super().__init__(run.path / name, run.logs.get(name, 0), run.hyperparameters)
        self._is_required = run.config["trainer"]["events_required"]
        self._works = True
        self._committed = super().commit()

    def _attempt(self, action: Callable[..., Any], *arguments: Any) -> Any:
        if self._works:
            try:
                return action(*arguments)
            except OSError as error:
                if self._is_required:
                    raise
                self._works = False
                log.error("the run continues without one of its log files: %s", error)
        return None

    def write(self, step: int, scalars: Scalars) -> None:
        """Append one event, unless there are no scalars."""
        self._attempt(super().write, step, scalars)

    def show(self, step: int, exhibits: Exhibits) -> None:
        """Append images, histograms, and films, which are images that move."""
        self._attempt(super().show, step, exhibits)

    def commit(self) -> dict[str, int]:
        """Make everything written durable; after an error, return the size before it."""
        self._committed = self._attempt(super().commit) or self._committed
        return self._committed

    def close(self) -> None:
        """Close the file."""
        self._attempt(super().close)
        with suppress(OSError):  # after an earlier error
            super().close()
