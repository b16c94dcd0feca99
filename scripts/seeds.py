"""Train the same configuration with many fresh seeds, and tell what share of them learns.

    python -m scripts.seeds [--env pendulum 'gym_*' ...] [--seeds 50] [--first-seed 2000] [--jobs 1]
        [--table-only] [--folder DIRECTORY [--steps 400] [--overrides mbpo=off ...]]

Seeds from 2000 on are for reporting only: no value may be chosen by them, and no fault be sought on them.
Whatever is tried out has seeds below 2000 and a `--folder` of its own, where the runs, the numbers and the
page are then written; without it, runs lie in `outputs/seeds/`, numbers in `docs/seeds/`, and the page is
`docs/seeds.md`, whose first rows the README repeats.

Each run is `mbpo-train OVERRIDES seed=SEED threads=1` in a process of its own. The same command continues
where it was stopped: runs that ended are kept, interrupted ones resumed. A failed run counts as such, and is
trained again only if `--again` says so. The exit code is 1 if a run has not ended.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from hydra.errors import HydraException

from mbpo_cli.config.values import quoted
from mbpo_cli.failures import ConfigError, StorageFailed, one_line
from mbpo_cli.nn.machine import num_cores
from mbpo_cli.report.runs import read_summary
from mbpo_cli.storage.files import write_whole
from mbpo_cli.storage.records import (
    HARMLESS,
    SCORED,
    VALUES_OF_OLDER_FUNCTIONS,
    VALUES_OF_OLDER_GROUPS,
    VALUES_OF_OLDER_PARTS,
    evaluations,
    leaves,
)
from mbpo_cli.sweeps.processes import run_commands, slots_of
from scripts.results import configuration, matters
from scripts.seeds_page import Ended, Row, page, tables, with_first_rows

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
FIRST_SEED = 2000
SILENT = "its process ended without a word"

ROWS = (
    Row("pendulum", ("agent=sac", "env=pendulum"), 600, 100, 50, -200, (200, 300, 400, 500, 600)),
    Row("pendulum_long", ("agent=sac", "env=pendulum"), 3_000, 100, 10, -200, (300, 600, 1_000, 3_000), -250),
    Row("td3_pendulum", ("agent=td3", "env=pendulum"), 600, 100, 20, -200, (200, 300, 400, 500, 600)),
    Row("ddpg_pendulum", ("agent=ddpg", "env=pendulum"), 600, 100, 20, -200, (200, 300, 400, 500, 600)),
    Row("dqn_cartpole", ("agent=dqn", "env=cartpole"), 1_500, 100, 20, 475, (600, 900, 1_200, 1_500)),
    Row("sac_cartpole", ("agent=sac", "env=cartpole"), 1_000, 100, 20, 475, (400, 600, 800, 1_000)),
    Row(
        "inverted_pendulum",
        ("agent=sac", "env=inverted_pendulum"),
        *(2_000, 125, 20),
        *(1_000, (250, 375, 500, 625, 750), 1_000),
    ),
    Row("acrobot", ("agent=dqn", "env=acrobot"), 1_500, 250, 10, -100, (500, 750, 1_000, 1_250, 1_500)),
    Row(
        "double_horizon_pendulum",
        ("agent=sac", "env=pendulum", "algorithm=double_horizon"),
        *(400, 50, 5, -200, (200, 250, 300, 350, 400)),
    ),
    Row(
        "double_horizon_inverted_pendulum",
        ("agent=sac", "env=inverted_pendulum", "algorithm=double_horizon"),
        *(750, 125, 5, 1_000, (250, 375, 500, 625, 750)),
    ),
    *(
        Row(
            f"{name}_{env}",
            ("agent=sac", f"env={env}", *overrides),
            *(10_000, 500, 1, goal, (1_000, 2_000, 3_000, 5_000, 10_000)),
        )
        for env, goal in (("inverted_double_pendulum", 9_000), ("reacher", -5), ("cartpole_swingup", 400))
        for name, overrides in (
            ("double_horizon", ("algorithm=double_horizon",)),
            ("mbpo", ()),
            ("sac", ("mbpo=off",)),
        )
    ),
    *(
        Row(f"gym_{name}", ("env=gym", f"env.id={env}"), num_env_steps, num_env_steps // 10, 5)
        for name, env, num_env_steps in (
            ("pendulum", "Pendulum-v1", 1_000),
            ("cartpole", "CartPole-v1", 1_000),
            ("acrobot", "Acrobot-v1", 3_000),
            ("mountain_car_continuous", "MountainCarContinuous-v0", 3_000),
            ("inverted_pendulum", "InvertedPendulum-v5", 1_500),
            ("reacher", "Reacher-v5", 3_000),
            ("lunar_lander", "LunarLander-v3", 5_000),
            ("dict", "tests.conftest:tests/Channels-v0", 1_000),
        )
    ),
)

# What older runs lack, except for options with which all rows were measured: values that change nothing.
MEASURED = {
    *("mbpo.max_relative_error", "model.training.min_epochs", "model.training.keep_small_gains"),
    *("mbpo.model_rollout_options.max_disagreement", "mbpo.model_rollout_options.random_fraction"),
}
LATER_OPTIONS = {
    **{key: value for key, value in leaves(VALUES_OF_OLDER_GROUPS) if key not in MEASURED},
    "data": None,
    "agent.activation": "relu",
    "agent.initial_weights": "uniform",
    "agent.critics.bound_quantile": 0.0,
    "agent.critics.scale_outputs": False,
    **{f"model.*.{name}": value for name, value in VALUES_OF_OLDER_FUNCTIONS.items()},
    **{f"*.{name}": value for _, more in VALUES_OF_OLDER_PARTS for name, value in more.items()},
}


@dataclass(frozen=True)
class Places:
    """Where everything is written."""

    runs: Path
    numbers: Path
    page: Path

    def file(self, row: Row) -> Path:
        """Return the file with the numbers of a row, one line per run."""
        return self.numbers / f"{row.name}.jsonl"


OWN = Places(ROOT / "outputs" / "seeds", ROOT / "docs" / "seeds", ROOT / "docs" / "seeds.md")


@dataclass(frozen=True)
class Job:
    """One run to train."""

    row: Row
    variant: str
    seed: int
    options: str
    path: Path

    @property
    def command(self) -> list[str]:
        """The command that trains or resumes it."""
        where = f"hydra.run.dir={quoted(self.path)}"
        return [
            *(sys.executable, "-m", "mbpo_cli"),
            *(*overrides(self.row, self.variant), f"seed={self.seed}", where),
        ]

    def ended(self) -> Ended | None:
        """Return the run if it has ended; None if the next call is to resume it."""
        summary = read_summary(self.path)
        code = summary.get("exit_code")
        if summary.get("status") not in ("done", "failed") or code == StorageFailed.exit_code:
            return None
        return Ended(
            self.variant,
            self.seed,
            self.options,
            summary["status"],
            code,
            summary["error"],
            summary["env_steps"],
            round(summary["wall_seconds"], 1),
            None if summary["score"] is None else round(summary["score"], 2),
            {step: round(value, 2) for step, value in evaluations(self.path).items()},
            summary.get("git_commit"),
        )


def overrides(row: Row, variant: str) -> list[str]:
    """Return the overrides of a run, except its seed; the model is on by default."""
    return [
        f"trainer.num_env_steps={row.num_env_steps}",
        f"trainer.evaluate_every_steps={row.evaluate_every}",
        "trainer.num_eval_episodes=20",
        *("threads=1", "device=cpu"),
        *row.overrides,
        *(["mbpo=off"] if variant == "off" else []),
    ]


def digest(row: Row, variant: str) -> str:
    """Return a digest of the values of all options that affect the numbers of a run, the seed apart."""
    config = configuration(overrides(row, variant))
    affecting = {
        key: value
        for key, value in config.items()
        if matters(key, config)
        and (key in SCORED or not key.startswith(HARMLESS))
        and not any(fnmatch(key, name) and value == neutral for name, neutral in LATER_OPTIONS.items())
    }
    return hashlib.sha256(repr(sorted(affecting.items())).encode()).hexdigest()[:8]


def stored(path: Path) -> list[Ended]:
    """Return the runs in a file; none if it does not exist."""
    lines = path.read_text().splitlines() if path.exists() else []
    runs = [Ended(**json.loads(line)) for line in lines]
    return [replace(run, returns={int(step): value for step, value in run.returns.items()}) for run in runs]


def store(path: Path, new: Sequence[Ended]) -> None:
    """Add runs to a file, in place of those with the same seed or with other options."""
    options = {run.variant: run.options for run in new}
    known = [run for run in stored(path) if options.get(run.variant, run.options) == run.options]
    runs = {(run.variant, run.seed): run for run in (*known, *new)}
    text = "".join(f"{json.dumps(asdict(run))}\n" for _, run in sorted(runs.items()))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode())


def missing(row: Row, variant: str, seeds: range, places: Places, again: bool) -> list[Job]:
    """Return the runs that have not ended, and store those that ended since the last call.

    With `again`, also those that failed, and what they have written is removed.
    """
    options = digest(row, variant)
    path = places.file(row)
    others = [run for run in stored(path) if run.variant == variant and run.options != options]
    if others:
        print(f"{row.name}: options have changed; {len(others)} earlier runs will be replaced", flush=True)
    known = {run.seed: run for run in stored(path) if run.variant == variant and run.options == options}
    jobs, new = [], []
    for seed in seeds:
        job = Job(row, variant, seed, options, places.runs / row.name / f"{variant}-{options}" / str(seed))
        ended = known.get(seed) or job.ended()
        if ended and not (again and ended.status == "failed"):
            new.append(ended)
            continue
        if ended:
            shutil.rmtree(job.path, ignore_errors=True)
        jobs.append(job)
    if new:
        store(path, new)
    return jobs


def all_missing(rows: Sequence[Row], options: argparse.Namespace, places: Places) -> list[Job]:
    """Return the runs of all rows that have not ended."""
    jobs = []
    for row in rows:
        seeds = range(options.first_seed, options.first_seed + (options.seeds or row.num_seeds))
        for variant in row.variants:
            jobs += missing(row, variant, seeds, places, options.again)
    return jobs


def train(jobs: Sequence[Job], places: Places, num_jobs: int | None) -> int:
    """Train runs in parallel and store each as it ends; return how many did not end.

    Raises:
        KeyboardInterrupt: A signal arrived; the running ones have been stopped, and can be resumed.
    """
    unfinished, num_ended = [], 0

    def on_end(index: int, failure: str | None) -> None:
        nonlocal num_ended
        job, ended = jobs[index], jobs[index].ended()
        num_ended += 1
        how = f"not finished: {failure or SILENT}"
        if ended is None:
            unfinished.append(job)
        else:
            store(places.file(job.row), [ended])
            how = f"{ended.status} after {ended.wall_seconds:.0f} s"
            how += f": {ended.error}" if ended.error else f", score {ended.score:.1f}"
        name = f"{job.row.name}{' mbpo=off' if job.variant == 'off' else ''} seed {job.seed}"
        print(f"{num_ended} of {len(jobs)}: {name}: {how}", flush=True)

    slots = slots_of(num_jobs, 1, {"cpu"}, (), num_cores())
    run_commands([job.command for job in jobs], [{**slot, "HYDRA_FULL_ERROR": "0"} for slot in slots], on_end)
    return len(unfinished)


def write_page(rows: Sequence[Row], places: Places) -> dict[Row, list[Ended]]:
    """Write the page and the README's rows from the stored numbers, and return these."""
    results = {row: stored(places.file(row)) for row in rows}
    places.page.parent.mkdir(parents=True, exist_ok=True)
    places.page.write_text(page(results), encoding="utf-8")
    if places == OWN:
        README.write_text(with_first_rows(README.read_text(encoding="utf-8"), results), encoding="utf-8")
    return results


