"""What is noticed about an environment before anybody trains in it, each with what to do about it.

Knows environments and random actions; does not know agents, models or what is done with findings.
"""

from __future__ import annotations

import re
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from mbpo_cli.envs.environment import Environment, Step
from mbpo_cli.envs.probe import endless, unrepeated, without_effect
from mbpo_cli.failures import EnvironmentFailed, one_line, place_of
from mbpo_cli.nn.seeding import episode_seed, generator
from mbpo_cli.options import import_named
from mbpo_cli.types import DiscreteActions

LEVELS = ("ok", "note", "warning", "error")
"""From what is as it should be to what prevents training."""

MAX_STEPS, MAX_SECONDS = 1_000, 20.0
EFFECT_STEPS, EFFECT_SECONDS = (10, 50), 10.0
# Networks with usual initial weights and learning rates are made for numbers of about 1.
LARGE = 100.0
SLOW = 100
MAX_NAMES = 5
# What Gymnasium warns of although it does not matter here: actions are scaled, and inputs normalized.
HARMLESS = re.compile("infinity|symmetric and normalized")


class Finding(NamedTuple):
    """One thing that was noticed: its level, one of `LEVELS`, what it is about, and the rest of the line."""

    level: str
    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<8} {self.about}: {self.text}"


class Random(NamedTuple):
    """An episode of random actions, which may be unfinished: first observation, actions and their results."""

    start: Tensor
    steps: list[tuple[Tensor, Step]]

    @property
    def is_over(self) -> bool:
        """True if it has ended."""
        return bool(self.steps) and (self.steps[-1][1].terminated or self.steps[-1][1].truncated)


def unregistered(env_id: str) -> Iterator[Finding]:
    """Yield an error for `module:Class`, a class without an id, and register it for this process."""
    module, _, name = env_id.rpartition(":")
    try:
        kind: Any = getattr(import_named(module), name, None) if module else None
    except Exception:  # which making the environment raises, too
        return
    if isinstance(kind, type) and issubclass(kind, gym.Env) and name not in gym.registry:
        gym.register(name, f"{module}:{name}")
        line = f'gymnasium.register("{name}-v0", {name}, max_episode_steps=1_000)'
        yield Finding("error", "id", f"a class; add {line} to {module}, and use {module}:{name}-v0")


def of_checker(env: gym.Env[Any, Any]) -> Iterator[Finding]:
    """Yield what Gymnasium's own checker says; what prevents training is found in other ways, too."""
    said = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check_env(env.unwrapped, skip_render_check=True)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # assertions, and whatever the environment raises
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            said.append(one_line(f"{kind}{error}") + place_of(error))
    texts = [re.search(r"WARN: ([^\x1b]+)", str(warning.message)) for warning in caught]
    said += [one_line(text[1]) for text in texts if text and not HARMLESS.search(text[1])]
    yield from (Finding("warning", "check_env", text) for text in dict.fromkeys(said))
    if not said:
        yield Finding("ok", "check_env", "Gymnasium's own checks pass")


def lint(
    env: Environment, make_env: Callable[[], Environment], seed: int, hold_steps: int, knows_end: bool
) -> tuple[list[Finding], list[Random]]:
    """Play random steps, each action held for `hold_steps`, and return what they show.

    `knows_end` tells that an is-done function is known. An environment that fails ends the play.
    """
    found: list[Finding] = []
    episodes: list[Random] = []
    try:
        rate = _play(env, episodes, seed, hold_steps)
        steps = [step for episode in episodes for _, step in episode.steps]
        over = [[step for _, step in episode.steps] for episode in episodes if episode.is_over]
        found += [*_of_observations(env, episodes), *_of_limit(env, over, seed), _of_ends(over, knows_end)]
        found += [*_of_rewards(env, steps, over), _of_speed(env, rate)]
        if differs := unrepeated(make_env, seed, generator(seed, "repeat")):
            remedy = "draw from self.np_random alone, which super().reset(seed=seed) seeds"
            found.append(Finding("warning", "repeats", f"{differs}; {remedy}"))
        else:
            found.append(Finding("ok", "repeats", "observations, rewards and ends repeat with the seed"))
            found.append(_of_actions(env, rate, seed))
    except EnvironmentFailed as error:
        found.append(Finding("error", "fails", str(error)))
    return found, episodes


