"""What a run has left in its directory, read as plain data: configuration, what of it matters, and returns.

Knows YAML and JSON; does not know types, torch, or what the options mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mbpo_cli.failures import ConfigError, one_line

# What lies in the directory of a run.
CONFIG, METRICS, SUMMARY = "config.yaml", "metrics.jsonl", "summary.json"
LOCK, STOP = "run.lock", "stop"
POLICY, LOG = "policy.pt", "train.log"
CHECKPOINTS, EXPERIENCE = "checkpoints", "experience"
EVENTS = "events.out.tfevents."  # how the name begins
EVALUATION = "eval/return_mean"
MAX_CONFIG_BYTES = 256_000
MAX_CONFIG_DEPTH = 50

# Another value changes when a run looks or stops, or how fast it is, and not what it computes.
HARMLESS = (
    "checkpoint.",
    "compile",
    "env.step_timeout",
    "threads",
    "trainer.diagnostics",
    "trainer.evaluate_every_steps",
    "trainer.events_required",
    "trainer.log_every_steps",
    "trainer.max_hours",
    "trainer.num_env_steps",
    "trainer.num_eval_episodes",
    "trainer.num_score_evaluations",
)

# Values of options that older versions did not have, and with which their runs were made.
OF_OLDER_VERSIONS = {"precision": "float32"}

# The one in C is ten times as fast, and not everywhere.
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def stored_config(path: Path) -> dict[str, Any]:
    """Return the configuration of the run in a directory, as plain data, with what older versions lack.

    Raises:
        ConfigError: There is none, or it cannot be read.
    """
    try:
        text = (path / CONFIG).read_text(encoding="utf-8")
        if len(text) > MAX_CONFIG_BYTES or not _is_plain(text):
            raise ValueError("not written by this program")
        config = yaml.load(text, Loader)
        if not isinstance(config, dict):
            raise ValueError("not a mapping")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path / CONFIG}: cannot be read: {one_line(error)}") from error
    return {**OF_OLDER_VERSIONS, **config}


def _is_plain(text: str) -> bool:
    """Whether a text has neither aliases, which may grow without limit, nor depths that exhaust the stack."""
    depth = 0
    for event in yaml.parse(text, Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > MAX_CONFIG_DEPTH:
            return False
    return True


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of every option in a tree."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + str(key), value


def evaluations(path: Path) -> dict[int, float]:
    """Return the mean returns of the evaluations of the run in a directory by environment step, so far."""
    metrics = path / METRICS
    if not metrics.exists():
        return {}
    # What follows the last line break is half a line, of a run that still writes or that a full disk ended.
    lines = metrics.read_text(encoding="utf-8").split("\n")[:-1]
    rows = [json.loads(line) for line in lines if EVALUATION in line]
    return {row["step"]: row[EVALUATION] for row in rows}
