"""Experiment trackers: Weights & Biases, MLflow and Trackio, each by its own package, which is an extra.

Knows what the packages are told; does not know threads, and imports a package only when it is used.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from torch import Tensor

from mbpo_cli.logs.background import Tracker, TrackerOptions
from mbpo_cli.logs.logger import Exhibits, RunInfo, Scalars
from mbpo_cli.options import option

MAX_PARAMETERS = 100  # in one request to MLflow


class MediaTracker(Tracker):
    """What Weights & Biases and Trackio have in common.

    Attributes:
        library: The package, whose classes stand for images and histograms.
        run: Its run.
    """

    library: Any
    run: Any

    def write(self, step: int, scalars: Scalars) -> None:
        """Send scalars."""
        self.run.log(dict(scalars), step=step)

    def show(self, step: int, exhibits: Exhibits) -> None:
        """Send images, histograms and films."""
        self.run.log({tag: self._media(exhibit) for tag, exhibit in exhibits.items()}, step=step)

    def _media(self, exhibit: bytes | Tensor | Path) -> Any:
        if isinstance(exhibit, Path):
            return self.library.Video(str(exhibit), format="gif")
        if isinstance(exhibit, Tensor):
            return self.library.Histogram(exhibit.flatten().cpu().numpy())
        return self.library.Image(Image.open(io.BytesIO(exhibit)))


@dataclass
class WandbOptions(TrackerOptions):
    """Options of Weights & Biases."""

    project: str = option("project of Weights & Biases")
    entity: str | None = option("user or team that the project belongs to; null = your default one")
    group: str | None = option("name under which runs are grouped, such as that of a sweep")
    mode: Literal["online", "offline"] | None = option(
        "offline = write to the run directory, for `wandb sync`; null = what WANDB_MODE says, else online"
    )


class Wandb(MediaTracker):
    """Sends to Weights & Biases; its own files lie in the run directory."""

    Options = WandbOptions
    package = "wandb"

    def __init__(self, options: WandbOptions, run: RunInfo) -> None:
        import wandb

        mode: Any = options.mode or os.environ.get("WANDB_MODE", "online")
        # It would ask for a key on the terminal, and wait.
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            raise RuntimeError("there is no API key: call `wandb login`, or set logger.wandb.mode=offline")
        self.library = wandb
        self.run = wandb.init(
            project=options.project,
            entity=options.entity,
            group=options.group,
            mode=mode,
            id=run.id,
            name=run.path.absolute().name,
            dir=run.path,
            config=dict(run.config),
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Send the summary, and wait until everything is sent."""
        self.run.summary.update(dict(summary))
        self.run.finish(exit_code=int(summary["status"] == "failed"))

    @staticmethod
    def abandon() -> None:
        """Kill the process that sends, which would be waited for; its data remain in the run directory."""
        for children in Path("/proc/self/task").glob("*/children"):
            for process in map(int, children.read_text().split()):
                with suppress(OSError):  # it has ended
                    if Path(f"/proc/{process}/comm").read_text().strip() == "wandb-core":
                        os.kill(process, signal.SIGKILL)
        with suppress(Exception):  # the connection is lost, or the package not even loaded
            sys.modules["wandb"].teardown()


@dataclass
class MlflowOptions(TrackerOptions):
    """Options of MLflow."""

    tracking_uri: str | None = option(
        "where runs are stored: http://host:port, or sqlite:///file.db; null = what MLFLOW_TRACKING_URI says"
    )
    experiment: str = option("experiment of MLflow")


class Mlflow(Tracker):
    """Sends to MLflow: pictures, films and the configuration as artifacts, and no histograms."""

    Options = MlflowOptions
    package = "mlflow"
    STATUS: Mapping[str, str] = {"done": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}

    def __init__(self, options: MlflowOptions, run: RunInfo) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        self._client = client = MlflowClient(options.tracking_uri)
        experiment = self._experiment(options.experiment)
        found = client.search_runs([experiment], f"tags.mbpo_id = '{run.id}'")
        if found:
            self._run = found[0].info.run_id
            client.update_run(self._run, status="RUNNING")
            return
        name = run.path.absolute().name
        self._run = client.create_run(experiment, run_name=name, tags={"mbpo_id": run.id}).info.run_id
        parameters = [Param(key, str(value)) for key, value in run.hyperparameters.items()]
        for start in range(0, len(parameters), MAX_PARAMETERS):
            client.log_batch(self._run, params=parameters[start : start + MAX_PARAMETERS])
        client.log_dict(self._run, dict(run.config), "config.yaml")

    def _experiment(self, name: str) -> str:
        """Return the id of an experiment, which is made unless it exists."""
        from mlflow.exceptions import MlflowException

        if (known := self._client.get_experiment_by_name(name)) is None:
            with suppress(MlflowException):  # another job has just made it
                return str(self._client.create_experiment(name))
            known = self._client.get_experiment_by_name(name)
        return str(known.experiment_id)

    def write(self, step: int, scalars: Scalars) -> None:
        """Send scalars."""
        now = int(time.time() * 1000)
        metrics = [self._metric(tag, value, now, step) for tag, value in scalars.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def show(self, step: int, exhibits: Exhibits) -> None:
        """Send images and films as artifacts, `TAG/STEP.png` and `TAG/STEP.gif`."""
        for tag, exhibit in exhibits.items():
            if isinstance(exhibit, Tensor):
                continue
            suffix, data = (".gif", exhibit.read_bytes()) if isinstance(exhibit, Path) else (".png", exhibit)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, f"{step:09}{suffix}")
                path.write_bytes(data)
                self._client.log_artifact(self._run, str(path), tag)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Send the summary, and set the status of the run."""
        self._client.log_dict(self._run, dict(summary), "summary.json")
        self._client.set_terminated(self._run, self.STATUS[summary["status"]])


@dataclass
class TrackioOptions(TrackerOptions):
    """Options of Trackio."""

    project: str = option("project of Trackio")
    space_id: str | None = option("Hugging Face Space to send to; null = on this machine, in TRACKIO_DIR")


class Trackio(MediaTracker):
    """Writes to Trackio's database on this machine, or sends to a Hugging Face Space."""

    Options = TrackioOptions
    package = "trackio"

    def __init__(self, options: TrackioOptions, run: RunInfo) -> None:
        import trackio

        self.library = trackio
        self.run = trackio.init(
            options.project,
            name=f"{run.path.absolute().name}-{run.id}",
            space_id=options.space_id,
            config=dict(run.config),
            resume="allow",
            embed=False,
        )

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Send the numbers of the summary as scalars of the last step, and wait until all is sent."""
        numbers = {
            f"summary/{key}": value for key, value in summary.items() if isinstance(value, int | float)
        }
        self.run.log(numbers, step=summary["env_steps"])
        self.run.finish()
