"""Writes scalars of a run by environment step to its sinks: files, services, and the progress display.

Moves metrics from the device to the host when a log is due.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mbpo_cli.options import Component
from mbpo_cli.storage.records import METRICS_TABLE
from mbpo_cli.types import Metrics

log = logging.getLogger(__name__)

Scalars = Mapping[str, float]
Hyperparameters = Mapping[str, bool | int | float | str]
Exhibits = Mapping[str, bytes | Tensor | Path]
"""What is not a scalar, by tag: PNG images, tensors to show as histograms, and GIF files of films."""


@dataclass(frozen=True)
class RunInfo:
    """What a sink is told of its run.

    Attributes:
        path: The directory.
        id: What trackers know the run by; a resumed run keeps it. Letters and digits.
        config: The configuration as plain data.
        hyperparameters: The same options that are not null, by dotted key.
        logs: For each log file, the number of bytes that belong to the checkpoint of a resumed run.
    """

    path: Path
    id: str
    config: Mapping[str, Any]
    hyperparameters: Hyperparameters
    logs: Mapping[str, int]


class Sink:
    """A destination of scalars, with methods that do nothing. An error in one ends the run."""

    def write(self, step: int, scalars: Scalars) -> None:
        """Write the scalars, possibly none, of an environment step."""

    def show(self, step: int, exhibits: Exhibits) -> None:
        """Write images, histograms and films of an environment step."""

    def commit(self) -> dict[str, int]:
        """Make everything written durable; return the size of the sink's file, if any, in bytes by name."""
        return {}

    def close(self) -> None:
        """Release resources."""


class LogFile(Sink):
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


class CsvTable(LogFile):
    """Writes `metrics.csv`, a row of step, tag and value per scalar: tags differ from step to step."""

    Options = Component

    def __init__(self, options: Component, run: RunInfo) -> None:
        super().__init__(run.path / METRICS_TABLE, run.logs.get(METRICS_TABLE, 0))
        if self._file.tell() == 0:
            self._append([("step", "tag", "value")])

    def write(self, step: int, scalars: Scalars) -> None:
        """Append a row per scalar."""
        self._append([(step, tag, value) for tag, value in scalars.items()])

    def _append(self, rows: Sequence[Sequence[Any]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        self._file.write(text.getvalue().encode())
        self._file.flush()


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
        """Write images, histograms and films to all sinks."""
        for sink in self.sinks:
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
