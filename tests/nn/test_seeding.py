import ast
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import mbpo_cli
from mbpo_cli.nn.seeding import episode_seed, episode_seeds, generator

PACKAGE = Path(mbpo_cli.__file__).parent


def draw(*names: str | int, seed: int = 0) -> float:
    return torch.rand((), generator=generator(seed, *names)).item()


def test_streams_are_reproducible_and_different_by_name_and_seed() -> None:
    assert draw("agent") == draw("agent")
    numbers = [draw("agent"), draw("model"), draw("agent", seed=1), draw("model", "reward"), draw("agent", 1)]
    assert len(set(numbers)) == len(numbers)


def test_episode_seeds_differ_by_seed_name_and_episode() -> None:
    seeds = {episode_seed(s, name, e) for s in range(3) for name in ("a", "b") for e in range(50)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_nothing_draws_from_global_random_state() -> None:
    """Every torch call that draws has a generator; numpy and Python's random module draw nothing."""
    drawing = {
        "rand",
        "randn",
        "randint",
        "randperm",
        "normal",
        "bernoulli",
        "multinomial",
        "uniform_",
        "trunc_normal_",
    }
    drawing |= {"rand_like", "randn_like", "normal_", "random_", "dropout"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in drawing
            ):
                given = {keyword.arg for keyword in node.keywords}
                assert "generator" in given, f"{path.name}:{node.lineno}: {ast.unparse(node)}"
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("np.random."):
                assert node.attr in ("SeedSequence", "get_state", "set_state"), f"{path.name}:{node.lineno}"
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("random."):
                assert node.attr in ("getstate", "setstate"), f"{path.name}:{node.lineno}"
            if isinstance(node, ast.ImportFrom):
                assert node.module not in ("random", "numpy.random"), path.name


def test_streams_are_those_of_runs_made_by_earlier_versions() -> None:
    """A resumed run continues these streams, and a published seed gives the same run again."""
    for seed, name in ((0, "agent"), (7, "rollouts"), (2**40, "mix")):
        words = np.random.SeedSequence(seed, spawn_key=(zlib.crc32(name.encode()),)).generate_state(
            2, np.uint32
        )
        number = (int(words[1]) << 32 | int(words[0])) >> 1
        assert generator(seed, name).initial_seed() == number < 2**63
    assert draw("agent") == pytest.approx(0.473374605178833)
    assert episode_seeds(3, "evaluation", 3) == [1248787655, 288909867, 1560497653]
