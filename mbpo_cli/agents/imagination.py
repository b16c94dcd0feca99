"""Agents that learn through a differentiable model: values expanded by it, and gradients through it.

From start states, the policy is unrolled T steps in the model. Critics learn the rewards of these steps and
the value of the last state; the actor follows the gradient of the same sum, through model, rewards and
critics.

    o_0 --policy--> a_0 --world--> r_0, o_1 --policy--> a_1 --world--> ... o_T --policy--> a_T --> Q(o_T, a_T)

Sources: Heess et al. 2015, "Learning Continuous Control Policies by Stochastic Value Gradients"; Feinberg et
al. 2018, "Model-Based Value Expansion"; Kubo et al. 2025, "Double Horizon Model-Based Policy Optimization".
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mbpo_cli.agents.bookkeeping import Bookkeeping, Draws
from mbpo_cli.agents.networks import Critics, DiscreteCritics, smallest
from mbpo_cli.nn.compilation import one_by_one
from mbpo_cli.nn.optimizers import Optimizer
from mbpo_cli.types import Accelerate, GradientSteps, Metrics, World

Choose = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From observations (B, O) and noise (B, A) to actions (B, A) and their bonuses, such as entropies, (B,)."""


class Path(NamedTuple):
    """What T steps in a model bring.

    A row ends before a step that cannot be trusted: it stays where it is, and keeps its last action.

    Attributes:
        actions: The actions of all steps and of the last observation, T + 1 tensors of shape (B, A).
        bonus: The bonuses of the first actions, shape (B,).
        gained: Discounted rewards of all steps and bonuses of all later actions, the last one's included,
            shape (B,).
        rewards: The rewards of the steps, shape (T, B); after an end, that of the first step; for a row that
            takes none, the mean of the others.
        weight: What the value of the last action counts: the discount, or 0 after an end; shape (B,).
        last_obs: The observations after the last step, shape (B, O).
        length: The number of steps taken, shape (B,); None if all can be trusted, always.
    """

    actions: Sequence[Tensor]
    bonus: Tensor
    gained: Tensor
    rewards: Tensor
    weight: Tensor
    last_obs: Tensor
    length: Tensor | None = None


def unroll(
    world: World, choose: Choose, obs: Tensor, noise_TBA: Tensor, draws: Any, discount_factor: float
) -> Path:
    """Follow a policy from observations (B, O), differentiable in all that the policy depends on.

    The reward of a step that ends an episode counts, what comes after it does not. A step that cannot be
    trusted is not taken, nor is any after it: the value of the last action stands for them, as after the last
    step. `noise_TBA` has the noise of the actions of all steps and of the last observation; `draws` are the
    world's.
    """
    action, first_bonus = choose(obs, noise_TBA[0])
    actions = [action]
    weight = torch.ones_like(first_bonus)
    gained = torch.zeros_like(first_bonus)
    rewards: list[Tensor] = []
    trusted, length, doubts = weight > 0, None, None
    for step in range(world.num_steps):
        last, before = actions[-1], (gained, weight)
        certain, doubts = world.certain(obs, last, doubts, draws, step)
        trusted = trusted if certain is None else trusted & certain
        next_obs, reward, terminated = world.step(obs, last, draws, step)
        goes_on = trusted & (weight > 0)
        # After an end, rows stay where they are: elsewhere they might become infinite.
        obs = torch.where(goes_on[:, None], next_obs, obs)
        gained = gained + weight * reward
        # Steps that are not taken repeat a usual reward, so that they widen no bounds.
        usual = rewards[0] if rewards else torch.where(goes_on, reward, 0).sum() / goes_on.sum().clamp(min=1)
        rewards.append(torch.where(goes_on, reward, usual).detach())
        weight = discount_factor * weight * (1 - terminated)
        action, bonus = choose(obs, noise_TBA[step + 1])
        gained = gained + weight * bonus
        if certain is not None:
            gained, weight = (
                torch.where(trusted, new, old) for new, old in zip((gained, weight), before, strict=True)
            )
            action = torch.where(trusted[:, None], action, last)
            length = goes_on.float() if length is None else length + goes_on
        actions.append(action)
    return Path(actions, first_bonus, gained, torch.stack(rewards), weight, obs, length)


