"""Options that every base agent has; the rest of the program may rely on them."""

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
    mini_batch_size: int = option(
        "experiences in a mini-batch", low=1, high=1_000_000, matlab="MiniBatchSize"
    )
    experience_buffer_length: int = option(
        "capacity of the real buffer", low=1, high=1_000_000_000, matlab="ExperienceBufferLength"
    )
    num_warm_start_steps: int = option(
        "environment steps with uniformly random actions before anything is trained",
        low=1,
        matlab="NumWarmStartSteps",
    )
    warm_start_hold_steps: int = option(
        "steps for which each of those random actions is held, where a single one changes little", low=1
    )
    discount_factor: float = option("discount of future rewards", low=0, high=1, matlab="DiscountFactor")
    hidden_sizes: list[int] = option("units of each hidden layer of actor and critics", low=1, high=65536)


@dataclass
class TargetNetworkOptions(AgentOptions):
    """Options of agents whose targets are slowly moving copies of their networks."""

    target_smooth_factor: float = option(
        "share by which target networks move to their networks; 1 = copy",
        above=0,
        high=1,
        matlab="TargetSmoothFactor",
    )
    target_update_frequency: int = option(
        "updates between two moves of the target networks", low=1, matlab="TargetUpdateFrequency"
    )
