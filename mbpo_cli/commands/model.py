"""The command `mbpo-model`: compare a run's learned model with new real episodes of its policy.

Slow imports follow the parsing of arguments. Only calls what does the work.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mbpo_cli.commands.arguments import Parser, check_output, places, start, whole_number
from mbpo_cli.storage.files import write_json, write_whole


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `mbpo-model`; a mistake ends it with one line and exit code 2, and nothing is written."""
    start(_parser(), examine, arguments)


def examine(options: argparse.Namespace) -> None:
    """Compare a run's model with new real episodes."""
    import torch

    from mbpo_cli.build import build_env, num_threads
    from mbpo_cli.nn.seeding import episode_seeds, generator
    from mbpo_cli.trained import model_errors
    from mbpo_cli.trained.episodes import play_recorded
    from mbpo_cli.trained.load import load

    trained = load(options.run, options.best, options.trust, "--trust {}")
    output = options.output or trained.path / "model.png"
    check_output("--output", output, (".png",))
    numbers = output.with_suffix(".json")
    check_output("--output", numbers, (".json",))
    torch.set_num_threads(num_threads(trained.config, in_sweep=False))
    model = trained.fitted_model()

    seed = trained.config.seed if options.seed is None else options.seed
    seeds = episode_seeds(seed, "model", options.episodes)
    with torch.inference_mode():
        _, episodes = play_recorded(lambda: build_env(trained.config), seeds, trained.agent.act)
    stream = generator(seed, "model", "outcomes")
    found, picture = model_errors.measure(model, episodes, options.horizon, stream, trained.spaces)
    print(trained.title)
    print(f"real episodes of its greedy policy: {len(episodes)} ({sum(map(len, episodes)):,} steps)")
    print(model_errors.as_text(found))
    said = places((numbers, output))
    write_json(numbers, {"seed": seed, **found})
    write_whole(output, picture)
    print(said)


def _parser() -> Parser:
    parser = Parser(
        "mbpo-model", "Compare the learned model of a run with new real episodes of its greedy policy."
    )
    add = parser.add_argument
    add("--episodes", type=whole_number(1, 1_000), default=10, metavar="N", help="number of episodes (10)")
    add("--horizon", type=whole_number(1, 1_000), default=50, metavar="K", help="steps to predict ahead (50)")
    add("--seed", type=whole_number(0, 2**63 - 1), metavar="S", help="seed of the episodes (the run's own)")
    add(
        "--output",
        type=Path,
        metavar="FILE.png",
        help="file for the picture (RUN/model.png); the numbers go to the same name with .json",
    )
    return parser


if __name__ == "__main__":
    main()
