"""Imports run in one direction, no module is too long, and every package is in the wheel."""

import ast
import tomllib
from pathlib import Path

import pytest

import mbpo_cli

PACKAGE = Path(mbpo_cli.__file__).parent
ROOT = PACKAGE.parent
KNOW_HYDRA = {"commands", "config"}  # and hydra_plugins, beside the package
MAX_ENTRIES, MAX_INIT_LINES, MAX_MODULE_LINES, MAX_FUNCTION_LINES = 24, 40, 350, 50


def sources() -> list[Path]:
    folders = (PACKAGE, ROOT / "hydra_plugins")
    return [path for folder in folders for path in sorted(folder.rglob("*.py")) if "conf" not in path.parts]


def imported_by(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


def imports(name: str) -> set[str]:
    """Return all that a module, or the modules of a package, import."""
    module = PACKAGE / f"{name}.py"
    paths = [module] if module.exists() else (PACKAGE / name).glob("*.py")
    return {imported for path in paths for imported in imported_by(path)}


@pytest.mark.parametrize(
    ("name", "unknown"),
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
def test_a_module_does_not_import_what_it_should_not_know(name: str, unknown: str) -> None:
    forbidden = f"mbpo_cli.{unknown}"
    assert not {m for m in imports(name) if m == forbidden or m.startswith(f"{forbidden}.")}


def test_only_the_command_line_knows_hydra() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] not in KNOW_HYDRA:
            assert not any(m.split(".")[0] in ("hydra", "omegaconf") for m in imported_by(path)), path


def test_no_agent_is_named_in_the_trainer() -> None:
    assert "sac" not in (PACKAGE / "trainer.py").read_text().lower()


def test_the_package_can_be_taken_in_at_a_glance() -> None:
    entries = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MAX_ENTRIES
    for path in sources():
        num_lines = len(path.read_text().splitlines())
        assert num_lines <= (MAX_INIT_LINES if path.name == "__init__.py" else MAX_MODULE_LINES), path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < MAX_FUNCTION_LINES, f"{path}: {node.name}"


def test_every_package_is_listed_for_the_wheel() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in sources() if path.stem == "__init__"}
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
