"""The command `mbpo-export`: write a run's greedy policy as one file that does not need this package.

Slow imports follow the parsing of arguments. Knows the order of the work, and does none of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from mbpo_cli.commands.arguments import Parser, check_output, places, start


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `mbpo-export`; a mistake ends it with one line and exit code 2, and nothing is written."""
    start(_parser(), export_policy, arguments)


def export_policy(options: argparse.Namespace) -> None:
    """Export a run's policy."""
    from mbpo_cli.build import build_env
    from mbpo_cli.trained import export
    from mbpo_cli.trained.load import load

    form = export.format_of(options.output, options.format)
    trained = load(options.run, options.best, options.trust, "--trust {}")
    check_output("--output", options.output, (options.output.suffix,))
    with closing(build_env(trained.config)) as env:
        obs_space, action_space = env.obs_space, env.action_space
    policy = export.GreedyPolicy(trained.agent, trained.spaces, action_space)
    said = places((options.output,))
    difference = export.export(policy, form, options.output)
    print(trained.title)
    print(f"input: obs, float32 of shape (batch, {trained.spaces.obs_size}), from the flattened {obs_space}")
    print(f"output: action, a batch from {action_space}")
    print(f"largest difference from the original: {difference:.1e}")
    print(said)


def _parser() -> Parser:
    parser = Parser(
        "mbpo-export", "Write the greedy policy of a run as one file that does not need this package."
    )
    add = parser.add_argument
    output_help = "file to write: FILE.pt2, FILE.pt or FILE.onnx"
    add("--output", type=Path, required=True, metavar="FILE", help=output_help)
    add(
        "--format",
        choices=["pt2", "torchscript", "onnx"],
        help="PyTorch's current format (pt2), its older one, which C++ can load (torchscript), or ONNX; "
        "the suffix of FILE implies it",
    )
    return parser


if __name__ == "__main__":
    main()
