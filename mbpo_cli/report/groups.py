"""Runs that differ in nothing but their seed, as groups with names that tell them apart.

Knows configurations; does not know statistics, files or pages.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mbpo_cli.failures import one_line
from mbpo_cli.report.runs import UNKNOWN, Run
from mbpo_cli.storage.records import HARMLESS

log = logging.getLogger(__name__)

ABSENT = "(absent)"
FIRST = "mbpo.use_model"
MAX_KEYS = 3


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one agent on one environment with one configuration.

    Attributes:
        env: The environment's name.
        agent: The agent's name.
        label: The agent and what tells this group from others on the same environment.
        variant: The same over all environments: groups that share it can be compared as one.
        config: What each option that matters was, as text.
        model: The learned model in a few words.
        runs: All of its runs.
    """

    env: str
    agent: str
    label: str
    variant: str
    config: Mapping[str, str]
    model: str
    runs: tuple[Run, ...]

    @cached_property
    def counted(self) -> tuple[Run, ...]:
        """The runs whose final returns count: the finished ones, or all if none is; one for each seed."""
        evaluated = [run for run in self.runs if run.score is not None]
        pool = [run for run in evaluated if run.status == "done"] or evaluated
        farthest = sorted(pool, key=lambda run: run.env_steps)
        return tuple({run.seed if run.seed != UNKNOWN else run.path: run for run in farthest}.values())

    @property
    def is_finished(self) -> bool:
        """Whether final returns are those of finished runs."""
        return any(run.status == "done" for run in self.counted)

    @property
    def scores(self) -> tuple[float, ...]:
        """The final returns that count."""
        return tuple(run.score for run in self.counted if run.score is not None)

    @property
    def num_failed(self) -> int:
        """How many runs failed."""
        return sum(run.status == "failed" for run in self.runs)

    @property
    def num_unfinished(self) -> int:
        """How many runs go on, or were stopped or killed."""
        return sum(run.status not in ("done", "failed") for run in self.runs)


def grouped(runs: Iterable[Run]) -> list[Group]:
    """Return runs in groups, by environment and agent."""
    members: defaultdict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for run in runs:
        members[run.env, run.agent, json.dumps(sorted(_config(run).items()))].append(run)
    configs: defaultdict[tuple[str, str], list[Mapping[str, str]]] = defaultdict(list)
    for (env, agent, _), (first, *_) in members.items():
        configs[env, agent].append(_config(first))
    telling = {place: telling_keys(trees) for place, trees in configs.items()}
    groups = []
    for (env, agent, _), mine in sorted(members.items()):
        config = _config(mine[0])
        anywhere = dict.fromkeys(key for (_, who), keys in telling.items() if who == agent for key in keys)
        more = len(differing_keys(configs[env, agent])) > len(telling[env, agent])
        label, variant = (_named(agent, config, keys) for keys in (telling[env, agent], anywhere))
        group = Group(
            env, agent, label + (" ..." if more else ""), variant, config, _model(mine[0].config), tuple(mine)
        )
        if len({run.seed for run in mine if run.status == "done"}) < sum(
            run.status == "done" for run in mine
        ):
            log.warning("%s on %s: a seed was run more than once, and counts once", group.label, env)
        groups.append(group)
    return groups


def differing_keys(configs: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the keys whose values are not the same in all configurations."""
    keys = dict.fromkeys(key for config in configs for key in config)
    return [key for key in keys if len({config.get(key) for config in configs}) > 1]


def telling_keys(configs: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the keys that differ, or, where they are many, a few that tell all configurations apart."""
    differing = differing_keys(configs)
    if len(differing) <= MAX_KEYS:
        return differing
    differing.sort(key=lambda key: key != FIRST)
    chosen: list[str] = []

    def num_told(keys: Sequence[str]) -> int:
        return len({tuple(config.get(key) for key in keys) for config in configs})

    while num_told(chosen) < len(configs):
        chosen.append(max(differing, key=lambda key: num_told([*chosen, key])))
    return chosen


def _config(run: Run) -> dict[str, str]:
    """Return the options of a run that matter, as text."""
    return {
        one_line(key): one_line(value if isinstance(value, str) else json.dumps(value, default=str))
        for key, value in run.config.items()
        if key != "seed" and not key.startswith(HARMLESS)
    }


def _named(agent: str, config: Mapping[str, str], keys: Iterable[str]) -> str:
    return " ".join([agent, *(f"{key}={config.get(key, ABSENT)}" for key in keys)])


def _model(config: Mapping[str, Any]) -> str:
    """Return a few words on the learned model; with all experience real there is none."""
    if not config:
        return UNKNOWN
    if config.get("mbpo.use_model") is False or config.get("mbpo.real_ratio") == 1:
        return "none"
    own = str(config.get("model.transition._target_", UNKNOWN)).rpartition(".")[2]
    kind = config.get("model.transition.distribution", own)
    return one_line(f"{kind} x {config.get('model.transition.num_networks', UNKNOWN)}")
