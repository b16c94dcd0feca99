"""What the report says about a single run: how it went, and what its model and critics are worth.

Knows the files of a run; does not know pages. The other modules of the report compare runs.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from mbpo_cli.evaluation import curve
from mbpo_cli.failures import ConfigError, one_line
from mbpo_cli.report import plots, table
from mbpo_cli.report.groups import Group
from mbpo_cli.report.reference import Reference
from mbpo_cli.report.runs import UNKNOWN, Run, read_summary
from mbpo_cli.report.sections import reference_for
from mbpo_cli.report.statistics import median_steps
from mbpo_cli.storage import records

PHASES = ("env", "fit", "generate", "update", "evaluate", "diagnose", "checkpoint")
EPISODES, GRADIENT_STEPS = "train/episodes", "train/gradient_steps"
# Quantity and what to look for, by tag; docs/tasks/diagnose.md says more.
FINDINGS = {
    "diagnose/one_step_error": ("model: error of one step, in std of the change", "well below 1, falling"),
    **{
        tag: (f"model: error {after}, in std of the observations", "well below 1 up to the rollouts' horizon")
        for tag, after in plots.OPEN_LOOP.items()
    },
    "diagnose/coverage_95": ("model: real values in 95 % intervals", "near 0.95; far below: overconfident"),
    "diagnose/reward_error": ("model: error of the reward", "well below 1; 0 if the function is known"),
    "diagnose/is_done_precision": ("model: predicted ends that are real", "near 1"),
    "diagnose/is_done_recall": ("model: real ends that are predicted", "near 1"),
    "diagnose/generated_shift": ("distance of generated from real observations", "not growing"),
    "rollout/held_back": ("model: fits in a row after which it was not used", "0"),
    plots.RETURN: ("discounted return of the policy", "growing"),
    plots.BIAS: ("Q-values minus discounted returns", "near 0 compared with the discounted return"),
    "diagnose/q_real": ("Q-values of real experience", "moves with those of generated experience"),
    "diagnose/q_generated": ("Q-values of generated experience", "otherwise the model misleads the critics"),
}
MODEL_PICTURE = "model.png"  # of mbpo-model
FILES = (
    *(records.CURVE, MODEL_PICTURE, records.LOG, records.CONFIG, records.METRICS),
    *(records.SUMMARY, records.POLICY),
)


@dataclass(frozen=True)
class Account:
    """What there is to say about one run.

    Attributes:
        headline: Its status and its return.
        sentences: How well it learned.
        facts: Numbers, as text, by name.
        findings: Rows of quantity, first value, last value, and what to look for.
        commands: What can be done with the run, by purpose.
        files: Names of files in its directory; an empty name is the directory.
        row: The run as a row of the CSV file.
        png: The picture; None if nothing is logged.
    """

    run: Run
    title: str
    headline: str
    sentences: Sequence[str]
    facts: Mapping[str, str]
    findings: Sequence[tuple[str, ...]]
    commands: Mapping[str, str]
    files: Sequence[str]
    row: table.Row
    png: bytes | None


def account_of(group: Group, published: Mapping[str, Reference], threshold: float | None) -> Account:
    """Return what there is to say about the only run of a group.

    The threshold is the return to reach; None stands for Gymnasium's, if the environment has one.
    """
    (run,) = group.runs
    phases = {phase: f"time/{phase}_seconds" for phase in PHASES}
    tags = (*curve.TAGS, *FINDINGS, *phases.values(), EPISODES, GRADIENT_STEPS)
    found = {tag: curve.drawable(values) for tag, values in records.history(run.path, tags).items()}
    last = {tag: values[max(values)] for tag, values in found.items() if values}
    spent = {phase: last[tag] for phase, tag in phases.items() if tag in last}
    goal = table.threshold_of([group], [], threshold)
    known, notes = reference_for([group], published, run.env_steps)
    headline = run.status
    if run.score is not None:
        value = table.numbers(run.score)[0]
        headline += f", score {value}" if run.status == "done" else f", score {value} so far"
    return Account(
        run=run,
        title=f"{run.agent} on {run.env}, seed {run.seed}",
        headline=headline,
        sentences=[*_sentences(run, last, goal), *notes],
        row=table.row(group, goal),
        facts=_facts(group, last, spent),
        findings=[
            (name, f"{found[tag][min(found[tag])]:.3g}", f"{last[tag]:.3g}", look_for)
            for tag, (name, look_for) in FINDINGS.items()
            if tag in last
        ],
        commands=_commands(group),
        files=[name for name in (*FILES, "") if (run.path / name).exists()],
        png=plots.picture_of_one(found, spent, goal, known) if last else None,
    )


def as_text(account: Account) -> str:
    """Return what there is to say as text for a terminal."""
    width = max(map(len, account.facts))
    facts = [f"  {name:<{width}}  {value}" for name, value in account.facts.items()]
    return "\n".join([f"{account.title}: {account.headline}", *account.sentences, *facts])


def _sentences(run: Run, last: Mapping[str, float], goal: table.Threshold | None) -> list[str]:
    if not run.returns:
        return ["It has not been evaluated yet."]
    step, best = max(run.returns), max(run.returns, key=lambda step: run.returns[step])
    mean, std, top = table.numbers(run.returns[step], last.get(curve.DEVIATION), run.returns[best])
    sentences = [f"Last evaluation: {mean} ± {std} at step {step:,}; best: {top} at step {best:,}."]
    if goal is not None:
        first, num_there = median_steps([run.returns], goal.value)
        when = f"first reached at step {first:,.0f}" if num_there else "not reached"
        sentences.append(f"A return of {table.numbers(goal.value)[0]} ({goal.source}): {when}.")
    return sentences


def _facts(group: Group, last: Mapping[str, float], spent: Mapping[str, float]) -> dict[str, str]:
    (run,) = group.runs
    summary = read_summary(run.path)
    versions = summary.get("versions")
    programs = versions if isinstance(versions, dict) else {}
    in_episodes = f" in {last[EPISODES]:,.0f} episodes" if EPISODES in last else ""
    slowest_first = sorted(spent, key=lambda phase: -spent[phase])
    facts = {
        "error": run.error,
        "stopped because": summary.get("stopped_because"),
        "real steps": f"{run.env_steps:,}{_planned(run)}{in_episodes}",
        "gradient steps": f"{last[GRADIENT_STEPS]:,.0f}" if GRADIENT_STEPS in last else None,
        "model": group.model,
        "wall time": None if run.wall_seconds is None else table.duration(run.wall_seconds),
        "time by phase": ", ".join(f"{phase} {table.duration(spent[phase])}" for phase in slowest_first),
        "command": summary.get("command"),
        "versions": ", ".join(f"{name} {version}" for name, version in programs.items()),
        "commit": summary.get("git_commit"),
    }
    return {name: one_line(value) for name, value in facts.items() if value}


def _planned(run: Run) -> str:
    """Return how many steps the run is to take, as text, if that is known."""
    with suppress(ConfigError, LookupError, TypeError, ValueError):
        return f" of {int(records.stored_config(run.path)['trainer']['num_env_steps']):,}"
    return ""


def _commands(group: Group) -> dict[str, str]:
    (run,) = group.runs
    place = str(run.path.resolve())
    commands = {
        "Follow it" if run.status == "running" else "See every scalar": ["tensorboard", "--logdir", place]
    }
    # No command can make the environment that a Python function makes.
    is_from_python = group.options.get("env.id", "").startswith(records.FROM_PYTHON)
    if run.status not in ("running", "done") and not is_from_python:
        commands["Continue it"] = ["mbpo-train", f"resume={place}"]
    has_policy = (run.path / records.POLICY).exists() or (run.path / records.CHECKPOINTS).exists()
    if has_policy and not is_from_python:
        commands["Evaluate its policy on new episodes"] = ["mbpo-evaluate", place]
        if group.model not in ("none", UNKNOWN):
            commands["Compare its model with new episodes"] = ["mbpo-model", place]
    return {purpose: shlex.join(words) for purpose, words in commands.items()}