class Imagining(Bookkeeping):
    """Base of actor-critic agents whose gradient steps can also go through a model."""

    world: World
    critic_share: float
    actor: Any  # the trained policy, a subclass of `Actor`
    critics: Critics | DiscreteCritics
    target_critics: Critics | DiscreteCritics
    actor_optimizer: Optimizer
    generator: torch.Generator

    @abstractmethod
    def choose(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the policy's actions and their bonuses, as in `Choose`."""

    @abstractmethod
    def _move_targets(self) -> None:
        """Move the target networks towards the networks."""

    @torch.no_grad()
    def value(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return the Q-values of actions, shape (B,), averaged over the critics."""
        values: Tensor = self.critics(obs, action).mean(0)
        return values

    def enter(self, world: World, critic_share: float = 0.0) -> None:
        """Prepare for `update_in_world`.

        `critic_share` is the share of the critics' values of the first actions in what the actor climbs.
        """
        self.world, self.critic_share = world, critic_share
        self._steps_in_world: GradientSteps = one_by_one(self._step_in_world)

    def compile(self, accelerate: Accelerate) -> None:
        """Replace the gradient steps by accelerated ones: those in the world, if there is one."""
        if hasattr(self, "world"):  # then there are others only while the model is held back
            self._steps_in_world = accelerate(self._step_in_world)
        else:
            super().compile(accelerate)

    def update_in_world(self, starts: Sequence[Tensor]) -> Sequence[Metrics]:
        """Take one gradient step per batch of start observations (B, O), and return the metrics of each."""
        arguments = []
        for obs in starts:
            self.num_updates += 1
            draws = self.draw(len(obs))
            noise, world_draws = self._draw_path(len(obs), self.generator)
            arguments.append(
                {
                    "obs": obs,
                    "draws": draws,
                    "noise": noise,
                    "world_draws": world_draws,
                    "with_targets": self.is_due(self.options.target_update_frequency),
                }
            )
        return self._steps_in_world(arguments)

    def _draw_path(self, num_rows: int, generator: torch.Generator) -> tuple[Tensor, Any]:
        """Draw the noise of all actions of a path, and what is random in the world."""
        shape = (self.world.num_steps + 1, num_rows, self.actor.action_size)
        noise = torch.randn(shape, generator=generator, device=generator.device)
        return noise, self.world.draw(num_rows, generator)

    def _step_in_world(
        self, obs: Tensor, draws: Draws, noise: Tensor, world_draws: Any, with_targets: bool
    ) -> dict[str, Tensor]:
        path = unroll(self.world, self.choose, obs, noise, world_draws, self.options.discount_factor)
        metrics = self._learn_values(obs, path, draws) | self._climb(obs, path)
        if with_targets:
            self._move_targets()
        return metrics

    def _learn_values(self, obs: Tensor, path: Path, draws: Draws) -> dict[str, Tensor]:
        """Move the critics' values of the first actions towards what the path brings."""
        with torch.no_grad():
            values = self.target_critics(path.last_obs, path.actions[-1], draws.target_dropout)
            value = self.bounded(path.rewards, smallest(draws.subset)(values))
            target = path.gained + path.weight * value
        ended = path.weight == 0
        metrics = {"agent/ended_share": ended.float().mean()}
        values = self.critics(obs, path.actions[0].detach(), draws.dropout)
        if path.length is not None:
            is_cut = (path.length < len(path.rewards)) & ~ended
            metrics["agent/uncertain_share"] = is_cut.float().mean()
            metrics["agent/path_length"] = path.length.mean()
            # Rows without a step teach nothing, as their target would be their own value.
            values = torch.where(path.length > 0, values, target)
        return self.fit_critics(values, target) | metrics

    def _climb(self, obs: Tensor, path: Path) -> dict[str, Tensor]:
        """Move the actor along the gradient of what the path brings, by the critics' present values."""
        value = path.bonus + path.gained + path.weight * self._promised(path.last_obs, path.actions[-1])
        if self.critic_share > 0:
            first = path.bonus + self._promised(obs, path.actions[0])
            value = torch.lerp(value, first, self.critic_share)
        loss = self.restraint(obs, value) - value.mean()
        self.actor_optimizer.minimize(loss)
        self.average(self.policy, self.actor)
        return {"agent/actor_loss": loss.detach()} | self._after_actor(path)

    def _promised(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.critics.for_actor(self.critics(obs, action))

    def examine_in_world(self, obs: Tensor, to_go: Tensor, generator: torch.Generator) -> dict[str, float]:
        """Return how far the expanded values of real observations (B, O) are from what followed them.

        `to_go` are the discounted returns from there, shape (B,). For each step, the norm of the gradient of
        the mean value by its actions is returned, too; it explodes or vanishes in a bad model.
        """
        noise, draws = self._draw_path(len(obs), generator)
        path = unroll(self.world, self.choose, obs, noise, draws, self.options.discount_factor)
        value = path.gained + path.weight * self._promised(path.last_obs, path.actions[-1])
        gradients = torch.autograd.grad(value.mean(), path.actions)
        return {
            "diagnose/expanded_value_bias": (value.detach() - to_go).mean().item(),
            **{
                f"diagnose/action_gradient_{step}": gradient.norm().item()
                for step, gradient in enumerate(gradients)
            },
        }

    def _after_actor(self, path: Path) -> dict[str, Tensor]:
        """Train what belongs to the actor, and return metrics."""
        return {}

    def restraint(self, obs: Tensor, value: Tensor) -> Tensor | float:
        """Return a further loss of an actor whose actions have the given values."""
        return 0.0
