"""Every environment in `conf/env` trains with every agent that supports its actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mbpo_cli.build import build_env
from mbpo_cli.commands.check import check
from mbpo_cli.config.compose import make_config
from mbpo_cli.types import DiscreteActions
from tests.conftest import CONF, TINY

ENVS = sorted(path.stem for path in (CONF / "env").glob("*.yaml"))
NEEDS_ID = {"gym": "env.id=MountainCar-v0", "dmc": "env.id=dm_control/walker-walk-v0"}


BRIEF = (
    "env.kwargs={max_episode_steps: 20}",
    "trainer.num_env_steps=12",
    "trainer.evaluate_every_steps=100",
    "trainer.num_eval_episodes=1",
    "mbpo.generate_every=4",
    "mbpo.model_rollout_options.horizon=2",
)


@pytest.mark.filterwarnings("ignore:.*GLFW")  # dm_control searches for a display
@pytest.mark.parametrize("trained", ["one agent", pytest.param("all agents", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ENVS)
def test_every_environment_trains(name: str, trained: str, train_in: Callable[..., dict[str, Any]]) -> None:
    chosen = [f"env={name}", *([NEEDS_ID[name]] if name in NEEDS_ID else [])]
    env = build_env(make_config(*chosen))
    agents = ["dqn", "sac"] if isinstance(env.spaces.actions, DiscreteActions) else ["ddpg", "td3", "sac"]
    env.close()
    for number, agent in enumerate(agents):
        options = (*chosen, *TINY, *BRIEF, f"agent={agent}")
        if number > 0 and trained == "one agent":
            check(make_config(*options))
            continue
        run = train_in(*options, name=agent)
        assert run["summary"]["status"] == "done"
        assert run["summary"]["gradient_steps"] == 7
        assert run["metrics"][-1]["buffer/model_size"] > 0
