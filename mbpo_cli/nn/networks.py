"""A multilayer perceptron batched over ensemble members; a single network is an ensemble of one.

This module does not know what the outputs mean.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional

# With fewer columns than this, matrix libraries compute the transposed product several times as fast. Without
# compilation the next operations then access memory across rows, which costs as much as it saves.
NARROW = 16

_product_dtype = ContextVar("_product_dtype", default=torch.float32)


@contextmanager
def hidden_products_in(dtype: torch.dtype) -> Iterator[None]:
    """Let networks built in this context compute products between hidden layers in `dtype`, backward too."""
    token = _product_dtype.set(dtype)
    try:
        yield
    finally:
        _product_dtype.reset(token)


Activation = Callable[..., Tensor]
"""A function of `torch.nn.functional` that can write over its input (`inplace`)."""

Initializer = Callable[[Tensor, int, torch.Generator], Tensor]


def uniform(weight: Tensor, fan_in: int, generator: torch.Generator) -> Tensor:
    """Fill with U(-1/sqrt(fan_in), 1/sqrt(fan_in)), the default of `torch.nn.Linear`."""
    bound = 1 / math.sqrt(fan_in)
    return nn.init.uniform_(weight, -bound, bound, generator=generator)


def truncated_normal(weight: Tensor, fan_in: int, generator: torch.Generator) -> Tensor:
    """Fill with a normal of standard deviation 1/(2 sqrt(fan_in)), truncated at two deviations.

    Source: initialization of the dynamics ensembles of PETS (Chua et al. 2018), which MBPO uses too.
    """
    std = 1 / (2 * math.sqrt(fan_in))
    return nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std, generator=generator)


def orthogonal(weight: Tensor, fan_in: int, generator: torch.Generator) -> Tensor:
    """Fill each member's matrix with orthogonal rows or columns of unit length.

    Source: Saxe et al. 2014, "Exact Solutions to the Nonlinear Dynamics of Learning in Deep Linear Networks".
    """
    with torch.no_grad():
        for matrix in weight:
            nn.init.orthogonal_(matrix, generator=generator)
    return weight


class BatchedMLP(nn.Module):
    """Members of equal shape, evaluated together as batched matrix products.

    Args:
        sizes: Sizes of the layers, input first, output last.
        initialize: `uniform` initializes biases like the weights, the others at zero.
        generator: Random stream of the initial weights; parameters are on its device.
        layer_norm: Normalize the output of each hidden layer over its units, before the activation, with a
            learned gain and offset. Source: Ba et al. 2016, "Layer Normalization".
    """

    def __init__(
        self,
        num_members: int,
        sizes: Sequence[int],
        activation: Activation,
        initialize: Initializer,
        generator: torch.Generator,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.product_dtype = _product_dtype.get()
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in itertools.pairwise(sizes):
            weight = torch.empty(num_members, fan_in, fan_out, device=generator.device)
            bias = torch.zeros(num_members, 1, fan_out, device=generator.device)
            self.weights.append(nn.Parameter(initialize(weight, fan_in, generator)))
            if initialize is uniform:
                uniform(bias, fan_in, generator)
            self.biases.append(nn.Parameter(bias))
        shapes = [(num_members, 1, size) for size in sizes[1:-1]] if layer_norm else []
        self.gains = nn.ParameterList(torch.ones(shape, device=generator.device) for shape in shapes)
        self.offsets = nn.ParameterList(torch.zeros(shape, device=generator.device) for shape in shapes)

    def decay(self, factors: Sequence[float]) -> Tensor:
        """Return half the sum of squared weights, with one factor per layer; biases do not count."""
        pairs = zip(factors, self.weights, strict=True)
        return 0.5 * torch.stack([factor * weight.square().sum() for factor, weight in pairs]).sum()

    def forward(
        self,
        inputs_MBI: Tensor,
        members: Tensor | slice | None = None,
        dropout: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Map (M, B, in) to (M, B, out); member m gets inputs[m].

        `members`, M member numbers or a slice, selects and orders the members. `dropout` are the factors of
        each hidden layer's units, shape (M, B, units), from `dropout_factors`.
        """
        if isinstance(members, Tensor) and inputs_MBI.device.type == "cpu" and not torch.is_grad_enabled():
            # One member at a time: no weights are copied, and a member's rows stay in the cache.
            chosen = zip(inputs_MBI, members.tolist(), strict=True)
            return torch.cat([self(rows_BI[None], slice(member, member + 1)) for rows_BI, member in chosen])
        hidden = inputs_MBI
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if members is not None:
                weight, bias = weight[members], bias[members]
            if self.product_dtype != torch.float32 and 0 < layer < last:
                # First and last layer, biases, activations and stored weights stay in float32.
                product = torch.bmm(hidden.to(self.product_dtype), weight.to(self.product_dtype))
                hidden = product + bias
            elif weight.shape[2] == 1:  # batched products with a single column are slow
                hidden = (hidden * weight.transpose(1, 2)).sum(2, keepdim=True) + bias
            elif weight.shape[2] < NARROW and torch.compiler.is_compiling():
                hidden = torch.baddbmm(bias.mT, weight.mT, hidden.mT).mT
            else:
                hidden = torch.baddbmm(bias, hidden, weight)
            if layer < last:
                if dropout is not None:
                    hidden = hidden * dropout[layer]
                if len(self.gains) > 0:
                    gain, offset = self.gains[layer], self.offsets[layer]
                    if members is not None:
                        gain, offset = gain[members], offset[members]
                    hidden = torch.addcmul(offset, functional.layer_norm(hidden, hidden.shape[-1:]), gain)
                hidden = self.activation(hidden, inplace=not torch.is_grad_enabled())
        return hidden


def dropout_factors(
    rate: float, num_members: int, num_rows: int, sizes: Sequence[int], generator: torch.Generator
) -> list[Tensor]:
    """Draw the factors of each hidden layer's units: 0 with probability `rate`, else 1 / (1 - rate)."""
    shapes = [(num_members, num_rows, size) for size in sizes]
    draws = [torch.rand(shape, generator=generator, device=generator.device) for shape in shapes]
    return [(draw >= rate) / (1 - rate) for draw in draws]
