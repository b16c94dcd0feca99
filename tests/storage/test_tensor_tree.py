"""Trees of tensors and plain values as bytes, and back."""

import math
from typing import Any

import pytest
import torch

from mbpo_cli.failures import Diverged
from mbpo_cli.storage.tensor_tree import decode, encode, parse


def test_a_tree_comes_back_as_plain_values_and_equal_tensors() -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    tree = {
        "a": [1, -2.5, None, True, "text", {"b": matrix.T}],
        "c": (matrix[0], {}),
        "seven": {7: matrix > 2},
        "d": torch.tensor(9, dtype=torch.int64),
    }
    back = decode(*encode(tree))
    assert back["a"][:5] == [1, -2.5, None, True, "text"]
    assert back["c"][1] == {}
    for got, expected in (
        (back["a"][5]["b"], matrix.T),
        (back["c"][0], matrix[0]),
        (back["seven"]["7"], matrix > 2),
        (back["d"], torch.tensor(9)),
    ):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, torch.tensor([0.0, -math.inf]), torch.tensor(math.nan)]
)
@pytest.mark.parametrize("place", ["a", "a/1/b"])
def test_what_is_not_finite_is_named_and_not_stored(value: Any, place: str) -> None:
    with pytest.raises(Diverged, match=f"^{place} is "):
        encode({"a": value} if place == "a" else {"a": [0, {"b": value}]})


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "-Infinity", "1e999", '{"a": -1e999}'])
def test_numbers_that_are_not_finite_are_not_read(text: str) -> None:
    with pytest.raises(ValueError, match="is not a finite number"):
        parse(text.encode())
    assert parse(b"[1.5, -1e300, 2]") == [1.5, -1e300, 2]
