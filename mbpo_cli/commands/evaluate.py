"""The command `mbpo-evaluate`: play a run's greedy policy, tell what it earns, and film it.

What takes long to import is imported only after the arguments are read. Knows the order of work, and none
of the work.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbpo_cli.commands.arguments import Parser, check_output, start, whole_number
from mbpo_cli.failures import ConfigError, one_line
from mbpo_cli.storage.files import write_whole

if TYPE_CHECKING:
    from mbpo_cli.config.typed import Config
    from mbpo_cli.evaluation.evaluate import Outcome
    from mbpo_cli.trained.load import Trained

PROG = "mbpo-evaluate"
SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `mbpo-evaluate`: what cannot be right ends with one line and exit code 2, and writes nothing."""
    start(_parser(), evaluate, arguments)


def evaluate(options: argparse.Namespace) -> None:
    """Evaluate a run's policy as the arguments say.

    Raises:
        ConfigError: One of them is wrong; nothing was written.
        RunFailed: The run cannot be read, or its environment cannot go on.
        OSError: The output cannot be written.
    """
    kwargs = _mapping(options.env_kwargs)
    _prepare_drawing(options)

    import torch

    from mbpo_cli.build import num_threads
    from mbpo_cli.seeding import episode_seeds, generator
    from mbpo_cli.trained.episodes import play_in_model
    from mbpo_cli.trained.load import load

    torch.set_flush_denormal(True)
    trained = load(options.run, options.best, options.trust, "--trust {}")
    output = options.output or options.run / "evaluation.json"
    check_output("--output", output, (".json",))
    torch.set_num_threads(num_threads(trained.config, in_sweep=False))
    model = trained.model() if options.in_model else None
    config, max_steps = _changed(trained, kwargs)

    seed = config.seed if options.seed is None else options.seed
    seeds = episode_seeds(seed, "evaluation", options.episodes)
    real = _play(config, trained, seeds, options)
    modelled = None
    if model is not None:
        stream = generator(seed, "evaluation", "model")
        modelled = play_in_model(model, trained.agent.act, real, max_steps, stream)

    print(f"{config.agent.name} on {config.env.id}, {trained.source}")
    print(_table(real, modelled))
    stored = _stored(trained, config, seed, real, modelled)
    write_whole(output, (json.dumps(stored, indent=2, allow_nan=False, default=str) + "\n").encode())
    for path in filter(None, (output, options.video)):
        print(path)


def _mapping(text: str | None) -> dict[str, Any]:
    """Read a mapping, in YAML or JSON."""
    if text is None:
        return {}
    import yaml

    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        values = None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"--env-kwargs {text}: must be a mapping such as '{{g: 5}}'")
    return values


def _prepare_drawing(options: argparse.Namespace) -> None:
    """Check what can be checked before anything is drawn; draw off the screen where there is none."""
    has_screen = any(os.environ.get(name) for name in SCREENS)
    if options.render == "human" and not has_screen:
        raise ConfigError("--render human: there is no screen (DISPLAY is not set); use --video FILE.gif")
    if options.video is None:
        return
    from mbpo_cli.trained import video

    check_output("--video", options.video, video.FORMATS)
    video.check_available(options.video)
    if not os.environ.get("DISPLAY"):  # both are looked at when MuJoCo and pygame are first imported
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


def _changed(trained: Trained, kwargs: dict[str, Any]) -> tuple[Config, int | None]:
    """Return the configuration with other keyword arguments of the environment, and its time limit."""
    from dataclasses import replace

    from mbpo_cli.build import build_env

    config = trained.config
    config = replace(config, env=replace(config.env, kwargs={**(config.env.kwargs or {}), **kwargs}))
    shown = f"--env-kwargs {json.dumps(kwargs, default=str)}"
    try:
        env = build_env(config)
    except ConfigError as error:
        raise ConfigError(f"{shown}: {one_line(error)}") from error
    except Exception as error:  # whatever an environment may raise where it does not like what it is given
        raise ConfigError(f"{shown}: {type(error).__name__}: {one_line(error)}") from error
    env.close()
    if env.spaces != trained.spaces:
        raise ConfigError(f"{shown}: the environment then has other spaces than the policy was trained for")
    return config, env.max_steps


def _play(
    config: Config, trained: Trained, seeds: Sequence[int], options: argparse.Namespace
) -> list[Outcome]:
    """Play the episodes: on the screen, or on film as far as they are wanted there, or unseen."""
    from mbpo_cli.build import build_env
    from mbpo_cli.evaluation.evaluate import play
    from mbpo_cli.trained.episodes import Filmed, play_real

    policy = trained.agent.act
    if options.render == "human":
        return play_real(lambda: _drawn(config, "--render", "human"), seeds, policy, at_once=1)
    episodes = []
    if options.video is not None:
        from mbpo_cli.trained.video import Film

        env = _drawn(config, "--video", "rgb_array")
        with Film(options.video, options.steps_per_second or env.frames_per_second) as film:
            for seed in seeds[: options.video_episodes]:
                episodes += [episode.outcome for episode in play([Filmed(env, film)], [seed], policy)]
        env.close()
    return episodes + play_real(lambda: build_env(config), seeds[len(episodes) :], policy)


