"""Options of all base agents, on which the rest of the program relies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mbpo_cli.nn.optimizers import OptimizerOptions
from mbpo_cli.options import Component, absolute, option


@dataclass
class CriticOptions:
    """The critics, and what keeps their values from running away."""

    number: int = option("critics, trained side by side", low=1, high=100)
    num_in_target: int = option(
        "critics, drawn at random for each update, whose smallest value is the target; if fewer than all, "
        "the actor follows the mean of all",
        low=1,
    )
    layer_norm: bool = option("normalize the hidden layers, which limits how critics extrapolate")
    dropout: float = option("fraction of hidden units left out at random in training", low=0, high=0.9)
    bound_targets: bool = option("limit targets to returns that are possible with the rewards seen so far")
    bound_quantile: float = option(
        "0 = possible are all rewards between the smallest and the largest; otherwise those between moving "
        "averages of this quantile and of 1 minus it",
        low=0,
        high=0.4,
    )
    scale_outputs: bool = option(
        "outputs in units of half the range of the possible returns, from its middle"
    )

    @property
    def are_random(self) -> bool:
        """True if training the critics needs random numbers."""
        return self.dropout > 0 or self.num_in_target < self.number

    def __post_init__(self) -> None:
        if self.num_in_target > self.number:
            raise ValueError(f"num_in_target={self.num_in_target}: must be at most number={self.number}")


@dataclass
class AgentOptions(Component):
    """Options that all base agents share."""

    name: str = option("short name, for tables and run names")
    learning_frequency: int | Literal["episode"] = option(
        "environment steps between two learning iterations; 'episode' = one at the end of each episode, "
        "MATLAB's -1",
        low=1,
        matlab="LearningFrequency",
    )
    num_gradient_steps_per_update: int = option(
        "gradient steps per learning iteration, each on a fresh mini-batch; MATLAB's NumEpoch times its "
        "MaxMiniBatchPerEpoch",
        low=1,
        high=1000,
        matlab=("NumGradientStepsPerUpdate", "NumEpoch", "MaxMiniBatchPerEpoch"),
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
    num_steps_to_look_ahead: int = option(
        "n, real steps whose rewards a target counts before the value of what follows: fewer at the end of "
        "an episode, and always one in generated experience",
        low=1,
        high=1000,
        matlab="NumStepsToLookAhead",
    )
    discount_factor: float = option("discount of future rewards", low=0, high=1, matlab="DiscountFactor")
    hidden_sizes: list[int] = option("units of each hidden layer, actor and critics", low=1, high=65536)
    from_run: str | None = option(
        "directory of a run, or of one of its checkpoints, whose agent this one begins with; it acts in the "
        "warm start, too; null = random weights"
    )
    reset_experience_buffer_before_training: bool = option(
        "false = begin with the real experience of from_run",
        matlab="ResetExperienceBufferBeforeTraining",
    )

    def __post_init__(self) -> None:
        self.from_run = absolute(self.from_run)
        if self.from_run is None and not self.reset_experience_buffer_before_training:
            key = "reset_experience_buffer_before_training"
            raise ValueError(f"{key}=false: only with from_run is there experience to keep")


@dataclass
class TargetNetworkOptions(AgentOptions):
    """Options of agents with target networks."""

    critics: CriticOptions = option("the critics, and what keeps their values from running away")
    normalize_observations: bool = option(
        "scale the inputs of actor and critics by mean and deviation of all real observations so far"
    )
    activation: Literal["relu", "silu"] = option("activation of the hidden layers, actor and critics")
    initial_weights: Literal["uniform", "orthogonal"] = option(
        "how initial weights are drawn, actor and critics: uniform = also biases, as torch does; orthogonal "
        "= biases are 0"
    )
    target_smooth_factor: float = option(
        "fraction by which target networks move towards their networks; 1 = copy",
        above=0,
        high=1,
        matlab=("TargetSmoothFactor", "TargetUpdateMethod"),
    )
    target_update_frequency: int = option(
        "updates per update of the target networks",
        low=1,
        matlab=("TargetUpdateFrequency", "TargetUpdateMethod"),
    )
    policy_smooth_factor: float = option(
        "fraction by which the greedy policy, which is evaluated and saved, moves towards the trained one at "
        "each update of that; 1 = it is the trained one",
        above=0,
        high=1,
    )


@dataclass
class DeterministicActorOptions(TargetNetworkOptions):
    """Options of agents with a deterministic actor."""

    actor_optimizer: OptimizerOptions = option("actor training", matlab="ActorOptimizerOptions")
    critic_optimizer: OptimizerOptions = option("critic training", matlab="CriticOptimizerOptions")
    actor_output_limit: float | None = option(
        "size of the actor's outputs, before tanh squashes them, above which they are pulled back, so that "
        "actions do not get stuck at their limits; null = none",
        above=0,
    )