def chosen(patterns: Sequence[str], parser: argparse.ArgumentParser) -> list[Row]:
    """Return the rows that patterns such as `gym_*` choose; a pattern without a row is an error."""
    for pattern in patterns:
        if not any(fnmatch(row.name, pattern) for row in ROWS):
            parser.error(f"--env {pattern}: no such row; known are {', '.join(row.name for row in ROWS)}")
    return [row for row in ROWS if any(fnmatch(row.name, pattern) for pattern in patterns)]


def changed(row: Row, steps: int | None, added: Sequence[str]) -> Row:
    """Return a row with another length and further overrides."""
    row = replace(row, overrides=(*row.overrides, *added))
    if steps is None:
        return row
    shown = tuple(step for step in row.steps if step <= steps) or (steps,)
    return replace(row, num_env_steps=steps, evaluate_every=min(row.evaluate_every, steps), steps=shown)


def arguments(words: Sequence[str]) -> tuple[argparse.Namespace, list[Row]]:
    """Return the parsed arguments and the chosen rows, changed as they say."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.seeds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--env", "--rows", nargs="+", default=["*"], metavar="ROW", help="rows; patterns such as 'gym_*'")
    add("--seeds", type=int, help="number of seeds (default: 50, 20, 10 or 5, by row)")
    add("--first-seed", type=int, default=FIRST_SEED, help=f"default: {FIRST_SEED}")
    add("--jobs", type=int, help="parallel runs, one thread each (default: one per core; 1 for timings)")
    add("--again", action="store_true", help="remove failed runs, and train them again")
    add("--table-only", action="store_true", help="train nothing; write the page from the stored numbers")
    add("--folder", type=Path, help="where to write what is only tried out")
    add("--steps", type=int, help="length of the runs; needs --folder")
    add("--overrides", nargs="+", default=[], help="further overrides; needs --folder")
    options = parser.parse_args(words)
    for name in ("seeds", "jobs", "steps"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} {value}: must be 1 or more")
    if options.folder is None:
        if options.first_seed < FIRST_SEED:
            parser.error(f"--first-seed {options.first_seed}: seeds below {FIRST_SEED} need a --folder")
        if options.steps or options.overrides:
            parser.error("--steps and --overrides need a --folder: the page is for the rows as they are")
    rows = [changed(row, options.steps, options.overrides) for row in chosen(options.env, parser)]
    return options, rows


def main(words: Sequence[str]) -> int:
    """Train the missing runs, then write the page; return 0 if all have ended."""
    options, rows = arguments(words)
    places, shown = OWN, ROWS
    if options.folder is not None:
        folder = options.folder.resolve()
        places, shown = Places(folder / "runs", folder / "seeds", folder / "seeds.md"), tuple(rows)
    os.chdir(ROOT)  # from where runs import the environments of the tests
    code = 0
    try:
        if not options.table_only:
            code = int(train(all_missing(rows, options, places), places, options.jobs) > 0)
    except (ConfigError, HydraException) as error:
        print(f"scripts.seeds: error: {one_line(error)}", file=sys.stderr)
        return ConfigError.exit_code
    except KeyboardInterrupt as error:  # any signal; the second Ctrl-C has no code
        print("interrupted; the same command continues", flush=True)
        code = getattr(error, "exit_code", 130)
    results = write_page(shown, places)
    print(tables({row: results[row] for row in rows}))
    for row in rows:
        commits = sorted({(run.commit or "unknown")[:10] for run in results[row]})
        if len(commits) > 1:  # the options are equal, but other code may have changed the numbers
            print(f"{row.name}: its runs are of several commits: {', '.join(commits)}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
