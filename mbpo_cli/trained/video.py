"""Pictures in a row as a file that plays: GIF, or MP4 with the extra `video`.

Knows frames; does not know what they show.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mbpo_cli.failures import ConfigError

Frame = NDArray[np.uint8]

# The most frames per second that players show as they are. Browsers slow down GIFs of more than 50, whose
# delays are whole hundredths of a second.
MOST_FRAMES_PER_SECOND = {".gif": 34, ".mp4": 60}
FORMATS = tuple(MOST_FRAMES_PER_SECOND)


def check_available(path: Path) -> None:
    """Check that what writes such a file is there.

    Raises:
        ConfigError: It is not; the message names the extra.
    """
    if path.suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ConfigError(
            f"--video {path}: MP4 needs this package's extra: pip install 'mbpo-cli[video]'; .gif needs none"
        )


class Film:
    """A file that is there when the last frame is in it, and not before.

    Attributes:
        stride: Of how many steps one is to be a frame, so that the film runs at the speed of life.
    """

    def __init__(self, path: Path, steps_per_second: float) -> None:
        """Begin a film that takes the place of `path` when it is closed."""
        self.stride = math.ceil(steps_per_second / MOST_FRAMES_PER_SECOND[path.suffix])
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
            self._encoder = self._started(frame.shape[1], frame.shape[0])
        self._encoder.send(np.ascontiguousarray(frame))

    def _started(self, width: int, height: int) -> Generator[None, Any, None]:
        import imageio_ffmpeg

        encoder: Generator[None, Any, None] = imageio_ffmpeg.write_frames(
            str(self._temporary),
            (width, height),
            fps=self._frames_per_second,
            macro_block_size=2,  # sides must be even for the colours that all players know
            ffmpeg_log_level="error",
        )
        encoder.send(None)
        return encoder

    def __enter__(self) -> Film:
        """Use as a context that ends the film."""
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        """Put the film where it belongs, or drop it after an error."""
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
