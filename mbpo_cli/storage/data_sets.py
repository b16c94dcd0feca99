"""Recorded experience in files: `.npz` and HDF5 with the arrays of D4RL, and data sets of Minari.

Knows formats and the names of arrays; does not know spaces, or what the numbers mean.
Source: Fu et al. 2020, "D4RL: Datasets for Deep Data-Driven Reinforcement Learning", for the names.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbpo_cli.failures import ConfigError, one_line
from mbpo_cli.storage.files import write_whole

Arrays = dict[str, NDArray[Any]]
"""Arrays by name, one row per step; channels of observations are named `observations/CHANNEL`."""

NAMES = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
SUFFIXES = (".npz", ".hdf5", ".h5")


def is_minari_id(name: str) -> bool:
    """Return True for a name such as `pendulum/recorded-v0` that is not that of a file or directory."""
    return re.fullmatch(r"[\w-]+(/[\w-]+)*-v\d+", name) is not None and not os.path.exists(name)


def read(name: str) -> Arrays:
    """Return the arrays in a file, or of a local Minari data set; other arrays than `NAMES` are left out.

    Nothing is unpickled, and nothing is downloaded.

    Raises:
        ConfigError: It cannot be read; the message does not repeat the name.
    """
    if is_minari_id(name):
        return _of_minari(name)
    if not Path(name).is_file():
        raise ConfigError("there is no such file")
    try:
        return _of_npz(name) if name.endswith(".npz") else _of_hdf5(name)
    except ConfigError:
        raise
    except Exception as error:  # whatever the libraries make of a file that may hold anything
        raise ConfigError(f"cannot be read: {one_line(error) or type(error).__name__}") from error


def write(path: Path, arrays: Arrays) -> None:
    """Replace a file atomically by one with these arrays, in the format that its suffix names."""
    contents = io.BytesIO()
    if path.suffix == ".npz":
        named: dict[str, Any] = {**arrays}
        np.savez_compressed(contents, **named)
    else:
        import h5py

        with h5py.File(contents, "w") as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=array, compression="gzip")
    write_whole(path, contents.getvalue())


def check_installed(suffix: str) -> None:
    """Check that files with a suffix can be read and written.

    Raises:
        ConfigError: A package is missing.
    """
    if suffix != ".npz" and importlib.util.find_spec("h5py") is None:
        raise ConfigError("HDF5 needs this package's extra: pip install 'mbpo-cli[hdf5]'; .npz needs none")


def _of_npz(name: str) -> Arrays:
    file = np.load(name, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ConfigError("is a single array, not an .npz file with named ones")
    with file:
        return {key: _whole(key, file) for key in file.files if _is_known(key)}


def _of_hdf5(name: str) -> Arrays:
    check_installed(".hdf5")
    import h5py

    arrays: Arrays = {}
    with h5py.File(name, "r") as file:
        for key in filter(_is_known, file):
            part = file[key]
            if isinstance(part, h5py.Group):
                arrays |= {f"{key}/{channel}": _whole(channel, part) for channel in part}
            else:
                arrays[key] = _whole(key, file)
    return arrays


def _is_known(name: str) -> bool:
    return name.partition("/")[0] in NAMES


def _whole(name: str, file: Mapping[str, Any]) -> NDArray[Any]:
    """Return an array; one that is damaged, or that holds Python objects, is named."""
    try:
        return np.asarray(file[name][()])
    except Exception as error:
        raise ConfigError(f"{name}: cannot be read: {one_line(error)}") from error


def _of_minari(name: str) -> Arrays:
    if importlib.util.find_spec("minari") is None:
        raise ConfigError(
            "there is no such file; a Minari data set of that name needs this package's extra: "
            "pip install 'mbpo-cli[minari]'"
        )
    import minari

    try:
        return joined(minari.load_dataset(name).iterate_episodes())
    except FileNotFoundError:
        raise ConfigError(
            f"no Minari data set on this machine; get it with: minari download {name}"
        ) from None


def joined(episodes: Iterable[Any]) -> Arrays:
    """Join Minari's episodes, which have one observation more than steps.

    Raises:
        ConfigError: There are none, or one has another number of observations.
    """
    columns: dict[str, list[NDArray[Any]]] = {}
    for number, episode in enumerate(episodes):
        steps = {"actions": episode.actions, "rewards": episode.rewards}
        steps |= {"terminals": episode.terminations, "timeouts": episode.truncations}
        for key, values in _channels("observations", episode.observations):
            if len(values) != len(episode.rewards) + 1:
                raise ConfigError(
                    f"{key}: episode {number} has {len(values):,}, but {len(episode.rewards):,} steps"
                )
            steps |= {key: values[:-1], f"next_{key}": values[1:]}
        for key, values in steps.items():
            columns.setdefault(key, []).append(np.asarray(values))
    if not columns:
        raise ConfigError("has no episodes")
    return {key: np.concatenate(parts) for key, parts in columns.items()}


def _channels(name: str, values: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the arrays of a Dict or Tuple of observations with their names, or that of a Box."""
    if isinstance(values, Mapping | tuple):
        parts = values.items() if isinstance(values, Mapping) else enumerate(values)
        yield from ((f"{name}/{key}", np.asarray(part)) for key, part in parts)
    else:
        yield name, np.asarray(values)
