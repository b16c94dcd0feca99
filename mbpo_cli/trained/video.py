"""Show episodes: in a window, or as a GIF file, or as MP4 with the extra `video`.

Knows environments and frames; does not know where the policy comes from.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mbpo_cli.build import build_env
from mbpo_cli.config.typed import Config
from mbpo_cli.envs.environment import Environment
from mbpo_cli.evaluation.evaluate import Outcome, play
from mbpo_cli.failures import ConfigError
from mbpo_cli.types import Policy

Frame = NDArray[np.uint8]

# The highest frame rates that players reproduce. Browsers slow down GIFs above 50, and GIF delays are whole
# hundredths of a second.
MAX_FRAMES_PER_SECOND = {".gif": 34, ".mp4": 60}
FORMATS = tuple(MAX_FRAMES_PER_SECOND)


def check_available(path: Path) -> None:
    """Check that the encoder for a file is installed.

    Raises:
        ConfigError: It is not; the message names the extra.
    """
    if path.suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ConfigError(
            f"--video {path}: MP4 needs this package's extra: pip install 'mbpo-cli[video]'; .gif needs none"
        )


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
    config: Config, policy: Policy, seeds: Sequence[int], path: Path, steps_per_second: float | None
) -> list[Outcome]:
    """Play an episode per seed, one after the other, and film them.

    Args:
        config: Describes the environment.
        policy: Chooses the actions.
        seeds: The seeds of the episodes.
        path: The file to write, .gif or .mp4.
        steps_per_second: The environment's speed in real time; None uses the speed that it declares.

    Raises:
        ConfigError: The environment cannot render frames.
    """
    outcomes = []
    with ExitStack() as stack:
        env = stack.enter_context(closing(rendered_env(config, "--video", "rgb_array")))
        film = stack.enter_context(Film(path, steps_per_second or env.frames_per_second))

        def filmed_policy(obs: Tensor, explore: torch.Generator | None = None) -> Tensor:
            if next(steps) % film.stride == 0:
                film.add(env.render())
            return policy(obs, explore)

        for seed in seeds:
            steps = itertools.count()
            outcomes += [episode.outcome for episode in play([env], [seed], filmed_policy)]
            film.add(env.render())
    return outcomes


class Film:
    """A context in which frames are added to a file; the file appears at its end, or not at all on an error.

    Args:
        path: The file, .gif or .mp4.
        steps_per_second: The environment's speed in real time.

    Attributes:
        stride: Steps per frame, so that the film plays in real time.
    """

    def __init__(self, path: Path, steps_per_second: float) -> None:
        self.stride = math.ceil(steps_per_second / MAX_FRAMES_PER_SECOND[path.suffix])
        self._frames_per_second = steps_per_second / self.stride
        self._path = path
        self._temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
        self._pictures: list[Image.Image] = []
        self._encoder: Generator[None, Any, None] | None = None

    def add(self, frame: Frame) -> None:
        """Add a frame, shape (height, width, 3), of the same shape as the others."""
        if self._path.suffix == ".gif":
            self._pictures.append(Image.fromarray(frame).quantize(method=Image.Quantize.FASTOCTREE))
            return
        if self._encoder is None:
            self._encoder = self._started_encoder(frame.shape[1], frame.shape[0])
        self._encoder.send(np.ascontiguousarray(frame))

    def _started_encoder(self, width: int, height: int) -> Generator[None, Any, None]:
        import imageio_ffmpeg

        encoder: Generator[None, Any, None] = imageio_ffmpeg.write_frames(
            str(self._temporary),
            (width, height),
            fps=self._frames_per_second,
            macro_block_size=2,  # the color format that all players support needs even sides
            ffmpeg_log_level="error",
        )
        encoder.send(None)
        return encoder

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
