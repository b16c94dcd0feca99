"""The command `mbpo-export`: write a run's greedy policy, or its learned model, for other programs.

Slow imports follow the parsing of arguments. Only calls what does the work.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from mbpo_cli.commands.arguments import Parser, check_output, places, start
from mbpo_cli.failures import ConfigError
from mbpo_cli.storage.files import write_whole


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `mbpo-export`; a mistake ends it with one line and exit code 2, and nothing is written."""
    start(_parser(), export_run, arguments)


def export_run(options: argparse.Namespace) -> None:
    """Export a run's policy, its model, or both."""
    from mbpo_cli.build import build_env
    from mbpo_cli.trained import export, exportable
    from mbpo_cli.trained.load import load

    outputs = {"--output": options.output, "--model": options.model}
    paths = {argument: path for argument, path in outputs.items() if path is not None}
    if not paths:
        raise ConfigError("--output FILE: missing; it names a file for the policy, --model one for the model")
    forms = {key: export.format_of(key, path, options.format) for key, path in paths.items()}
    trained = load(options.run, options.best, options.trust, "--trust {}")
    for key, path in paths.items():
        check_output(key, path, (path.suffix,))
    if len({path.resolve() for path in paths.values()}) < len(paths):
        raise ConfigError(f"--model {options.model}: is the file of --output; name another")
    with closing(build_env(trained.config)) as env:
        spaces = trained.spaces, env.obs_space, env.action_space
    functions: dict[str, exportable.Exportable] = {}
    if "--output" in paths:
        functions["--output"] = exportable.GreedyPolicy(trained.agent, *spaces)
    if "--model" in paths:
        functions["--model"] = exportable.LearnedModel(trained.fitted_model(), *spaces)
    files = {}
    for key, function in functions.items():
        description = exportable.description(trained, function, options.license)
        files[key] = export.export(function, forms[key], description)
    print(trained.title)
    for key, (contents, difference) in files.items():
        said = places((paths[key],))
        write_whole(paths[key], contents)
        for port in functions[key].inputs:
            print(f"input: {port.name}, {port.type}")
        for port in functions[key].outputs:
            print(f"output: {port.name}, {port.type}")
        print(f"largest difference from the original: {difference:.1e}")
        print(said)


def _parser() -> Parser:
    parser = Parser(
        "mbpo-export",
        "Write the greedy policy of a run, or its learned model, as a file that does not need this package.",
    )
    add = parser.add_argument
    output_help = "file for the policy: FILE.pt2, FILE.pt or FILE.onnx"
    add("--output", type=Path, metavar="FILE", help=output_help)
    model_help = "file for the model: transition, reward and is-done functions, without noise"
    add("--model", type=Path, metavar="FILE", help=model_help)
    add(
        "--format",
        choices=["pt2", "torchscript", "onnx"],
        help="PyTorch's current format (pt2), its older one, which C++ can load (torchscript), or ONNX; "
        "the suffix of FILE implies it",
    )
    license_help = "license under which you pass the file on, for its metadata"
    add("--license", metavar="NAME", help=license_help)
    return parser


if __name__ == "__main__":
    main()
