"""The command `mbpo-export`: a run's greedy policy as one file that needs nothing of this package.

What takes long to import is imported only after the arguments are read. Knows the order of work, and none
of the work.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mbpo_cli.commands.arguments import Parser, check_output, start

PROG = "mbpo-export"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `mbpo-export`: what cannot be right ends with one line and exit code 2, and writes nothing."""
    start(_parser(), export_policy, arguments)


def export_policy(options: argparse.Namespace) -> None:
    """Export a run's policy as the arguments say.

    Raises:
        ConfigError: One of them is wrong, or the file would not hold the same policy; nothing was written.
        RunFailed: The run cannot be read.
        OSError: The output cannot be written.
    """
    from mbpo_cli.build import build_env
    from mbpo_cli.trained import export
    from mbpo_cli.trained.load import load

    form = export.form_of(options.output, options.format)
    export.check_available(form)
    trained = load(options.run, options.best, options.trust, "--trust {}")
    check_output("--output", options.output, (options.output.suffix,))
    env = build_env(trained.config)
    env.close()
    policy = export.GreedyPolicy(trained.agent, trained.spaces, env.action_space)
    difference = export.export(policy, form, options.output)
    print(f"{trained.config.agent.name} on {trained.config.env.id}, {trained.source}")
    print(f"takes    obs: float32 (batch, {trained.spaces.obs_size}), of {env.obs_space}")
    print(f"returns  action: of {env.action_space}, batch first")
    print(f"largest difference to the original: {difference:.1e}")
    print(options.output)


def _parser() -> Parser:
    parser = Parser(PROG, "Write the greedy policy of a run as one file that needs nothing of this package.")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="where to: FILE.pt2, FILE.pt or FILE.onnx"
    )
    parser.add_argument(
        "--format",
        choices=["pt2", "torchscript", "onnx"],
        help="PyTorch's format (pt2), the one before it that C++ reads (torchscript), or ONNX; "
        "the name of the file tells it too",
    )
    return parser


if __name__ == "__main__":
    main()
