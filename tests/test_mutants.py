"""The program that measures what the tests notice, on a toy module."""

import sys
from pathlib import Path

import pytest

from scripts import mutants
from scripts.mutations import Module

SOURCE = '''
"""Nothing in texts changes: 1 + 1, True."""
LIMIT: Literal[3] = 2

@dataclass(frozen=True)
class Toy:
    size: int = option("not 1 but 2", low=1)

    def add(self, x: Annotated[int, 4], y=-0.5):
        if x is not None and not x < y:
            print(f"{x + 1}")
        for _ in zip(x, y, strict=True):
            pass
        if x == 7:
            raise ValueError("x" * 2)
        return "a" + x, (x) - (
            y
        )
'''

TOY = """
def double(x):
    return 2 * x

def triple(x):
    return x * 3
"""
TESTS = """
def test_double():
    from toys import toy
    assert toy.double(4) == 8

def test_triple():
    from toys import toy
    toy.triple(1)

def test_broken():
    from toys import toy
    assert toy.double(4) == 9
"""


def changes(seed: int) -> list[tuple[str, str, str]]:
    found = [mutant for _, mutant in Module(SOURCE.encode()).mutants("toy.py", seed)]
    return [(m.function, SOURCE.encode()[m.start : m.end].decode(), m.text) for m in found]


def test_only_code_that_runs_is_changed_in_all_ways() -> None:
    found = {change for seed in range(30) for change in changes(seed)}
    add = "Toy.add"
    assert found == {
        ("", "2", "3"),
        ("", "2", "0"),
        ("", "2", "-2"),
        (add, "-0.5", "0.5"),
        (add, "-0.5", "0"),
        (add, "is not", "is"),
        (add, "and", "or"),
        (add, "not ", ""),
        (add, "<", "<="),
        (add, 'print(f"{x + 1}")', "pass"),
        (add, "==", "!="),
        (add, "7", "8"),
        (add, "7", "0"),
        (add, "7", "-7"),
        (add, "-", "+"),
    }
    assert all(len(changes(seed)) == 10 for seed in range(3)), "one of each place"


def test_a_sample_stays_when_other_lines_move(tmp_path: Path) -> None:
    def drawn(source: str, seed: int = 0) -> list[str]:
        (tmp_path / "toy.py").write_text(source)
        return [mutant.key for mutant in mutants.sample(tmp_path, ["toy.py"], 5, seed)]

    moved = SOURCE.replace('"""Nothing', '"""More.\n\nNothing').replace("LIMIT", "\n\nLIMIT")
    assert len(drawn(SOURCE)) == 5
    assert drawn(moved) == drawn(SOURCE) != drawn(SOURCE, seed=1)


def test_a_fault_is_noticed_by_the_tests_that_execute_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mutants, "STORE", tmp_path / ".mutants")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "scripts").symlink_to(mutants.ROOT / "scripts")
    for folder in ("tests", "toys"):
        (tmp_path / folder).mkdir()
    toy = tmp_path / "toys/toy.py"
    toy.write_text(TOY)
    (tmp_path / "tests/test_toy.py").write_text(TESTS)
    known = mutants.Tests.of(tmp_path, ["toys"])
    name = "tests/test_toy.py::test_"
    assert known.lines["toys/toy.py"] == {
        "double: return 2 * x": {name + "double", name + "broken"},
        "triple: return x * 3": {name + "triple"},
    }
    assert set(known.seconds) == {name + "double", name + "triple"}, "a test that fails notices nothing"
    chosen = {mutant.function: mutant for mutant in mutants.sample(tmp_path, ["toys"], 10, seed=0)}
    tried = [chosen["double"], chosen["triple"]]
    server = mutants.Server(tmp_path, libraries=())
    known.seconds[name + "broken"] = 0.0  # as if it failed now and then
    results = mutants.try_all(tried, tmp_path, server, known, budget=60, again=False)
    assert [result["noticed_by"] for result in results] == [name + "double", None]
    assert toy.read_text() == TOY
    assert mutants.try_all(tried, tmp_path, server, known, budget=60, again=False) == results
    server.close()
    mutants.report(tried, results, {chosen["triple"].key: "nobody cares"})
    assert capsys.readouterr().out.endswith("equivalent: nobody cares\n\n1 of 2 noticed, 1 equivalent\n")
