"""Random mistakes on the command line: each ends with one line that names it, and writes nothing."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mbpo_cli.commands.train import main
from mbpo_cli.config.compose import make_config
from mbpo_cli.config.typed import _value, options_in
from tests.conftest import CONF

SETTINGS = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
OPTIONS = {
    key: (hint, meaning) for key, hint, meaning, _ in options_in(make_config()) if "_target_" not in key
}
GROUPS = (
    "agent",
    "env",
    "mbpo",
    "model/reward",
    "model/transition",
    "trainer",
    "experiment",
    "hparams_search",
)
CHOICES = {group: {path.stem for path in (CONF / group).glob("*.yaml")} for group in GROUPS}
VALUES = ("abc", "-1", "1.5", "1e99", "nan", "inf", "null", "true", "''", "[]", "[a]", "[1,[2]]", "{a: 1}")
NO_CHOICES = (
    "",
    "''",
    "null",
    "true",
    "0",
    "1.5",
    "[]",
    "[a,b]",
    "..",
    "../agent/sac",
    "/",
    "a.yaml",
    "*",
    "x,y",
)
FILES = (
    b"\xff\xfe",
    b"a: [",
    b"a: 1\na: 2\n",
    b"a:\n\tb: 1\n",
    b"- 1\n",
    b"defaults: 3\n",
    b"defaults:\n  - mistake\n",
    b"defaults:\n  - missing_file\n",
    b"defaults:\n  - override /mbpo: off\n",
    b"# @package a b c\na: 1\n",
    b"a: &a\n  b: *a\n",
    b"a: !!python/object/apply:os.getcwd []\n",
)


class Mistake(NamedTuple):
    """A command line, what its error must contain, and a file in the group env of the user."""

    arguments: tuple[str, ...]
    key: str
    file: bytes | None = None


def misspelled(word: str) -> st.SearchStrategy[str]:
    """Return strategies for a word with a letter too many, too few, or changed."""
    places = st.integers(0, len(word) - 1)
    letters = st.sampled_from("aexz_Z19")
    return st.one_of(
        places.map(lambda i: word[:i] + word[i + 1 :]),
        st.builds(lambda i, letter: word[:i] + letter + word[i:], places, letters),
        st.builds(lambda i, letter: word[:i] + letter + word[i + 1 :], places, letters),
    )


@st.composite
def wrong_keys(draw: st.DrawFn) -> Mistake:
    *groups, name = draw(st.sampled_from(sorted(OPTIONS))).split(".")
    name = draw(misspelled(name))
    key = ".".join([*groups, name])
    assume(name and key not in OPTIONS and not key.startswith("env.kwargs"))
    prefix = draw(st.sampled_from(["", "", "+", "++"]))
    return Mistake((*draw(multirun), f"{prefix}{key}=1"), key)


@st.composite
def wrong_values(draw: st.DrawFn) -> Mistake:
    key = draw(st.sampled_from(sorted(OPTIONS)))
    text = draw(st.sampled_from(VALUES))
    (override,) = OverridesParser.create().parse_overrides([f"{key}={text}"])
    with contextlib.suppress(ValueError):
        _value(override.value(), *OPTIONS[key])
        assume(False)
    return Mistake((*draw(multirun), f"{key}={text}"), key)


@st.composite
def wrong_syntax(draw: st.DrawFn) -> Mistake:
    key = draw(st.sampled_from(sorted(OPTIONS)))
    word = key + draw(st.text("[]{}()'\"=,:\\$ ~@é\x07a1", min_size=1, max_size=8))
    assume(not word.startswith("-"))
    with contextlib.suppress(Exception):
        OverridesParser.create().parse_overrides([word])
        assume(False)
    return Mistake((word,), key)


@st.composite
def wrong_choices(draw: st.DrawFn) -> Mistake:
    group = draw(st.sampled_from(GROUPS))
    near = misspelled(draw(st.sampled_from(sorted(CHOICES[group]))))
    choice = draw(st.one_of(st.sampled_from(NO_CHOICES), near))
    assume(choice not in CHOICES[group])
    prefix = draw(st.sampled_from(["", "", "+", "++", "~"])) if choice else ""
    return Mistake((*draw(multirun), f"{prefix}{group}={choice}"), group)


multirun = st.sampled_from([(), (), ("-m",)])
sweeps = st.sampled_from(
    [
        "seed=range(0,0)",
        "seed=range(3,0)",
        "seed=range(0,1,0)",
        "seed=range(0,inf)",
        "seed=range(0,1e9)",
        "seed=choice()",
        "seed=interval(0,1)",
        "seed=1,1",
        "seed=0,x",
        "seed=0,[1]",
        "seed=glob(*)",
        "agent=glob(x*)",
        "agent=glob(*,exclude=*)",
        "agent=sac,null",
        "agent=sac,nothing",
        "agent=sac,sac",
        "agent.discount_factor=0.9,2",
        "agent.discount_factor=shuffle(0.9,2)",
        "hydra.sweep.dir=",
        "hydra.sweep.dir=${nothing}",
        "hydra.sweep.subdir=${nothing}",
        "hydra.run.dir=x",
        "hydra/launcher=basic,processes",
        "hydra/launcher=nothing",
        "hydra.launcher.n_jobs=0",
        "hydra.launcher.jobs=1",
        "hydra.sweeper.param={seed: 1}",
        "resume=x",
    ]
).map(lambda item: Mistake(("-m", item), item.partition("=")[0]))
flags = st.sampled_from(
    [
        ("--nothing", "--nothing"),
        ("--cfg nothing", "--cfg"),
        ("--cfg job -m", "--cfg"),
        ("--cfg job -p nothing", "nothing"),
        ("--package agent", "--package"),
        ("--resolve", "--resolve"),
        ("--info nothing", "--info"),
        ("--config-dir", "--config-dir"),
        ("--config-dir nothing", "nothing"),
        ("--config-dir . --config-dir /", "--config-dir"),
        ("--config-name nothing", "nothing"),
        ("--config-path nothing", "nothing"),
        ("--experimental-rerun x", "--experimental-rerun"),
        ("--shell-completion install=nothing", "install=nothing"),
        ("-m hydra.mode=RUN", "hydra.mode"),
        ("hydra.mode=nothing", "hydra.mode"),
        ("hydra.verbose=3", "hydra.verbose"),
        ("hydra.searchpath=[file:///nothing]", "/nothing"),
        ("hydra.run.dir=", "hydra.run.dir"),
        ("hydra.run.dir=${nothing}", "hydra.run.dir"),
        ("hydra.sweep.dir=x", "hydra.sweep.dir"),
        ("hydra/launcher=slurm", "hydra/launcher"),
        ("hydra/sweeper=optuna", "hydra/sweeper"),
        ("hydra.job.name=a/b", "hydra.job.name"),
        ("hydra.nothing=1", "hydra.nothing"),
        ("seed=${nothing}", "seed"),
        ("seed=${seed}", "seed"),
        ("seed=${oc.env:HOME}", "seed"),
        ("seed=" + "[" * 900, "seed"),
        ("seed=" + "9" * 5000, "seed"),
        ("-m hydra.sweeper.params={seed:nothing}", "seed=nothing"),
        ("agent@nothing=sac", "agent@nothing"),
        ("=1", "=1"),
        ("seed=1 -m agent=sac", "agent=sac"),
    ]
).map(lambda item: Mistake(tuple(item[0].split(" ")), item[1]))
files = st.sampled_from(FILES).map(lambda text: Mistake(("env=mistake",), "mistake", text))

# Kinds with many members are tried more often.
mistakes = st.one_of(
    wrong_keys(),
    wrong_keys(),
    wrong_values(),
    wrong_values(),
    wrong_syntax(),
    wrong_choices(),
    sweeps,
    flags,
    files,
)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Work in an empty folder."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as path:
        os.chdir(path)
        try:
            yield Path(path)
        finally:
            os.chdir(before)


def check(mistake: Mistake) -> None:
    """Check that a mistake ends with exit code 2 and one line with its key, soon, and writes nothing."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(folder())
        arguments = ["mbpo-train", *mistake.arguments]
        if mistake.file is not None:
            own = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            (own / "env").mkdir()
            (own / "env" / "mistake.yaml").write_bytes(mistake.file)
            arguments += ["--config-dir", str(own)]
        accepted = AssertionError("the mistake was accepted")
        for patch in (
            mock.patch.object(sys, "argv", arguments),
            mock.patch.dict(os.environ, {"HYDRA_FULL_ERROR": "0"}),
            mock.patch.object(HydraConfig.instance(), "cfg", None),
            mock.patch("mbpo_cli.run.run", side_effect=accepted),
            mock.patch("hydra_plugins.mbpo.sweepers.launch", side_effect=accepted),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
        ):
            stack.enter_context(patch)
        start = time.process_time()
        with pytest.raises(SystemExit) as caught:
            main()
        seconds = time.process_time() - start
        assert list(path.iterdir()) == []
    assert caught.value.code == 2
    assert output.getvalue() == ""
    assert errors.getvalue().startswith("mbpo-train: error: ")
    assert errors.getvalue().count("\n") == 1, errors.getvalue()
    assert mistake.key in errors.getvalue()
    assert seconds < 5


@given(mistakes)
@settings(SETTINGS, max_examples=15)
def test_a_mistake_gives_one_line_and_writes_nothing(mistake: Mistake) -> None:
    check(mistake)


@pytest.mark.slow
@given(mistakes)
@settings(SETTINGS, max_examples=300)
def test_three_hundred_mistakes_give_one_line_each(mistake: Mistake) -> None:
    check(mistake)