def _play(env: Environment, episodes: list[Random], seed: int, hold_steps: int) -> float:
    """Play episodes until there are enough steps or time is up; return the steps per second."""
    stream, begin, num_steps = generator(seed, "play"), time.perf_counter(), 0
    while num_steps < MAX_STEPS and time.perf_counter() - begin < MAX_SECONDS:
        if not episodes or episodes[-1].is_over:
            episodes.append(Random(env.reset(episode_seed(seed, "play", len(episodes))), []))
        steps = episodes[-1].steps
        action = steps[-1][0] if len(steps) % hold_steps else env.spaces.actions.sample(stream)
        steps.append((action, env.step(action)))
        num_steps += 1
    return num_steps / (time.perf_counter() - begin)


def _of_observations(env: Environment, episodes: Sequence[Random]) -> Iterator[Finding]:
    spaces, space = env.spaces, gym.spaces.flatten_space(env.obs_space)
    assert isinstance(space, gym.spaces.Box)
    rows = [obs for start, steps in episodes for obs in (start, *(step.obs for _, step in steps))]
    obs_NO = torch.stack(rows).double().numpy()
    size_O = np.abs(obs_NO).max(0)

    def names(mask_O: Any) -> str:
        chosen = np.flatnonzero(mask_O).tolist()
        shown = [spaces.element_name(number).removeprefix("element ") for number in chosen[:MAX_NAMES]]
        more = " and others" if len(chosen) > MAX_NAMES else ""
        return f"element{'s' if len(chosen) > 1 else ''} {', '.join(shown)}{more}"

    unbounded = int((np.isinf(space.low) | np.isinf(space.high)).sum())
    parts = zip(spaces.channels, spaces.channel_names, strict=False)
    channels = "".join(f", {size} of '{name}'" for size, name in parts)
    values = _span([float(obs_NO.min()), float(obs_NO.max())])
    text = f"size {spaces.obs_size}{channels}, {unbounded} unbounded; values {values} so far"
    yield Finding("ok", "observation", text)
    excess_NO = np.maximum(space.low - obs_NO, obs_NO - space.high)
    outside_O = (excess_NO > 1e-5 * (1 + np.abs(obs_NO))).any(0)  # bounds that float32 rounds are no fault
    if outside_O.any():
        yield Finding(
            "warning", "observation", f"{names(outside_O)} out of bounds; correct observation_space"
        )
    constant_O = obs_NO.std(0) <= 1e-6 * size_O
    if constant_O.any():
        yield Finding("note", "observation", f"{names(constant_O)} never changed; leave out what never does")
    if (size_O > LARGE).any():
        remedy = "scale to about 1, as by gymnasium.wrappers.RescaleObservation"
        text = f"{names(size_O > LARGE)} up to {_span([float(size_O.max())])}; {remedy}"
        yield Finding("note", "observation", text)


def _of_limit(env: Environment, over: Sequence[Sequence[Step]], seed: int) -> Iterator[Finding]:
    lengths = [len(steps) for steps in over if steps[-1].truncated]
    tell = "add max_episode_steps={0} to gymnasium.register, or 'env.kwargs={{max_episode_steps: {0}}}' here"
    if env.max_steps is not None:
        yield Finding("ok", "limit", f"episodes have at most {env.max_steps:,} steps")
    elif lengths:
        text = f"truncated after {_span(lengths)} steps, but values that follow from it assume 1,000"
        yield Finding("note", "limit", f"{text}; {tell.format(max(lengths))}")
    elif reason := endless(env, generator(seed, "limit")):
        yield Finding("error", "limit", f"none ({reason}); {tell.format(1000)}")
    else:
        yield Finding("ok", "limit", "random episodes end")


