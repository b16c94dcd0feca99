"""The command `mbpo-evaluate`: play a run's greedy policy, report its returns, and film or record it.

Slow imports follow the parsing of arguments. Only calls what does the work.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import yaml

from mbpo_cli.commands.arguments import Parser, check_output, places, start, whole_number
from mbpo_cli.failures import ConfigError
from mbpo_cli.storage.files import write_json

SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `mbpo-evaluate`; a mistake ends it with one line and exit code 2, and nothing is written."""
    start(_parser(), evaluate, arguments)


def evaluate(options: argparse.Namespace) -> None:
    """Evaluate a run's policy."""
    _prepare_rendering(options)

    import torch

    from mbpo_cli.build import build_env, num_threads
    from mbpo_cli.commands.check import check_limit
    from mbpo_cli.evaluation.evaluate import Evaluation
    from mbpo_cli.nn.seeding import episode_seeds, generator
    from mbpo_cli.storage import data_sets
    from mbpo_cli.trained import returns, video
    from mbpo_cli.trained.episodes import play_in_model, play_real, play_recorded, recorded
    from mbpo_cli.trained.load import load, with_env_kwargs

    torch.set_flush_denormal(True)
    trained = load(options.run, options.best, options.trust, "--trust {}")
    output = options.output or trained.path / "evaluation.json"
    _check_outputs(output, options.record)
    torch.set_num_threads(num_threads(trained.config, in_sweep=False))
    model = trained.model() if options.in_model else None
    trained, max_steps = with_env_kwargs(trained, options.env_kwargs)

    config, policy = trained.config, trained.agent.act
    if options.env_kwargs:  # which may have removed the time limit
        with closing(build_env(config)) as env:
            check_limit(config, env, "--env-kwargs", "--env-kwargs '{max_episode_steps: 1000}'")
    seed = config.seed if options.seed is None else options.seed
    seeds = episode_seeds(seed, "evaluation", options.episodes)
    if options.render == "human":
        real = play_real(lambda: video.rendered_env(config, "--render", "human"), seeds, policy, num_envs=1)
    elif options.record is not None:
        real, episodes = play_recorded(lambda: build_env(config), seeds, policy)
        data_sets.write(options.record, recorded(episodes, trained.spaces.actions))
    else:
        real = []
        if options.video is not None:
            filmed = seeds[: options.video_episodes]
            real = video.play_filmed(config, policy, filmed, options.video, options.steps_per_second)
        real += play_real(lambda: build_env(config), seeds[len(real) :], policy)
    in_model = None
    if model is not None:
        stream = generator(seed, "evaluation", "model")
        in_model = Evaluation.of(play_in_model(model, policy, real, max_steps, stream))
    evaluation = Evaluation.of(real)
    print(trained.title)
    print(returns.as_text(evaluation, in_model))
    said = [places((output,)), *(f"written to {path}" for path in (options.video, options.record) if path)]
    write_json(output, returns.as_json(trained, seed, evaluation, in_model))
    print(*said, sep="\n")


def _check_outputs(output: Path, record: Path | None) -> None:
    from mbpo_cli.storage import data_sets

    check_output("--output", output, (".json",))
    if record is not None:
        check_output("--record", record, data_sets.SUFFIXES)
        data_sets.check_installed(record.suffix)


def _mapping(text: str) -> dict[str, Any]:
    """Parse a mapping, in YAML or JSON."""
    with suppress(yaml.YAMLError):
        values = yaml.safe_load(text)
        if isinstance(values, dict) and all(isinstance(key, str) for key in values):
            return values
    raise argparse.ArgumentTypeError(f"{text}: must be a mapping such as '{{g: 5}}'")


def _prepare_rendering(options: argparse.Namespace) -> None:
    """Check the options of rendering, and render off screen if there is no screen."""
    if options.render == "human" and not any(os.environ.get(name) for name in SCREENS):
        raise ConfigError("--render human: there is no screen (DISPLAY is not set); use --video FILE.gif")
    if options.video is None:
        return
    from mbpo_cli.trained import video

    video.render_off_screen()
    check_output("--video", options.video, video.MAX_FRAMES_PER_SECOND)
    if options.video.suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        reason = "MP4 needs this package's extra: pip install 'mbpo-cli[video]'; .gif needs none"
        raise ConfigError(f"--video {options.video}: {reason}")


def _parser() -> Parser:
    parser = Parser(
        "mbpo-evaluate", "Play episodes with the greedy policy of a run, and report the return of each."
    )
    add = parser.add_argument
    add("--episodes", type=whole_number(1, 10_000), default=20, metavar="N", help="number of episodes (20)")
    add(
        "--seed",
        type=whole_number(0, 2**63 - 1),
        metavar="S",
        help="seed of the episodes (the run's own, which repeats its evaluation episodes)",
    )
    add(
        "--env-kwargs",
        type=_mapping,
        default={},
        metavar="MAPPING",
        help="change keyword arguments of the environment: '{g: 5}'",
    )
    add("--in-model", action="store_true", help="also play in the model, from the same first observations")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--video", type=Path, metavar="FILE", help="film to write: FILE.mp4 or FILE.gif")
    shown.add_argument("--render", choices=["human"], help="show all episodes in a window")
    shown.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="record all steps, for mbpo-train data=FILE: FILE.npz, FILE.hdf5 or FILE.h5",
    )
    add("--video-episodes", type=whole_number(1, 1000), default=1, metavar="K", help="episodes to film (1)")
    add(
        "--steps-per-second",
        type=whole_number(1, 10_000),
        metavar="F",
        help="real-time speed of the film, if the environment declares none or a wrong one (dm_control)",
    )
    add("--output", type=Path, metavar="FILE", help="file for the results (RUN/evaluation.json)")
    return parser


if __name__ == "__main__":
    main()
