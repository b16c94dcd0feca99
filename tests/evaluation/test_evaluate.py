from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor

from mbpo_cli.envs.environment import Environment
from mbpo_cli.evaluation.evaluate import Evaluator
from mbpo_cli.failures import Stopped
from mbpo_cli.trained.episodes import play_real
from tests.conftest import CountingEnv


class RecordingPolicy:
    """A policy that records the observations it receives."""

    def __init__(self) -> None:
        self.seen: list[list[list[float]]] = []

    def __call__(self, obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
        assert explore is None, "evaluation is greedy"
        self.seen.append(obs.tolist())
        return torch.zeros(len(obs), 1)


def test_an_evaluation_has_the_returns_and_lengths_of_its_episodes() -> None:
    lengths = iter((3, 5))
    policy = RecordingPolicy()
    evaluation = Evaluator(lambda: Environment(CountingEnv(next(lengths))), 2, seed=0)(policy)
    assert evaluation.returns == (6.0, 15.0)
    assert evaluation.lengths == (3, 5)
    assert (evaluation.return_mean, evaluation.return_std) == (10.5, 4.5)
    assert [len(batch) for batch in policy.seen] == [2, 2, 2, 1, 1], "finished episodes are not stepped again"


def test_evaluations_repeat_with_the_same_seed_and_differ_with_another() -> None:
    def returns(seed: int, times: int) -> list[Any]:
        evaluator = Evaluator(lambda: Environment(gym.make("Pendulum-v1")), 3, seed)
        return [evaluator(RecordingPolicy()).returns for _ in range(times)]

    first, second = returns(0, 2)
    assert first == second
    assert len(set(first)) == 3
    assert returns(1, 1) != [first]


@pytest.mark.parametrize("terminates", [True, False])
def test_kept_episodes_hold_all_that_happened_and_end_as_the_environment_did(terminates: bool) -> None:
    """Two episodes of different lengths, played together; CountingEnv observes and rewards the step."""
    lengths = iter((2, 4))
    policy = RecordingPolicy()
    evaluator = Evaluator(
        lambda: Environment(CountingEnv(next(lengths), terminates)), 2, seed=0, keeps_episodes=True
    )
    evaluation = evaluator(policy)
    assert policy.seen == [[[0.0, float(step)]] * (2 if step < 2 else 1) for step in range(4)]
    assert (evaluation.length_mean, evaluation.length_std) == (3.0, 1.0)
    for episode, steps in zip(evaluator.episodes, (2, 4), strict=True):
        assert len(episode) == steps
        assert episode.obs.tolist() == [[0.0, float(step)] for step in range(steps + 1)]
        assert episode.action.tolist() == [[0.0]] * steps
        assert episode.terminated == terminates
        transitions = episode.transitions
        assert transitions.obs.tolist() == episode.obs[:steps].tolist()
        assert transitions.next_obs.tolist() == episode.obs[1:].tolist()
        assert transitions.reward.tolist() == list(range(1, steps + 1))
        assert transitions.terminated.tolist() == [0.0] * (steps - 1) + [float(terminates)]


def test_each_episode_has_an_environment_of_its_own() -> None:
    made: list[CountingEnv] = []

    def make_env() -> Environment:
        made.append(CountingEnv(4))
        return Environment(made[-1])

    evaluator = Evaluator(make_env, 3, seed=0)
    for _ in range(2):
        evaluator(RecordingPolicy())
    assert [len(env.seeds) for env in made] == [1] * 6
    assert [env.seeds for env in made[:3]] == [env.seeds for env in made[3:]]
    made.clear()
    play_real(make_env, range(5), RecordingPolicy(), num_envs=2)
    assert [env.seeds for env in made] == [[seed] for seed in range(5)]


@pytest.mark.parametrize("patience", [0, 1, 2, 3, 8])
def test_a_stop_is_heeded_at_every_step_and_environment(patience: int) -> None:
    closed: list[int] = []

    class Endless(CountingEnv):
        def close(self) -> None:
            closed.append(len(self.actions))

    answers = iter([False] * patience + [True])
    evaluator = Evaluator(lambda: Environment(Endless(10**9)), 2, 0, should_stop=lambda: next(answers))
    with pytest.raises(Stopped):
        evaluator(RecordingPolicy())
    assert sum(closed) == max(patience - 2, 0)
    assert len(closed) == min(patience, 2)
    assert evaluator.episodes == []


def test_an_evaluation_keeps_no_steps_unless_it_is_asked_to() -> None:
    for keeps, lengths in ((False, []), (True, [50, 50])):
        evaluator = Evaluator(lambda: Environment(CountingEnv(50)), 2, 0, keeps_episodes=keeps)
        assert evaluator(RecordingPolicy()).lengths == (50, 50)
        assert [len(episode) for episode in evaluator.episodes] == lengths