def _of_ends(over: Sequence[Sequence[Step]], knows_end: bool) -> Finding:
    lengths = [len(steps) for steps in over if steps[-1].terminated]
    text = f"{len(lengths)} of {len(over)} whole random episodes terminated"
    if not lengths:
        remedy = "" if knows_end else "; if none ever does, --is-done mbpo_cli.envs.known.never says so"
        return Finding("note", "ends", f"{text}{remedy}")
    if max(lengths) == 1:
        return Finding("warning", "ends", f"{text}, with the first step; nothing can be learned")
    return Finding("ok", "ends", f"{text}, after {_span(lengths)} steps")


def _of_rewards(env: Environment, steps: Sequence[Step], over: Sequence[Sequence[Step]]) -> Iterator[Finding]:
    rewards = [step.reward for step in steps]
    text = f"{_span(rewards)} in a step, {statistics.fmean(rewards):.4g} on average"
    if over:
        text += f"; random returns {_span([sum(step.reward for step in episode) for episode in over])}"
    longest = env.max_steps or max(map(len, over), default=len(steps))
    thinkable = _span([longest * reward for reward in rewards])
    yield Finding("ok", "reward", f"{text}; {longest:,} steps of such rewards return {thinkable}")
    ((usual, count),) = Counter(rewards).most_common(1)
    if count >= 0.99 * len(rewards) and not any(step.terminated for step in steps):
        share = "all" if count == len(rewards) else f"{count / len(rewards):.1%} of the"
        remedy = "nothing is learned before others are met; a larger agent.num_warm_start_steps may"
        yield Finding("note", "reward", f"{_span([usual])} in {share} steps; {remedy}")
    if (largest := max(map(abs, rewards))) > LARGE:
        level = "warning" if largest > 10 * LARGE else "note"
        remedy = "scale it, with a gymnasium.wrappers.TransformReward of your own"
        yield Finding(level, "reward", f"reaches {_span([largest])}; {remedy}")


def _of_speed(env: Environment, rate: float) -> Finding:
    if rate > SLOW:
        return Finding("ok", "speed", f"{rate:,.0f} steps per second")
    minutes = 20 * (env.max_steps or 1_000) / rate / 60
    text = f"{rate:.3g} steps per second: an evaluation of 20 whole episodes takes {minutes:.3g} minutes"
    return Finding("note", "speed", f"{text}; set trainer.num_eval_episodes and evaluate_every_steps")


def _of_actions(env: Environment, rate: float, seed: int) -> Finding:
    actions, (low, high) = env.spaces.actions, EFFECT_STEPS
    num_steps = min(max(int(EFFECT_SECONDS * rate / (actions.size + 1)), low), high)
    idle = without_effect(env, seed, generator(seed, "effect"), num_steps)
    if isinstance(actions, DiscreteActions):
        kinds, fault = f"{actions.size} discrete actions, all different", "did what another one does"
        idle = [actions.start + number for number in idle]
    else:
        bounds = _span([*actions.low, *actions.high])
        kinds, fault = f"size {actions.size}, within {bounds}, all with an effect", "had no effect"
    if not idle:
        return Finding("ok", "actions", kinds)
    text = f"{', '.join(map(str, idle))} {fault} in the first {num_steps} steps; leave out what never has one"
    return Finding("warning", "actions", text)


def _span(values: Sequence[float]) -> str:
    """Return the smallest and the largest number as text, one number if they are equal."""
    ends = sorted({min(values), max(values)})
    return " to ".join(f"{end:,.0f}" if abs(end) >= 1_000 else f"{end + 0.0:.4g}" for end in ends)
