"""The names of the files in a run directory, and its configuration and evaluation returns as plain data.

Knows YAML and JSON; does not know types, torch or the meaning of options.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from mbpo_cli.failures import ConfigError

CONFIG, METRICS, SUMMARY = "config.yaml", "metrics.jsonl", "summary.json"
LOCK, STOP = "run.lock", "stop"
POLICY, LOG, CURVE, FILM = "policy.pt", "train.log", "curve.png", "film.gif"
METRICS_TABLE, TRACKER = "metrics.csv", "tracker_id"
CHECKPOINTS, EXPERIENCE = "checkpoints", "experience"
MANIFEST, STATE, TENSORS = "manifest.json", "state.json", "tensors.safetensors"  # of a checkpoint
EVENTS = "events.out.tfevents."  # a prefix
EVALUATION = "eval/return_mean"
FOLDERS = {CHECKPOINTS, EXPERIENCE, ".hydra", "wandb"}  # the last two are Hydra's and that tracker's
FILES = {CONFIG, METRICS, METRICS_TABLE, SUMMARY, LOCK, STOP, POLICY, LOG, CURVE, FILM, TRACKER}
MAX_CONFIG = 256_000  # characters
# Begins the ids of environments that a Python function makes. Only Python can open or resume their runs.
FROM_PYTHON = "python_function/"

# Options that change when a run is scored and stops, but not what it computes.
SCORED = (
    "trainer.evaluate_every_steps",
    "trainer.max_episodes",
    "trainer.num_env_steps",
    "trainer.num_eval_episodes",
    "trainer.num_score_evaluations",
    "trainer.score_averaging_window_length",
    "trainer.stop_training_criteria",
    "trainer.stop_training_value",
)
# These, and options that change when it logs and how fast it is.
HARMLESS = (
    *SCORED,
    "checkpoint.",
    "compile",
    "env.step_timeout",
    "logger",
    "model.allow_mismatch",
    "threads",
    "trainer.diagnostics",
    "trainer.events_required",
    "trainer.film_episodes",
    "trainer.log_every_steps",
    "trainer.max_hours",
)

# Values for options that older versions did not have, equivalent to what those versions did.
VALUES_OF_OLDER_VERSIONS: dict[str, Any] = {
    "precision": "float32",
    "data": None,
    "logger": {"tensorboard": {"_target_": "mbpo_cli.logs.tensorboard.TensorBoard"}},
}
VALUES_OF_OLDER_GROUPS: dict[str, Any] = {
    "agent": {
        "from_run": None,
        "reset_experience_buffer_before_training": True,
        "learning_frequency": 1,
        "num_steps_to_look_ahead": 1,
    },
    "model": {
        "allow_mismatch": True,
        "from_run": None,
        "training": {
            "min_epochs": 1,
            "keep_small_gains": False,
            "significance": None,
            "restart_optimizer": False,
            "bootstrap": False,
        },
    },
    "mbpo": {
        "fit_every": None,
        "first_updates": 0,
        "training_horizon": 0,
        "critic_share": 0.0,
        "max_relative_error": None,
        "data_ratio": None,
        "model_rollout_options": {
            "max_disagreement": None,
            "max_divergence": None,
            "divergence_quantile": 0.95,
            "max_lost_information": None,
            "num_compared": 3,
            "random_fraction": 0.0,
            "reward_penalty": 0.0,
        },
    },
    "checkpoint": {"save_agent_criteria": "none", "save_agent_value": None, "keep_saved": 5},
    "trainer": {
        "film_episodes": 0,
        "max_episodes": None,
        "stop_training_criteria": "none",
        "stop_training_value": None,
        "score_averaging_window_length": 5,
    },
}
VALUES_OF_OLDER_FUNCTIONS = {"decoupled_decay": False, "layer_norm": False, "dropout": 0.0, "from_run": None}
VALUES_OF_OLDER_OPTIMIZERS = {
    "gradient_threshold_method": "global_l2norm",
    "algorithm": "adam",
    "gradient_decay_factor": 0.9,
    "squared_gradient_decay_factor": 0.999,
    "epsilon": 1e-8,
}
VALUES_OF_OLDER_NOISE = {"standard_deviation_units": "scaled"}
# Of groups anywhere in a configuration that have these options.
VALUES_OF_OLDER_PARTS: tuple[tuple[set[str], dict[str, Any]], ...] = (
    ({"learn_rate", "gradient_threshold", "l2_regularization"}, VALUES_OF_OLDER_OPTIMIZERS),
    ({"standard_deviation_decay_rate", "standard_deviation_min"}, VALUES_OF_OLDER_NOISE),
)
# Of the base agents, by their class; all had two critics, or one.
VALUES_OF_OLDER_AGENTS = {
    f"mbpo_cli.agents.{name.lower()}.{name}": {
        "critics": {
            "number": number,
            "num_in_target": number,
            "layer_norm": False,
            "dropout": 0.0,
            "bound_targets": False,
            "bound_quantile": 0.0,
            "scale_outputs": False,
        },
        "activation": "relu",
        "initial_weights": "uniform",
        "normalize_observations": False,
        "policy_smooth_factor": 1.0,
        **({"actor_output_limit": None} if name in ("TD3", "DDPG") else {}),
        **({"entropy_weight_options": {"entropy_weight_max": None}} if name == "SAC" else {}),
    }
    for name, number in (("SAC", 2), ("TD3", 2), ("DDPG", 1), ("DQN", 1))
}

# The C loader is ten times as fast, but not available everywhere.
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def stored_config(path: Path) -> dict[str, Any]:
    """Return the configuration stored in a run directory, with the options that older versions lack.

    Raises:
        ConfigError: There is none, or it cannot be read.
    """
    if not (path / CONFIG).is_file():
        raise ConfigError(f"{path}: {no_run(path)}")
    try:
        check_own(path)
        with (path / CONFIG).open(encoding="utf-8") as file:
            text = file.read(MAX_CONFIG + 1)
        if len(text) > MAX_CONFIG or not _is_plain(text):
            raise ValueError("not written by this program")
        config = yaml.load(text, Loader)
        if not isinstance(config, dict):
            raise ValueError("not a mapping")
        json.dumps(config)  # raises an error if there are dates, or numbers too long to print
    except ConfigError:
        raise
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path / CONFIG}: cannot be read: {error}") from error
    return _with_later_options({**copy.deepcopy(VALUES_OF_OLDER_VERSIONS), **config})


def no_run(path: Path) -> str:
    """Say why a path is no run directory, and which runs are near."""
    if run := next((parent for parent in list(path.parents)[:2] if (parent / CONFIG).is_file()), None):
        return f"not a run directory; did you mean {run}?"
    if not path.is_dir():
        return "no such directory" if not path.exists() else "not a directory"
    found = [file.parent for depth in ("*", "*/*") for file in path.glob(f"{depth}/{CONFIG}")]
    newest = max(found, key=lambda run: (run / CONFIG).stat().st_mtime, default=None)
    near = "" if newest is None else f"; it holds {len(found)} runs, the newest is {newest}"
    return f"not a run directory, as it has no {CONFIG}{near}"


def _with_later_options(config: dict[str, Any]) -> dict[str, Any]:
    """Add the options that older versions lack; known functions had no arguments of their own."""
    for group, values in VALUES_OF_OLDER_GROUPS.items():
        if isinstance(config.get(group), dict):
            _add_missing(config[group], values)
    env, model, agent = config.get("env"), config.get("model"), config.get("agent")
    if isinstance(agent, dict) and isinstance(agent.get("_target_"), str):
        _add_missing(agent, VALUES_OF_OLDER_AGENTS.get(agent["_target_"], {}))
    if isinstance(env, dict) and isinstance(model, dict):
        for part in model.values():
            if isinstance(part, dict) and "function" in part:
                part.setdefault("kwargs", env.get("kwargs"))
            if isinstance(part, dict) and "layer_decays" in part:
                _add_missing(part, VALUES_OF_OLDER_FUNCTIONS)
            if isinstance(part, dict) and part.get("_target_") == "mbpo_cli.models.is_done.LearnedIsDone":
                _add_missing(part, {"max_false_ends": None, "early_stopping": True})
    for name in ("agent", "model", "mbpo"):
        _complete_parts(config.get(name))
    return config


def _complete_parts(group: Any) -> None:
    """Add the options that older optimizers and older noise lack to all in a group."""
    if isinstance(group, dict):
        for names, values in VALUES_OF_OLDER_PARTS:
            if names <= group.keys():
                _add_missing(group, values)
        for part in group.values():
            _complete_parts(part)


def _add_missing(values: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add the keys that are missing; a mapping that is missing as a whole is added only as a whole."""
    for key, value in more.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _add_missing(values[key], value)
        else:
            values.setdefault(key, copy.deepcopy(value))


