"""The rooms import each other in one direction, and every package is in the wheel."""

import ast
import tomllib
from pathlib import Path

import pytest

import mbpo_cli

PACKAGE = Path(mbpo_cli.__file__).parent
ROOT = PACKAGE.parent
HYDRA_ROOMS = {"commands", "config"}  # and hydra_plugins, beside the package


def imported_by(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


def imports(room: str) -> set[str]:
    paths = [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").exists() else (PACKAGE / room).glob("*.py")
    return {module for path in paths for module in imported_by(path)}


@pytest.mark.parametrize(
    ("room", "stranger"),
    [
        ("agents", "buffers"),
        ("agents", "models"),
        ("agents", "logs"),
        ("models", "agents"),
        ("models", "buffers"),
        ("buffers", "agents"),
        ("buffers", "models"),
        ("rollouts", "buffers"),
        ("rollouts", "agents"),
        ("exploration", "models"),
        ("envs", "agents"),
        ("envs", "models"),
        ("envs", "trained"),
        ("models", "trained"),
        ("trainer", "trained"),
        ("build", "trained"),
        ("trainer", "config"),
        ("trainer", "build"),
        ("trainer", "agents.sac"),
    ],
)
def test_rooms_do_not_know_each_other(room: str, stranger: str) -> None:
    strange = f"mbpo_cli.{stranger}"
    known = {m for m in imports(room) if m == strange or m.startswith(f"{strange}.")}
    assert not known


def test_only_the_command_line_knows_hydra() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] not in HYDRA_ROOMS:
            assert not any(m.split(".")[0] in ("hydra", "omegaconf") for m in imported_by(path)), path


def test_no_agent_is_named_in_the_trainer() -> None:
    assert "sac" not in (PACKAGE / "trainer.py").read_text().lower()


def test_every_package_is_listed_for_the_wheel() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    packages = [*PACKAGE.rglob("__init__.py"), *(ROOT / "hydra_plugins").rglob("__init__.py")]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in packages}
    assert set(listed) == folders | {"mbpo_cli.conf"}


def test_every_public_name_has_a_docstring() -> None:
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                parent_is_function = any(
                    isinstance(other, ast.FunctionDef) and node in ast.walk(other) and other is not node
                    for other in ast.walk(tree)
                )
                assert parent_is_function or ast.get_docstring(node), f"{path.name}: {node.name}"