def _drawn(config: Config, argument: str, mode: str) -> Any:
    """Make an environment that can be drawn."""
    from mbpo_cli.build import build_env

    plain = build_env(config)  # Gymnasium warns where the way to draw is not among the environment's
    plain.close()
    if mode not in plain.render_modes:
        known = ", ".join(plain.render_modes) or "none"
        raise ConfigError(
            f"{argument}: {config.env.id} cannot be drawn: needs {mode}, and its ways are {known}"
        )
    return build_env(config, mode)


def _table(real: Sequence[Outcome], modelled: Sequence[Outcome] | None) -> str:
    """Return the episodes as text: the real ones, and beside them those in the model."""
    from mbpo_cli.evaluation.evaluate import Evaluation

    columns = [real] if modelled is None else [real, modelled]
    head = ["episode", "return", "length"] + ([] if modelled is None else ["in model", "length"])
    rows = [head]
    for number, row in enumerate(zip(*columns, strict=True)):
        cells = [cell for episode in row for cell in (f"{episode.total_reward:.1f}", str(episode.length))]
        rows.append([str(number), *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    for name, episodes in zip(("real", "in model"), columns, strict=False):
        told = Evaluation.of(episodes)
        values = (
            f"return {told.return_mean:.1f} ± {told.return_std:.1f}, "
            f"length {told.length_mean:.1f} ± {told.length_std:.1f}"
        )
        lines.append(f"{name}: {values} (mean ± standard deviation, {len(episodes)} played)")
    return "\n".join(lines)


def _stored(
    trained: Trained, config: Config, seed: int, real: Sequence[Outcome], modelled: Sequence[Outcome] | None
) -> dict[str, Any]:
    """Return what is stored; a number that is not finite is null there."""
    from mbpo_cli.evaluation.evaluate import Evaluation
    from mbpo_cli.storage.directory import versions

    def told(episodes: Sequence[Outcome]) -> dict[str, Any]:
        evaluation = Evaluation.of(episodes)
        return {
            "return_mean": _finite(evaluation.return_mean),
            "return_std": _finite(evaluation.return_std),
            "length_mean": evaluation.length_mean,
            "length_std": evaluation.length_std,
            "episodes": [{"return": _finite(e.total_reward), "length": e.length} for e in episodes],
        }

    return {
        "run": str(trained.path),
        "source": trained.source,
        "env_steps": None if trained.checkpoint is None else trained.checkpoint.step,
        "agent": config.agent.name,
        "env": config.env.id,
        "env_kwargs": _told(config.env.kwargs),
        "seed": seed,
        "real": told(real),
        "in_model": None if modelled is None else told(modelled),
        "versions": versions(),
    }


def _told(value: Any) -> Any:
    """Return what JSON can hold of keyword arguments; infinite bounds become text."""
    if isinstance(value, Mapping):
        return {str(key): _told(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_told(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _parser() -> Parser:
    parser = Parser(PROG, "Play the greedy policy of a run, and tell what each episode returns.")
    parser.add_argument(
        "--episodes", type=whole_number(1, 10_000), default=20, metavar="N", help="how many (20)"
    )
    parser.add_argument(
        "--seed",
        type=whole_number(0, 2**63 - 1),
        metavar="S",
        help="of the episodes (the run's own, which gives the episodes of its evaluations)",
    )
    parser.add_argument(
        "--env-kwargs", metavar="MAPPING", help="change keyword arguments of the environment, as in '{g: 5}'"
    )
    parser.add_argument(
        "--in-model",
        action="store_true",
        help="play the learned model too, from the same first observations",
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        "--video", type=Path, metavar="FILE", help="film the first episodes: FILE.mp4 or FILE.gif"
    )
    shown.add_argument("--render", choices=["human"], help="show all episodes in a window")
    parser.add_argument(
        "--video-episodes",
        type=whole_number(1, 1000),
        default=1,
        metavar="K",
        help="how many episodes are filmed, one after the other (1)",
    )
    parser.add_argument(
        "--steps-per-second",
        type=whole_number(1, 10_000),
        metavar="F",
        help="the speed of life on film, where the environment does not tell or is wrong (dm_control)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="where to store the results (RUN/evaluation.json)"
    )
    return parser


if __name__ == "__main__":
    main()