def is_own(name: str) -> bool:
    """Return True for a name in a run directory that the program itself uses."""
    return name in FILES | FOLDERS or name.startswith(EVENTS) or name.endswith(".tmp")


def check_own(path: Path, writes: bool = False) -> None:
    """Check that what the program uses in a run directory lies there, so that nothing outside can change.

    With `writes`, files with a second name (hard links) are refused too. The directory need not exist, and
    another process may be working in it.

    Raises:
        ConfigError: It holds a link, or something that is neither a file nor a directory.
    """
    steps = path.glob(f"{CHECKPOINTS}/*")
    for folder in (path, path / CHECKPOINTS, *steps, path / EXPERIENCE, path / ".hydra"):
        with suppress(FileNotFoundError, NotADirectoryError):
            for entry in sorted(folder.iterdir()):
                if folder != path or is_own(entry.name):
                    _check_entry(entry, path, writes)


def _check_entry(entry: Path, run: Path, writes: bool) -> None:
    try:
        status = entry.lstat()
    except FileNotFoundError:  # removed by the process that works in the run
        return
    is_file, is_folder = stat.S_ISREG(status.st_mode), stat.S_ISDIR(status.st_mode)
    needs_folder = entry.parent == run and entry.name in FOLDERS
    if stat.S_ISLNK(status.st_mode):
        problem = "a link"
    elif needs_folder and not is_folder:
        problem = "not a directory"
    elif is_folder and not needs_folder and entry.parent != run / CHECKPOINTS:
        problem = "a directory"
    elif not is_file and not is_folder:
        problem = "neither a file nor a directory"
    elif writes and is_file and status.st_nlink > 1:
        problem = "a hard link, which has another name elsewhere"
    else:
        return
    raise ConfigError(f"{entry}: is {problem}; a run directory must hold its own files (cp -rL copies it)")


