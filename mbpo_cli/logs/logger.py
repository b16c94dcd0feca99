"""Writes scalars of a run by environment step: to TensorBoard, `metrics.jsonl` and the progress display.

The only place that moves metrics from the device to the host, and only when a log is due.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Protocol

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
Hyperparameters = Mapping[str, bool | int | float | str]
Exhibits = Mapping[str, bytes | Tensor]
"""What is not a scalar, by tag: PNG images, and tensors to show as histograms."""

# The charts on TensorBoard's custom scalars tab, by title.
CHARTS = {
    "Evaluation return": ("eval/return_mean",),
    "Episode return": ("train/episode_return",),
    "Q-value": ("agent/q_value",),
    "Critic loss": ("agent/critic_loss",),
    "Model losses": ("model/transition_loss", "model/reward_loss", "model/is_done_loss"),
    "Model hold-out error": ("model/holdout_error",),
}


class Sink(Protocol):
    """A destination of scalars."""

    def write(self, step: int, scalars: Scalars) -> None:
        """Write the scalars, possibly none, of an environment step."""

    def commit(self) -> dict[str, int]:
        """Make everything written durable; return the size of the sink's file, if any, in bytes by name."""
        return {}

    def close(self) -> None:
        """Release resources."""


class LogFile:
    """A sink with a file, truncated to `committed`, its size in bytes at the checkpoint of a resumed run.

    If the file is smaller than that, it is renamed to `*.damaged`, and a new file starts.
    """

    def __init__(self, path: Path, committed: int) -> None:
        self.path = path
        size = path.stat().st_size if path.exists() else 0
        if size < committed:
            log.warning("%s: has only %d of %d bytes; starting a new file", path, size, committed)
            if path.exists():
                path.rename(f"{path}.damaged")
            committed = 0
        self._file = path.open("r+b" if committed else "wb")
        self._file.truncate(committed)
        self._file.seek(committed)

    def commit(self) -> dict[str, int]:
        """Make everything written durable; return the file's size in bytes, by its name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return {self.path.name: self._file.tell()}

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class JsonLines(LogFile):
    """Writes one JSON object per logged step: `step`, and a number per tag."""

    def write(self, step: int, scalars: Scalars) -> None:
        """Append one line, unless there are no scalars."""
        if scalars:
            self._file.write((json.dumps({"step": step, **scalars}) + "\n").encode())
            self._file.flush()


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
        """Append images and histograms."""
        for tag, exhibit in exhibits.items():
            if isinstance(exhibit, Tensor):
                summary = histogram(tag, exhibit.flatten().cpu().numpy(), "auto")
            else:
                image = Summary.Image(encoded_image_string=exhibit)
                summary = Summary(value=[Summary.Value(tag=tag, image=image)])
            self._append(step=step, summary=summary)

    def _append(self, **contents: Any) -> None:
        self._records.write(Event(wall_time=time.time(), **contents).SerializeToString())
        self._file.flush()


class OptionalEvents(TensorBoardEvents):
    """TensorBoard events that stop at the first error, which is logged and does not end the run."""

    def __init__(self, path: Path, committed: int, hyperparameters: Hyperparameters) -> None:
        super().__init__(path, committed, hyperparameters)
        self._works = True
        self._committed = super().commit()

    def _attempt(self, action: Callable[..., Any], *arguments: Any) -> Any:
        if self._works:
            try:
                return action(*arguments)
            except OSError as error:
                self._works = False
                log.error("the run continues without one of its log files: %s", error)
        return None

    def write(self, step: int, scalars: Scalars) -> None:
        """Append one event, unless there are no scalars."""
        self._attempt(super().write, step, scalars)

    def show(self, step: int, exhibits: Exhibits) -> None:
        """Append images and histograms."""
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


class Logger(AbstractContextManager["Logger"]):
    """Gathers the metrics of an environment step and writes them when it ends; closes its sinks on exit."""

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        self.sinks = list(sinks)
        self._now: dict[str, Tensor | float] = {}
        self._collected: defaultdict[str, list[Tensor | float]] = defaultdict(list)

    def __exit__(self, *exception: object) -> None:
        for sink in self.sinks:
            sink.close()

    def show(self, step: int, exhibits: Exhibits) -> None:
        """Write images and histograms to TensorBoard."""
        for sink in self.sinks:
            if isinstance(sink, TensorBoardEvents):
                sink.show(step, exhibits)

    def log(self, metrics: Metrics) -> None:
        """Log metrics of the current step as they are."""
        self._now |= metrics

    def collect(self, metrics: Metrics) -> None:
        """Collect metrics of one update; `summarize` logs their means."""
        for tag, value in metrics.items():
            self._collected[tag].append(value)

    def summarize(self) -> None:
        """Log the means of the metrics collected since the last call."""
        self._now |= {tag: values.mean() for tag, values in self.state_dict().items()}
        self._collected.clear()

    @property
    def unwritten(self) -> dict[str, Tensor | float]:
        """The metrics of the current step so far."""
        return dict(self._now)

    def write(self, step: int) -> None:
        """Write everything logged during a step to all sinks."""
        scalars = {tag: float(value) for tag, value in self._now.items()}
        self._now.clear()
        for sink in self.sinks:
            sink.write(step, scalars)

    def commit(self) -> dict[str, int]:
        """Make the log files durable; return their sizes in bytes, by name."""
        return {name: size for sink in self.sinks for name, size in sink.commit().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the collected metrics that are not yet summarized."""
        return {tag: _stacked(values) for tag, values in self._collected.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._collected = defaultdict(list, {tag: list(values) for tag, values in state.items()})


def _stacked(values: Sequence[Tensor | float]) -> Tensor:
    """Stack scalars on the device of the last one; those from a checkpoint are on the CPU."""
    device = torch.as_tensor(values[-1]).device
    return torch.stack([torch.as_tensor(value, dtype=torch.float32, device=device) for value in values])
