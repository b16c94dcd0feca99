"""Group runs that differ only in their seed, and label the groups by what tells them apart.

Knows configurations; does not know statistics, files or pages.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mbpo_cli.report.runs import UNKNOWN, Run

log = logging.getLogger(__name__)

ABSENT = "(absent)"
MAX_KEYS = 3


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one agent on one environment with one configuration.

    Attributes:
        label: The agent and the options that distinguish this group from others on the environment.
        variant: The same for all environments: groups with equal variants are compared as one.
    """

    env: str
    label: str
    variant: str
    runs: tuple[Run, ...]

    @property
    def options(self) -> Mapping[str, str]:
        """The options that affect the result, the seed apart; all runs have the same."""
        return self.runs[0].options

    @property
    def model(self) -> str:
        """A short description of the learned model; "none" if the agent trains on real experience only."""
        if not self.options:
            return UNKNOWN
        get = self.options.get
        if get("mbpo.use_model") == "false" or get("mbpo.real_ratio") in ("1", "1.0"):
            return "none"
        custom = get("model.transition._target_", UNKNOWN).rpartition(".")[2]
        kind = get("model.transition.distribution", custom)
        return f"{kind} x {get('model.transition.num_networks', UNKNOWN)}"

    @cached_property
    def counted(self) -> tuple[Run, ...]:
        """The runs whose scores count: the finished ones, or all if none has; one per seed.

        Of several runs of a seed, it is one of the length that most seeds have, or the longest.
        """
        evaluated = [run for run in self.runs if run.score is not None]
        pool = [run for run in evaluated if run.status == "done"] or evaluated
        seeds_by_steps = {
            steps: len({run.seed for run in pool if run.env_steps == steps}) for steps in self._steps
        }
        usual = max(self._steps, key=lambda steps: (seeds_by_steps[steps], steps), default=0)
        best_last = sorted(pool, key=lambda run: (run.env_steps == usual, run.env_steps))
        return tuple({run.seed if run.seed != UNKNOWN else run.path: run for run in best_last}.values())

    @property
    def _steps(self) -> set[int]:
        return {run.env_steps for run in self.runs}

    @property
    def scores(self) -> tuple[float, ...]:
        """The scores that count."""
        return tuple(run.score for run in self.counted if run.score is not None)


def grouped(runs: Iterable[Run]) -> list[Group]:
    """Return the groups of some runs, by environment and agent."""
    members: defaultdict[tuple[str, str, tuple[tuple[str, str], ...]], list[Run]] = defaultdict(list)
    for run in runs:
        members[run.env, run.agent, tuple(sorted(run.options.items()))].append(run)
    options_of: defaultdict[tuple[str, str], list[Mapping[str, str]]] = defaultdict(list)
    for (env, agent, _), (first, *_) in members.items():
        options_of[env, agent].append(first.options)
    telling = {place: telling_keys(options) for place, options in options_of.items()}
    groups = []
    for env, agent, options in sorted(members):
        mine = members[env, agent, options]
        here = telling[env, agent]
        anywhere = dict.fromkeys(key for place, keys in telling.items() if place[1] == agent for key in keys)
        label = _name(mine[0], here)
        num_more = len(differing_keys(options_of[env, agent])) - len(here)
        if num_more > 0:
            label += f" (+ {num_more} options)"
        groups.append(Group(env, label, _name(mine[0], anywhere), tuple(mine)))
        _warn_of_repeated(groups[-1])
    return groups


def _warn_of_repeated(group: Group) -> None:
    """Log which runs count of seeds that were run more than once."""
    done = [run for run in group.runs if run.status == "done" and run.seed != UNKNOWN]
    for run in group.counted:
        others = [str(other.path) for other in done if other.seed == run.seed and other is not run]
        if others:
            counts = f"{run.path} with {run.env_steps:,} steps counts, {', '.join(others)} not"
            log.warning(
                "%s on %s: seed %s was run more than once: %s", group.label, group.env, run.seed, counts
            )


def _name(run: Run, keys: Iterable[str]) -> str:
    return " ".join([run.agent, *(f"{key}={run.options.get(key, ABSENT)}" for key in keys)])


def differing_keys(configs: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the keys whose values are not the same in all configurations."""
    keys = dict.fromkeys(key for config in configs for key in config)
    return [key for key in keys if len({config.get(key) for config in configs}) > 1]


def telling_keys(configs: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the differing keys, or, if there are many, a few that distinguish all configurations."""
    differing = differing_keys(configs)
    if len(differing) <= MAX_KEYS:
        return differing
    differing.sort(key=lambda key: key != "mbpo.use_model")
    chosen: list[str] = []

    def num_told(keys: Sequence[str]) -> int:
        return len({tuple(config.get(key) for key in keys) for config in configs})

    while num_told(chosen) < len(configs):
        chosen.append(max(differing, key=lambda key: num_told([*chosen, key])))
    return chosen
