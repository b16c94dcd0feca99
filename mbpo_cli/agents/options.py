"""Options of all base agents, on which the rest of the program relies."""

from __future__ import annotations

from dataclasses import dataclass

from mbpo_cli.options import Component, option


@dataclass
class AgentOptions(Component):
    """Options that all base agents share."""

    name: str = option("short name, for tables and run names")
    num_gradient_steps_per_update: int = option(
        "gradient steps per environment step, each on a fresh mini-batch",
        low=1,
        high=1000,
        matlab="NumGradientStepsPerUpdate",
    )
    mini_batch_size: int = option("transitions per mini-batch", low=1, high=1_000_000, matlab="MiniBatchSize")
    experience_buffer_length: int = option(
        "capacity of the real replay buffer", low=1, high=1_000_000_000, matlab="ExperienceBufferLength"
    )
    num_warm_start_steps: int = option(
        "environment steps with uniformly random actions before anything is trained",
        low=1,
        matlab="NumWarmStartSteps",
    )
    warm_start_hold_steps: int = option(
        "steps for which each random action is held; more than 1 where a single step changes little", low=1
    )
    discount_factor: float = option("discount of future rewards", low=0, high=1, matlab="DiscountFactor")
    hidden_sizes: list[int] = option("units of each hidden layer, actor and critics", low=1, high=65536)


@dataclass
class TargetNetworkOptions(AgentOptions):
    """Options of agents with target networks."""

    target_smooth_factor: float = option(
        "fraction by which target networks move towards their networks; 1 = copy",
        above=0,
        high=1,
        matlab="TargetSmoothFactor",
    )
    target_update_frequency: int = option(
        "updates per update of the target networks", low=1, matlab="TargetUpdateFrequency"
    )
