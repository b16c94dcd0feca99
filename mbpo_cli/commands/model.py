"""The command `mbpo-model`: where a run's learned model is right, where it fails, and how far it goes.

What takes long to import is imported only after the arguments are read. Knows the order of work, and none
of the work.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbpo_cli.commands.arguments import Parser, check_output, start, whole_number
from mbpo_cli.failures import ConfigError
from mbpo_cli.storage.files import write_whole

if TYPE_CHECKING:
    from mbpo_cli.evaluation.diagnostics import OneStep, OpenLoop
    from mbpo_cli.evaluation.evaluate import Episode

PROG = "mbpo-model"
NUM_WORST = 5


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `mbpo-model`: what cannot be right ends with one line and exit code 2, and writes nothing."""
    start(_parser(), examine, arguments)


def examine(options: argparse.Namespace) -> None:
    """Hold a run's model to new real episodes of its policy, as the arguments say.

    Raises:
        ConfigError: One of them is wrong, or the run has no model; nothing was written.
        RunFailed: The run cannot be read, or its environment cannot go on.
        OSError: The output cannot be written.
    """
    import torch

    from mbpo_cli.build import build_env, num_threads
    from mbpo_cli.evaluation import diagnostics, pictures
    from mbpo_cli.seeding import episode_seeds, generator
    from mbpo_cli.trained.episodes import real_episodes
    from mbpo_cli.trained.load import load

    trained = load(options.run, options.best, options.trust, "--trust {}")
    output = options.output or options.run / "model.png"
    check_output("--output", output, (".png",))
    numbers = output.with_suffix(".json")
    check_output("--output", numbers, (".json",))
    torch.set_num_threads(num_threads(trained.config, in_sweep=False))
    model = trained.model()
    if trained.state["num_model_trainings"] == 0:
        raise ConfigError(f"{options.run}: the model has not been fitted yet")
    seed = trained.config.seed if options.seed is None else options.seed
    seeds = episode_seeds(seed, "model", options.episodes)
    with torch.inference_mode():
        episodes = real_episodes(lambda: build_env(trained.config), seeds, trained.agent.act)
        rows = diagnostics.joined(episodes)
        one_step = diagnostics.one_step(model, rows)
        open_loop = diagnostics.open_loop(model, episodes, options.horizon)
        outcomes = diagnostics.of_outcomes(model, rows, generator(seed, "model", "outcomes"))
        found = _numbers(one_step, open_loop, outcomes, _worst(one_step, episodes))
        picture = pictures.of_predictions(rows, one_step, open_loop)
    print(f"{trained.config.agent.name} on {trained.config.env.id}, {trained.source}")
    print(f"{len(rows):,} real steps of its greedy policy in {len(episodes)} episodes")
    print(_text(found))
    write_whole(numbers, (json.dumps({"seed": seed, **found}, indent=2) + "\n").encode())
    write_whole(output, picture)
    print(numbers)
    print(output)


def _worst(one_step: OneStep, episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    """Return the real steps that were predicted worst."""
    places = [(number, step) for number, episode in enumerate(episodes) for step in range(len(episode))]
    worst = one_step.error_B.argsort(descending=True)[:NUM_WORST]
    return [
        {
            "episode": places[row][0],
            "step": places[row][1],
            "error": float(one_step.error_B[row]),
            "obs": episodes[places[row][0]].obs[places[row][1]].tolist(),
            "action": episodes[places[row][0]].action[places[row][1]].tolist(),
        }
        for row in worst.tolist()
    ]


def _numbers(
    one_step: OneStep, open_loop: OpenLoop | None, outcomes: dict[str, float], worst: list[dict[str, Any]]
) -> dict[str, Any]:
    from mbpo_cli.evaluation.diagnostics import INTERVALS

    has_score = one_step.score_EBO is not None
    return {
        "error_by_element": one_step.error_MO.square().mean(0).sqrt().tolist(),
        "error_by_member": one_step.error_MO.square().mean(1).sqrt().tolist(),
        "disagreement": one_step.disagreement,
        "coverage": {str(level): one_step.coverage(level) for level in INTERVALS} if has_score else None,
        "error_by_steps_ahead": None if open_loop is None else open_loop.error_EK.mean(0).tolist(),
        **{name.removeprefix("diagnose/"): value for name, value in outcomes.items()},
        "worst": worst,
    }


def _text(found: dict[str, Any]) -> str:
    """Return what was found, for a person."""

    def row(values: Sequence[float]) -> str:
        return " ".join(f"{value:.3g}" for value in values)

    lines = [
        "error of one step, where 1 is no better than to predict the mean change",
        f"  by element  {row(found['error_by_element'])}",
        f"  by member   {row(found['error_by_member'])} (they disagree by {found['disagreement']:.3g})",
    ]
    if found["coverage"] is not None:
        told = ", ".join(f"{share:.2f} of {level}" for level, share in found["coverage"].items())
        lines.append(f"truths within the model's intervals: {told}")
    ahead = found["error_by_steps_ahead"]
    if ahead is not None:
        steps = [step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if step <= len(ahead)]
        told = ", ".join(f"{ahead[step - 1]:.3g} after {step}" for step in steps)
        lines.append(f"error over many steps, in deviations of the observations: {told}")
    names = {"reward_error": "rewards: error", "is_done_precision": "ends: precision"}
    names["is_done_recall"] = "recall"
    told = ", ".join(f"{text} {found[name]:.3g}" for name, text in names.items() if name in found)
    lines += [told, "the worst predictions"]
    for worst in found["worst"]:
        place = f"episode {worst['episode']}, step {worst['step']}"
        obs, action = (row(worst[name][:12]) for name in ("obs", "action"))
        lines.append(f"  {place}: error {worst['error']:.3g} at ({obs}) with action ({action})")
    return "\n".join(lines)


def _parser() -> Parser:
    parser = Parser(PROG, "Hold the learned model of a run to new real episodes of its policy.")
    parser.add_argument(
        "--episodes", type=whole_number(1, 1_000), default=10, metavar="N", help="how many (10)"
    )
    parser.add_argument(
        "--horizon", type=whole_number(1, 1_000), default=50, metavar="K", help="steps predicted ahead (50)"
    )
    parser.add_argument(
        "--seed", type=whole_number(0, 2**63 - 1), metavar="S", help="of the episodes (the run's own)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.png",
        help="where to draw (RUN/model.png); the numbers go beside it, as .json",
    )
    return parser


if __name__ == "__main__":
    main()