def config_digest(path: Path) -> str:
    """Return what a summary keeps of the stored configuration that it belongs to."""
    return hashlib.sha256((path / CONFIG).read_bytes()).hexdigest()


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Return the options that differ between two configurations: `old -> new` by dotted key."""
    before, after = dict(leaves(old)), dict(leaves(new))
    return {
        key: f"{before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }


def _is_plain(text: str) -> bool:
    """Return True if YAML has no aliases, which can grow without limit, and does not exhaust the stack."""
    depth = 0
    for event in yaml.parse(text, Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > 50:
            return False
    return True


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of every option in a tree."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + str(key), value


def last_logged_step(path: Path) -> int:
    """Return the last environment step with scalars of the run in a directory, or -1 if there is none."""
    metrics = path / METRICS
    for line in reversed(metrics.read_bytes().split(b"\n")[:-1] if metrics.exists() else []):
        with suppress(ValueError, TypeError, KeyError, OverflowError, RecursionError):  # not ours
            return int(json.loads(line)["step"])
    return -1


def evaluations(path: Path) -> dict[int, float]:
    """Return the mean evaluation returns of the run in a directory so far, by environment step."""
    return history(path, (EVALUATION,))[EVALUATION]


def history(path: Path, tags: Sequence[str]) -> dict[str, dict[int, float]]:
    """Return what the run in a directory has logged under each tag so far, by environment step."""
    curves: dict[str, dict[int, float]] = {tag: {} for tag in tags}
    metrics = path / METRICS
    if not metrics.exists():
        return curves
    named = re.compile("|".join(map(re.escape, tags)).encode())
    # The rest after the last line break is an incomplete line of a run that is still writing or was cut off.
    for line in metrics.read_bytes().split(b"\n")[:-1]:
        if named.search(line):
            # Lines that are not ours.
            with suppress(ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
                row = json.loads(line)
                for tag in curves.keys() & row.keys():
                    curves[tag][int(row["step"])] = float(row[tag])
    return curves
