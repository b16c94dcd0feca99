"""Show episodes: in a window, or as a GIF file, or as MP4 with the extra `video`.

Knows environments and frames; does not know where the policy comes from.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mbpo_cli.build import build_env
from mbpo_cli.config.typed import Config
from mbpo_cli.envs.environment import Environment, Step
from mbpo_cli.evaluation.evaluate import Outcome, play
from mbpo_cli.failures import ConfigError, Stopped, one_line
from mbpo_cli.nn.seeding import episode_seeds
from mbpo_cli.trainer import Trainer
from mbpo_cli.types import Policy

log = logging.getLogger(__name__)

# The highest frame rates that players reproduce. Browsers slow down GIFs above 50, and GIF delays are whole
# hundredths of a second.
MAX_FRAMES_PER_SECOND = {".gif": 34, ".mp4": 60}


def render_off_screen() -> None:
    """Let environments render without a screen, if there is none.

    MuJoCo and pygame read this when they are first imported.
    """
    if not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


def rendered_env(config: Config, argument: str, mode: str) -> Environment:
    """Make an environment that renders in one of Gymnasium's modes.

    Raises:
        ConfigError: It does not support the mode that the command-line argument needs.
    """
    with closing(build_env(config)) as plain:  # Gymnasium only warns about a mode that is not supported
        supported = plain.render_modes
    if mode not in supported:
        modes = ", ".join(supported) or "none"
        raise ConfigError(
            f"{argument}: {config.env.id} cannot render in mode {mode}; supported modes: {modes}"
        )
    return build_env(config, mode)


def play_filmed(
    config: Config,
    policy: Policy,
    seeds: Sequence[int],
    path: Path,
    steps_per_second: float | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Outcome]:
    """Play an episode per seed, one after the other, and film them in a .gif or .mp4 file.

    `steps_per_second` is the environment's speed in real time; None uses the speed that it declares.

    Raises:
        Stopped: `should_stop`, asked before every step, returned True.
    """
    with closing(rendered_env(config, "--video", "rgb_array")) as env:
        speed = steps_per_second or env.frames_per_second
    outcomes = []
    with Film(path, speed) as film:
        for seed in seeds:
            outcomes += _filmed(config, policy, seed, film, should_stop)
    return outcomes


def film(config: Config, trainer: Trainer, path: Path) -> None:
    """Film the first episodes of the evaluation in a file, and show it; an error is only logged."""

    def policy(obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
        return trainer.agent.act(obs.to(trainer.device), explore)

    render_off_screen()
    seeds = episode_seeds(config.seed, "evaluation", config.trainer.film_episodes)
    try:
        play_filmed(config, policy, seeds, path, should_stop=trainer.should_stop)
    except Stopped:
        log.warning("there is no film: the run was stopped")
    except Exception as error:  # of whatever renders
        log.warning("there is no film: %s", one_line(error))
    else:
        trainer.logger.show(trainer.env_steps, {"eval/film": path})


def _filmed(
    config: Config, policy: Policy, seed: int, film: Film, should_stop: Callable[[], bool]
) -> list[Outcome]:
    """Play an episode and film every `stride`-th step, the first and the last."""
    envs: list[Environment] = []
    steps = itertools.count()

    def make() -> Environment:
        envs.append(build_env(config, "rgb_array"))
        return envs[0]

    def filmed_policy(obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
        if next(steps) % film.stride == 0:
            film.add(envs[0].render())
        return policy(obs, explore)

    def add_last(episode: int, action: Tensor, step: Step) -> None:
        if step.terminated or step.truncated:
            film.add(envs[0].render())

    return play(make, [seed], filmed_policy, should_stop=should_stop, on_step=add_last)


class Film:
    """A context in which frames are added to a file; the file appears at its end, or not at all on an error.

    Attributes:
        stride: Steps per frame, so that the film plays in real time.
    """

    def __init__(self, path: Path, steps_per_second: float) -> None:
        self.stride = math.ceil(steps_per_second / MAX_FRAMES_PER_SECOND[path.suffix])
        self._frames_per_second = steps_per_second / self.stride
        self._path = path
        self._temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
        self._temporary.unlink(missing_ok=True)  # perhaps a link, planted in a run directory
        self._pictures: list[Image.Image] = []
        self._encoder: Any = None  # a generator of imageio_ffmpeg, once there is a frame

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Add a frame, shape (height, width, 3), of the same shape as the others."""
        if self._path.suffix == ".gif":
            self._pictures.append(Image.fromarray(frame).quantize(method=Image.Quantize.FASTOCTREE))
            return
        if self._encoder is None:
            import imageio_ffmpeg

            self._encoder = imageio_ffmpeg.write_frames(
                str(self._temporary),
                (frame.shape[1], frame.shape[0]),
                fps=self._frames_per_second,
                macro_block_size=2,  # the color format that all players support needs even sides
                ffmpeg_log_level="error",
            )
            self._encoder.send(None)
        self._encoder.send(np.ascontiguousarray(frame))

    def __enter__(self) -> Film:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        try:
            if self._encoder is not None:
                self._encoder.close()
            elif self._pictures and kind is None:
                first, *others = self._pictures
                delay_ms = 10 * round(100 / self._frames_per_second)
                first.save(self._temporary, save_all=True, append_images=others, duration=delay_ms, loop=0)
            if kind is None:
                os.replace(self._temporary, self._path)
        finally:
            self._temporary.unlink(missing_ok=True)
