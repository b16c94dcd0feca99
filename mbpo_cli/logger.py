"""Scalars of a run: to TensorBoard, to `metrics.jsonl` and to the progress display, by environment step.

The only place that moves metrics from the device to the host, and only when they are due.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, runtime_checkable

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


@runtime_checkable
class LogFile(Protocol):
    """A sink that is a file, which can be cut at any record."""

    path: Path

    def commit(self) -> int:
        """Make all that was written durable; return its bytes."""
        ...


def opened(path: Path, committed: int) -> BinaryIO:
    """Open a log file to go on after its first `committed` bytes; what follows them is cut off."""
    file = path.open("r+b" if committed else "wb")
    file.truncate(committed)
    file.seek(committed)
    return file


def committed(file: BinaryIO) -> int:
    """Make all that was written to a file durable; return its bytes."""
    file.flush()
    os.fsync(file.fileno())
    return file.tell()


class JsonLines:
    """Writes one JSON object per logged step: `step`, and a number per tag."""

    def __init__(self, path: Path, committed: int = 0) -> None:
        """Create the file, or go on after its first `committed` bytes."""
        self.path = path
        self._file = opened(path, committed)

    def write(self, step: int, scalars: Scalars) -> None:
        """Append one line, if there is anything to say."""
        if scalars:
            self._file.write((json.dumps({"step": step, **scalars}) + "\n").encode())
            self._file.flush()

    def commit(self) -> int:
        """Make all that was written durable; return its bytes."""
        return committed(self._file)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardEvents:
    """Writes one TensorBoard event per logged step, and the hyperparameters once.

    The records go straight to one file, without a writer thread: errors appear where they happen,
    and the file can be cut at any record.
    """

    def __init__(
        self, path: Path, hyperparameters: Mapping[str, bool | int | float | str], committed: int = 0
    ) -> None:
        """Create the event file, or go on after its first bytes; `path.name` must contain 'tfevents'."""
        self.path = path
        self._file = opened(path, committed)
        self._records = RecordWriter(self._file)
        if committed:
            return
        self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))
        summary = hparams.hparams_pb(dict(hyperparameters), trial_id=path.parent.name)
        self._append(Event(wall_time=time.time(), step=0, summary=summary))

    def write(self, step: int, scalars: Scalars) -> None:
        """Append one event, if there is anything to say."""
        if scalars:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
            self._append(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def commit(self) -> int:
        """Make all that was written durable; return its bytes."""
        return committed(self._file)

    def _append(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


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

    def commit(self) -> dict[str, int]:
        """Make the log files durable; return their bytes by name."""
        return {sink.path.name: sink.commit() for sink in self._sinks if isinstance(sink, LogFile)}

    def state_dict(self) -> dict[str, Any]:
        """Return what was collected and not yet summarized."""
        return {
            tag: torch.stack([torch.as_tensor(value, dtype=torch.float32) for value in values])
            for tag, values in self._collected.items()
        }

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
