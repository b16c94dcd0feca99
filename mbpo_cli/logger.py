"""Scalars of a run: to TensorBoard, to `metrics.jsonl` and to the progress display, by environment step.

The only place that moves metrics from the device to the host, and only when they are due.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

import torch
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor

from mbpo_cli.types import Metrics

Scalars = Mapping[str, float]


class Sink(Protocol):
    """Takes the scalars of one environment step."""

    def write(self, step: int, scalars: Scalars) -> None:
        """Take the scalars, possibly none, of the given step."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


class JsonLines:
    """Writes one JSON object per logged step: `step`, and a number per tag."""

    def __init__(self, path: Path) -> None:
        """Create the file."""
        self._file = path.open("w", encoding="utf-8")

    def write(self, step: int, scalars: Scalars) -> None:
        """Append one line, if there is anything to say."""
        if scalars:
            self._file.write(json.dumps({"step": step, **scalars}) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardEvents:
    """Writes one TensorBoard event per logged step, and the hyperparameters once.

    The records go straight to one file, without a writer thread: errors appear where they happen,
    and the file can be cut at any record.
    """

    def __init__(self, path: Path, hyperparameters: Mapping[str, bool | int | float | str]) -> None:
        """Create the event file; `path.name` must contain 'tfevents'."""
        self._file = path.open("wb")
        self._records = RecordWriter(self._file)
        self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))
        summary = hparams.hparams_pb(dict(hyperparameters), trial_id=path.parent.name)
        self._append(Event(wall_time=time.time(), step=0, summary=summary))

    def write(self, step: int, scalars: Scalars) -> None:
        """Append one event, if there is anything to say."""
        if scalars:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
            self._append(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _append(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Logger:
    """Collects metrics during an environment step and writes them at its end."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        """Write to all `sinks`."""
        self._sinks = sinks
        self._now: dict[str, Tensor | float] = {}
        self._collected: defaultdict[str, list[Tensor | float]] = defaultdict(list)

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
            self._now[tag] = torch.stack(
                [torch.as_tensor(value, dtype=torch.float32) for value in values]
            ).mean()
        self._collected.clear()

    def write(self, step: int) -> None:
        """Write what was logged during this step, one record for all of it."""
        scalars = {tag: float(value) for tag, value in self._now.items()}
        self._now.clear()
        for sink in self._sinks:
            sink.write(step, scalars)

    def __enter__(self) -> Logger:
        """Use as a context that closes all sinks."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all sinks."""
        for sink in self._sinks:
            sink.close()
