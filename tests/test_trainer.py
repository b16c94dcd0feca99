"""Order and counts of the training loop, recorded by a spy agent in a counting environment."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from mbpo_cli import build, rollouts
from mbpo_cli.buffers import ReplayBuffer, Unseen
from mbpo_cli.config.compose import make_config
from mbpo_cli.envs.collector import Collector
from mbpo_cli.envs.environment import Environment
from mbpo_cli.evaluation.evaluate import Evaluation
from mbpo_cli.exploration import RolloutPolicy
from mbpo_cli.failures import Stopped
from mbpo_cli.logs.logger import Logger, Sink
from mbpo_cli.nn.seeding import episode_seed
from mbpo_cli.trainer import ModelBased, Trainer
from mbpo_cli.types import Accelerate, Metrics, Policy, Transitions
from tests.conftest import TINY, CountingEnv, gym_env


class Spy:
    """Records the calls of the training loop; stands in for agent, fitter and rollout noise."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.batches: list[Transitions] = []
        self.firsts: list[list[bool]] = []

    def act(self, obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
        self.events.append("act" if explore is not None else "act greedily")
        return torch.zeros(len(obs), 1)

    def value(self, obs: Tensor, action: Tensor) -> Tensor:
        return torch.zeros(len(obs))

    def explore(self, obs: Tensor, generator: torch.Generator, first: Tensor) -> Tensor:
        self.events.append("act")
        self.firsts.append(first.tolist())
        return torch.zeros(len(obs), 1)

    def __call__(self, action: Tensor, generator: torch.Generator) -> Tensor:
        self.events.append("perturb")
        return action

    def observe(self, obs: Tensor) -> None: ...

    def update(self, batches: Sequence[Transitions]) -> Sequence[Metrics]:
        self.events += ["update"] * len(batches)
        self.batches += batches
        return [{"agent/loss": torch.tensor(1.0)} for _ in batches]

    def compile(self, accelerate: Accelerate) -> None:
        self.events.append("compile")

    def fit(self, model: Any, data: Transitions, num_epochs: int, should_stop: Callable[[], bool]) -> Metrics:
        self.events.append(f"fit {len(data)}")
        return {}

    def decay(self) -> None:
        self.events.append("decay")

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def policy_state(self) -> dict[str, Tensor]:
        return {}


class Standstill:
    """A model in which nothing moves and every reward is -1."""

    knows_reward = True

    def __init__(self, spy: Spy) -> None:
        self.spy = spy

    def step(self, obs: Tensor, action: Tensor, generator: torch.Generator) -> Transitions:
        self.spy.events.append(f"generate {len(obs)}")
        return Transitions(obs, action, torch.full((len(obs),), -1.0), obs, torch.zeros(len(obs)))


def test_metrics_restored_from_a_checkpoint_join_those_of_another_device() -> None:
    logger = Logger()
    logger.load_state_dict({"agent/loss": torch.tensor([1.0])})
    logger.collect({"agent/loss": torch.tensor(2.0, device="meta")})
    assert logger.state_dict()["agent/loss"].shape == (2,)


class Recorder(Sink):
    """A sink that records all rows."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def write(self, step: int, scalars: Any) -> None:
        if scalars:
            self.rows.append({"step": step, **scalars})

    def commit(self) -> dict[str, int]:
        return {}

    def close(self) -> None: ...

    def series(self, tag: str) -> dict[int, float]:
        return {int(row["step"]): row[tag] for row in self.rows if tag in row}


ONE_STEP = (
    "agent.experience_buffer_length=100",
    "agent.warm_start_hold_steps=1",
    "mbpo.generate_every=episode",
    "mbpo.retained_generations=null",
    "mbpo.model_rollout_options.horizon=1",
)
"""Overrides that choose rollouts of one step at the start of each episode, and keep all."""


class Loop:
    """A trainer with a spy."""

    def __init__(
        self, *overrides: str, env: CountingEnv | None = None, should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        config = make_config(*TINY, *gym_env("tests/Counting-v0"), *ONE_STEP, *overrides)
        self.spy, self.recorder = Spy(), Recorder()
        self.counting = env or CountingEnv(episode_steps=5)
        more = [CountingEnv(episode_steps=5 + i) for i in range(1, config.env.num_envs)]
        envs = [Environment(one) for one in (self.counting, *more)]
        space = envs[0].spaces
        self.model_based = None
        if build.uses_model(config):
            self.model_based = ModelBased(
                model=Standstill(self.spy),  # type: ignore[arg-type]
                fitter=self.spy,  # type: ignore[arg-type]
                policy=RolloutPolicy(self.spy, self.spy),  # type: ignore[arg-type]
                buffer=ReplayBuffer(config.mbpo.model_experience_buffer_length, space),
            )
        self.trainer = Trainer(
            options=config.trainer,
            agent_options=config.agent,
            mbpo_options=config.mbpo,
            seed=config.seed,
            device=torch.device("cpu"),
            collector=Collector(envs, partial(episode_seed, config.seed, "environment")),
            agent=self.spy,
            real_buffer=build.build_real_buffer(config, space, torch.device("cpu")),
            model_based=self.model_based,
            evaluate=self.evaluate,
            logger=Logger([self.recorder]),
            should_stop=should_stop,
        )

    def evaluate(self, policy: Policy) -> Evaluation:
        self.spy.events.append("evaluate")
        return Evaluation((1.0, 3.0), (5, 5))

    def run(self) -> list[str]:
        assert self.trainer.train()
        return self.spy.events


GENERATE = ["act greedily", "perturb", "generate 10", "decay"]
QUIET = ("trainer.evaluate_every_steps=1000",)


def test_the_model_is_fitted_and_used_at_the_start_of_each_episode() -> None:
    # The warm start is the first episode, without the agent; two episodes of 5 steps follow.
    events = Loop("mbpo.generate_every=episode", "trainer.num_env_steps=15", *QUIET).run()
    episode = ["act", "update"] * 5
    assert events == ["fit 5", *GENERATE, *episode, "fit 10", *GENERATE, *episode, "evaluate"]


def test_known_functions_are_compared_once_with_every_real_transition() -> None:
    loop = Loop("mbpo.generate_every=4", "trainer.num_env_steps=13", *QUIET)
    assert loop.model_based is not None
    compared: list[tuple[int, int]] = []
    loop.model_based.compare = Unseen(lambda real, first_step: compared.append((first_step, len(real))))
    loop.run()
    assert compared == [(1, 8), (9, 4)]


def test_a_comparison_is_limited_to_what_the_buffer_still_holds() -> None:
    loop = Loop("mbpo.generate_every=120", "trainer.num_env_steps=250", *QUIET)
    assert loop.model_based is not None
    compared: list[tuple[int, int]] = []
    loop.model_based.compare = Unseen(lambda real, first_step: compared.append((first_step, len(real))))
    loop.run()
    assert compared == [(21, 100), (141, 100)], "the buffer of these tests holds 100"


def test_the_model_is_fitted_and_used_every_k_steps() -> None:
    events = Loop("mbpo.generate_every=4", "trainer.num_env_steps=13", *QUIET).run()
    step = ["act", "update"]
    assert events == [*step * 3, "fit 8", *GENERATE, *step * 4, "fit 12", *GENERATE, *step, "evaluate"]


def test_the_model_is_fitted_less_often_than_it_is_used() -> None:
    options = ("mbpo.generate_every=2", "mbpo.fit_every=4", "trainer.num_env_steps=13", *QUIET)
    events = Loop(*options).run()
    step = ["act", "update"] * 2
    used = [*GENERATE, *step]
    assert events == [
        *(*["act", "update"], "fit 6", *used, "fit 8", *used, *used, "fit 12", *GENERATE),
        *("act", "update", "evaluate"),
    ]


def test_fits_keep_their_rhythm_between_two_generations() -> None:
    options = ("mbpo.generate_every=3", "mbpo.fit_every=4", "trainer.num_env_steps=13", *QUIET)
    events = Loop(*options).run()
    step = ["act", "update"]
    assert events == [
        *(*step, "fit 6", *GENERATE, *step * 2, "fit 8", *GENERATE, *step, *GENERATE),
        *(*step * 3, "fit 12", *GENERATE, *step, "evaluate"),
    ]


def test_first_updates_follow_the_first_fit_with_a_new_generation_for_every_few() -> None:
    options = ("mbpo.generate_every=4", "mbpo.first_updates=10", "trainer.num_env_steps=9", *QUIET)
    events = Loop(*options).run()
    first = [*["update"] * 4, *GENERATE]
    assert events == [
        *["act", "update"] * 3,
        *("fit 8", *GENERATE, *first, *first, *["update"] * 2, *GENERATE),
        *("act", "update", "evaluate"),
    ]


def test_first_updates_that_were_stopped_are_continued_without_another_fit() -> None:
    options = ("mbpo.generate_every=4", "mbpo.first_updates=10", "trainer.num_env_steps=9", *QUIET)
    whole = Loop(*options).run()
    stops = iter([False] * 10 + [True])
    loop = Loop(*options, should_stop=lambda: next(stops, False))
    assert not loop.trainer.train()
    assert loop.spy.events.count("update") == 3 + 4, "stopped after the first of three blocks"
    assert loop.trainer.train()
    assert loop.spy.events == whole


def test_agents_learn_in_the_world_once_there_is_generated_experience() -> None:
    loop = Loop("mbpo.generate_every=4", "trainer.num_env_steps=9", *QUIET)
    starts: list[Tensor] = []

    def update_in_world(batch: Sequence[Tensor]) -> Sequence[Metrics]:
        starts.extend(batch)
        return [{} for _ in batch]

    assert loop.model_based is not None
    loop.model_based.world = cast(Any, SimpleNamespace(refresh=lambda: loop.spy.events.append("refresh")))
    loop.spy.update_in_world = update_in_world  # type: ignore[attr-defined]
    events = loop.run()
    assert events == [*["act", "update"] * 3, "fit 8", "refresh", *GENERATE, "act", "evaluate"]
    assert [start.shape for start in starts] == [(16, 2)]


def test_the_first_fit_waits_for_an_episode_that_starts_after_the_warm_start() -> None:
    events = Loop(
        "mbpo.generate_every=episode", "trainer.num_env_steps=11", "agent.num_warm_start_steps=7", *QUIET
    ).run()
    step = ["act", "update"]
    assert events == [*step * 3, "fit 10", *GENERATE, *step, "evaluate"]


@pytest.mark.parametrize("off", ["mbpo=off", "mbpo.real_ratio=1"])
def test_without_generated_experience_no_model_is_built_trained_or_sampled(
    off: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr(build, "build_model", refuse)
    config = make_config(*TINY, off)
    agent_and_space = (Spy(), Environment(CountingEnv()).spaces)
    assert build.build_model_based(config, *agent_and_space, torch.device("cpu")) is None
    loop = Loop(off, "trainer.num_env_steps=8", *QUIET)
    assert loop.run() == ["act", "update"] * 3 + ["evaluate"]
    assert set(loop.recorder.series("mix/num_real").values()) == {16}
    assert set(loop.recorder.series("mix/num_generated").values()) == {0}
    assert set(loop.recorder.series("buffer/model_size").values()) == {0}


def test_a_model_is_built_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(*TINY)
    space = Environment(CountingEnv()).spaces
    assert build.build_model_based(config, Spy(), space, torch.device("cpu")) is not None


def test_implausible_predictions_are_counted_and_not_stored() -> None:
    class Explodes(Standstill):
        def step(self, obs: Tensor, action: Tensor, generator: torch.Generator) -> Transitions:
            transitions = super().step(obs, action, generator)
            transitions.reward[:3] = math.inf
            return transitions

    loop = Loop("mbpo.generate_every=5", "trainer.num_env_steps=10", *QUIET)
    assert loop.model_based is not None
    loop.model_based.model = Explodes(loop.spy)  # type: ignore[assignment]
    loop.model_based.model.knows_reward = False  # type: ignore[misc]
    loop.run()
    assert set(loop.recorder.series("rollout/num_implausible").values()) == {3}
    assert set(loop.recorder.series("rollout/num_generated").values()) == {7}
    assert bool(loop.model_based.buffer.contents().reward.isfinite().all())


def test_batches_hold_ceil_of_m_times_r_real_transitions() -> None:
    loop = Loop("mbpo.generate_every=5", "mbpo.real_ratio=0.3", *QUIET)
    loop.run()
    # ceil(16 * 0.3) = 5; generated rewards are -1, real ones positive.
    assert [int((batch.reward > 0).sum()) for batch in loop.spy.batches] == [5] * 15
    assert [len(batch) for batch in loop.spy.batches] == [16] * 15
    assert set(loop.recorder.series("mix/num_real").values()) == {5}
    assert set(loop.recorder.series("mix/num_generated").values()) == {11}
    assert set(loop.recorder.series("mix/real_share").values()) == {5 / 16}


def test_batches_are_all_real_before_the_first_generation() -> None:
    loop = Loop("mbpo.generate_every=10", "mbpo.real_ratio=0.3", *QUIET)
    loop.run()
    real = [int((batch.reward > 0).sum()) for batch in loop.spy.batches]
    assert real == [16] * 5 + [5] * 10


def test_several_gradient_steps_use_fresh_batches() -> None:
    loop = Loop("agent.num_gradient_steps_per_update=3", "trainer.num_env_steps=6", *QUIET)
    assert loop.run()[-5:] == ["act", "update", "update", "update", "evaluate"]
    assert loop.trainer.gradient_steps == 3
    first, second, _ = loop.spy.batches
    assert not torch.equal(first.obs, second.obs)


def test_learning_iterations_are_so_many_steps_apart() -> None:
    options = ("agent.learning_frequency=4", "agent.num_gradient_steps_per_update=2", "mbpo=off", *QUIET)
    loop = Loop("trainer.num_env_steps=13", *options)
    # After the warm start of 5 steps, at steps 8 and 12.
    assert loop.run() == [*["act"] * 3, *["update"] * 2, *["act"] * 4, *["update"] * 2, "act", "evaluate"]


def test_several_environments_learn_as_often_per_step() -> None:
    loop = Loop(
        "agent.learning_frequency=4", "env.num_envs=3", "trainer.num_env_steps=18", "mbpo=off", *QUIET
    )
    # Six steps of three environments; multiples of 4 are passed at 9 (8), 12, 18 (16), not at 6, which has 4.
    assert loop.run() == ["update", *["act", "update"] * 2, "act", "act", "update", "evaluate"]


def test_agents_can_learn_at_the_end_of_each_episode() -> None:
    options = (
        "agent.learning_frequency=episode",
        "agent.num_gradient_steps_per_update=2",
        "mbpo=off",
        *QUIET,
    )
    loop = Loop("env.num_envs=2", "trainer.num_env_steps=24", *options)
    # Episodes of 5 and 6 steps end at 10 and 20, and at 12 and 24; the warm start is over.
    learn = ["update"] * 2
    assert loop.run() == [
        *["act"] * 2,
        *(*learn, "act", *learn),
        *(*["act"] * 4, *learn),
        *(*["act"] * 2, *learn, "evaluate"),
    ]


def test_a_stop_between_a_step_and_its_learning_iterations_is_made_up_for() -> None:
    loop = Loop("agent.learning_frequency=episode", "trainer.num_env_steps=10", "mbpo=off", *QUIET)
    stopped = Loop("agent.learning_frequency=episode", "trainer.num_env_steps=10", "mbpo=off", *QUIET)

    def stop(num_updates: int) -> None:
        raise Stopped

    stopped.trainer._update_agent = stop  # type: ignore[method-assign]
    assert not stopped.trainer.train()
    loop.trainer.real_buffer.add(stopped.trainer.real_buffer.contents())
    loop.trainer.load_state_dict(stopped.trainer.state_dict())
    assert loop.run() == ["update", "evaluate"]


@pytest.mark.parametrize("terminates", [False, True])
def test_targets_of_several_steps_follow_each_environments_episodes(
    terminates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Episodes of 5 and 6 steps with the rewards 1, 2, 3 ...; those of 6 steps end by a time limit.
    options = ("agent.num_steps_to_look_ahead=3", "agent.discount_factor=0.5", "env.num_envs=2", "mbpo=off")
    env = CountingEnv(episode_steps=5, terminates=terminates)
    loop = Loop("trainer.num_env_steps=40", *options, *QUIET, env=env)
    loop.run()
    buffer = loop.trainer.real_buffer
    monkeypatch.setattr(buffer, "_draw", lambda count, generator, part: torch.arange(count))
    found = buffer.unpack(buffer.sample_rows(40, torch.Generator()))
    for row, length in ((row, 5 + row % 2) for row in range(40)):
        step = row // 2 % length  # within the episode
        num_steps = min(3, length - step, 20 - row // 2)
        rewards = [step + 1.0, step + 2.0, step + 3.0][:num_steps]
        assert found.reward[row] == sum(0.5**k * reward for k, reward in enumerate(rewards))
        assert found.next_obs[row].tolist() == [row // 2 // length, step + num_steps]
        is_over = terminates and length == 5 and step + num_steps == 5
        assert found.terminated[row] == (1 if is_over else 1 - 0.5 ** (num_steps - 1))


def test_the_agent_is_informed_of_the_start_of_an_episode() -> None:
    loop = Loop("trainer.num_env_steps=17", "mbpo=off", *QUIET)
    loop.run()
    assert [first for firsts in loop.spy.firsts for first in firsts] == ([True] + [False] * 4) * 2 + [
        True,
        False,
    ]


def test_evaluations_take_place_at_intervals_and_at_the_end() -> None:
    loop = Loop("trainer.num_env_steps=25", "trainer.evaluate_every_steps=10", "mbpo=off")
    loop.run()
    assert loop.recorder.series("eval/return_mean") == {10: 2.0, 20: 2.0, 25: 2.0}
    assert loop.recorder.series("eval/return_std") == {10: 1.0, 20: 1.0, 25: 1.0}


def test_the_warm_start_is_random_with_its_own_stream() -> None:
    actions = []
    for _ in range(2):
        loop = Loop("trainer.num_env_steps=5", "agent.num_warm_start_steps=5")
        assert "act" not in loop.run()
        actions.append([float(action[0]) for action in loop.counting.actions])
    assert actions[0] == actions[1]
    assert len(set(actions[0])) == 5
    assert all(-3 <= action <= 1 for action in actions[0])


def test_random_actions_are_held_for_the_configured_steps_within_an_episode() -> None:
    loop = Loop("trainer.num_env_steps=8", "agent.num_warm_start_steps=8", "agent.warm_start_hold_steps=3")
    loop.run()
    a = [float(action[0]) for action in loop.counting.actions]  # episodes of five steps
    assert a == [a[0]] * 3 + [a[3]] * 2 + [a[5]] * 3
    assert len(set(a)) == 3


@pytest.mark.parametrize(("terminates", "stored"), [(True, [0, 0, 0, 0, 1]), (False, [0] * 5)])
def test_a_time_limit_is_not_stored_as_termination(terminates: bool, stored: list[int]) -> None:
    loop = Loop("trainer.num_env_steps=10", "mbpo=off", env=CountingEnv(5, terminates))
    loop.run()
    assert loop.trainer.real_buffer.contents().terminated.tolist() == stored * 2


def test_stored_transitions_are_correct_across_episodes() -> None:
    loop = Loop("trainer.num_env_steps=12", "mbpo=off")
    loop.run()
    stored = loop.trainer.real_buffer.contents()
    assert stored.obs.tolist() == [[e, s] for e in range(3) for s in range(5)][:12]
    assert stored.next_obs.tolist() == [[e, s + 1] for e in range(3) for s in range(5)][:12]
    assert stored.reward.tolist() == [float(s % 5 + 1) for s in range(12)]
    assert loop.recorder.series("train/episode_return") == {5: 15.0, 10: 15.0}
    assert loop.trainer.collector.episodes == 2


def test_every_episode_has_its_own_seed() -> None:
    first, again, other = (Loop("trainer.num_env_steps=12", "mbpo=off", f"seed={seed}") for seed in (0, 0, 1))
    for loop in (first, again, other):
        loop.run()
    assert first.counting.seeds == again.counting.seeds
    assert len(set(first.counting.seeds)) == 3
    assert not set(first.counting.seeds) & set(other.counting.seeds)


def test_parallel_environments_share_a_buffer_and_have_separate_episodes() -> None:
    loop = Loop("env.num_envs=2", "trainer.num_env_steps=23", "mbpo=off", *QUIET)
    events = loop.run()
    stored = loop.trainer.real_buffer.contents()
    assert len(stored) == loop.trainer.env_steps == 23, "not a step too many"
    assert stored.obs[0::2].tolist() == [[e, s] for e in range(3) for s in range(5)][:12], "episodes of 5"
    assert stored.obs[1::2].tolist() == [[e, s] for e in range(2) for s in range(6)][:11], "episodes of 6"
    assert (stored.next_obs[:, 1] == stored.obs[:, 1] + 1).all(), "no transition leads into the next episode"
    # The warm start of 5 steps ends within the third pair; only one environment takes the last step.
    assert events == ["update"] * 2 + ["act", "update", "update"] * 8 + ["act", "update", "evaluate"]
    assert loop.spy.firsts[0] == [False, False]
    assert loop.spy.firsts[2:4] == [[True, False], [False, True]]
    assert len(set(loop.counting.seeds)) == len(loop.counting.seeds)


def test_intervals_need_not_be_multiples_of_the_number_of_environments() -> None:
    loop = Loop("env.num_envs=3", "trainer.num_env_steps=25", "trainer.evaluate_every_steps=10", "mbpo=off")
    loop.run()
    assert list(loop.recorder.series("eval/return_mean")) == [12, 21, 25]


def test_returns_of_episodes_that_end_together_are_averaged() -> None:
    loop = Loop("env.num_envs=2", "trainer.num_env_steps=60", "mbpo=off")
    loop.run()
    returns = loop.recorder.series("train/episode_return")
    assert returns[10] == 15.0
    assert returns[12] == 21.0
    assert returns[60] == 18.0, "six episodes of 5 and five of 6 end at step 60"


def test_only_the_latest_generations_are_retained() -> None:
    loop = Loop("mbpo.generate_every=5", "mbpo.retained_generations=2", "trainer.num_env_steps=31", *QUIET)
    loop.run()
    assert loop.spy.events.count("decay") == 6
    assert loop.model_based is not None
    assert loop.model_based.buffer.total_added == 60
    assert len(loop.model_based.buffer) == 20


def test_rollouts_never_start_in_a_terminal_state(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[Tensor] = []
    original = rollouts.generate

    def recorded(*arguments: Any) -> dict[str, float]:
        starts.append(arguments[2])
        return original(*arguments)

    monkeypatch.setattr(rollouts, "generate", recorded)
    env = CountingEnv(episode_steps=5, terminates=True)
    Loop("mbpo.generate_every=5", "trainer.num_env_steps=61", *QUIET, env=env).run()
    steps = torch.cat(starts)[:, 1]  # the observation contains the step of the episode
    assert set(steps.tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}


def test_rollouts_use_the_scheduled_horizon(monkeypatch: pytest.MonkeyPatch) -> None:
    horizons = []
    original = rollouts.generate

    def recorded(*arguments: Any) -> dict[str, float]:
        horizons.append(arguments[3])
        return original(*arguments)

    monkeypatch.setattr(rollouts, "generate", recorded)
    prefix = "mbpo.model_rollout_options"
    loop = Loop(
        "mbpo.generate_every=5",
        "trainer.num_env_steps=31",
        f"{prefix}.horizon_update_schedule=piecewise",
        f"{prefix}.horizon_update_frequency=2",
        f"{prefix}.horizon_update_start_epoch=1",
        f"{prefix}.horizon_max=3",
    )
    loop.run()
    assert horizons == [1, 1, 2, 2, 3, 3]
    assert list(loop.recorder.series("rollout/horizon").values()) == horizons
    assert loop.recorder.series("rollout/num_generated")[26] == 30


def test_training_stops_at_the_next_step_when_asked() -> None:
    asked = iter([False] * 7 + [True])
    loop = Loop("mbpo=off", should_stop=lambda: next(asked))
    assert loop.trainer.train() is False
    assert loop.trainer.env_steps == 7


def test_the_model_buffer_is_circular_and_keeps_earlier_generations() -> None:
    loop = Loop("mbpo.generate_every=5", "mbpo.model_experience_buffer_length=25")
    loop.run()
    assert loop.recorder.series("buffer/model_size") == {5: 0, 10: 10, 15: 20, 20: 25}


def test_the_state_can_be_saved_before_every_step() -> None:
    loop = Loop("trainer.num_env_steps=8", *QUIET)
    before = []
    loop.trainer.before_step = lambda trainer: before.append((trainer.env_steps, len(loop.counting.actions)))
    loop.run()
    assert before == [(step, step) for step in range(8)]


def test_a_stop_within_an_evaluation_is_made_up_for() -> None:
    overrides = ("trainer.num_env_steps=12", "trainer.evaluate_every_steps=6")
    undisturbed, loop = Loop(*overrides), Loop(*overrides)
    stops = iter((True, False, False))

    def evaluate(policy: Policy) -> Evaluation:
        if next(stops):
            raise Stopped
        return loop.evaluate(policy)

    loop.trainer.evaluate = evaluate
    assert not loop.trainer.train()
    assert loop.run() == undisturbed.run()
    for tag in ("eval/return_mean", "train/gradient_steps"):
        assert loop.recorder.series(tag) == undisturbed.recorder.series(tag) != {}
