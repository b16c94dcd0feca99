"""Known reward and is-done functions, in the environments' own units, on batches of tensors.

Each is held to the real environment by a test.
"""

from __future__ import annotations

import torch
from torch import Tensor


def never(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Tell that nothing ever terminates, for tasks that end by time limit only; shape (B,)."""
    return torch.zeros_like(obs[:, 0])


def pendulum_reward(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Return Pendulum's reward, shape (B,): the cost of angle and speed before the step, and of torque.

    Source: documentation of Gymnasium's Pendulum-v1; obs = (cos, sin, angular velocity).
    """
    angle = torch.atan2(obs[:, 1], obs[:, 0])
    return -(angle.square() + 0.1 * obs[:, 2].square() + 0.001 * action[:, 0].square())
