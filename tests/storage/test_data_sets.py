"""Files of recorded experience: written and read to the bit, and damaged ones named."""

from __future__ import annotations

import importlib.util
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest

from mbpo_cli.failures import ConfigError
from mbpo_cli.storage import data_sets

find = importlib.util.find_spec


def arrays() -> data_sets.Arrays:
    g = np.random.default_rng(0)
    return {
        "observations": g.normal(size=(50, 3)).astype(np.float32),
        "actions": g.integers(2, size=50),
        "rewards": g.normal(size=50),
        "terminals": g.random(50) < 0.1,
    }


def same(one: data_sets.Arrays, other: data_sets.Arrays) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name]) for name in one
    )


@pytest.mark.parametrize("suffix", data_sets.SUFFIXES)
def test_what_is_written_is_read_to_the_bit(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"data{suffix}"
    path.write_bytes(b"an older file")
    data_sets.write(path, arrays())
    assert same(data_sets.read(str(path)), arrays())
    assert list(tmp_path.iterdir()) == [path]


def test_other_arrays_and_groups_are_left_out(tmp_path: Path) -> None:
    path, expected = tmp_path / "d4rl.hdf5", {**arrays(), "observations/a": np.zeros((50, 2))}
    del expected["observations"]
    with h5py.File(path, "w") as file:
        for name, array in expected.items():
            file[name] = array
        file["infos/qpos"] = np.zeros((50, 9))
        file["metadata/algorithm"] = "SAC"
    assert same(data_sets.read(str(path)), expected)
    more: dict[str, Any] = {"infos": np.zeros(3), **expected}
    np.savez(tmp_path / "data.npz", **more)
    assert same(data_sets.read(str(tmp_path / "data.npz")), expected)


class Trap:
    """What unpickling would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("sprung"),)


def write_npz(path: Path, **changes: Any) -> None:
    everything: dict[str, Any] = {**arrays(), **changes}
    np.savez(path, **everything)


def truncate(path: Path) -> None:
    write_npz(path)
    path.write_bytes(path.read_bytes()[:-300])


def flip(path: Path) -> None:
    write_npz(path)
    data = bytearray(path.read_bytes())
    data[400] ^= 255
    path.write_bytes(data)


def huge(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }"
        file.writestr("rewards.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


def whole_hdf5(path: Path) -> bytes:
    data_sets.write(path, arrays())
    return path.read_bytes()


DAMAGES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "no file": ("a.npz", lambda path: None, "there is no such file"),
    "a folder": ("a.npz", Path.mkdir, "there is no such file"),
    "empty": ("a.npz", Path.touch, "cannot be read: No data left in file"),
    "text": ("a.npz", lambda path: path.write_text("obs,act\n1,2\n"), "cannot be read: "),
    "truncated": ("a.npz", truncate, "cannot be read: File is not a zip file"),
    "flipped": ("a.npz", flip, "observations: cannot be read: Bad CRC-32"),
    "one array": ("a.npz", lambda path: np.save(path.open("wb"), np.zeros(3)), "is a single array, not an"),
    "pickle": ("a.npz", lambda path: path.write_bytes(pickle.dumps(Trap())), "cannot be read: "),
    "objects": (
        "a.npz",
        lambda path: write_npz(path, rewards=np.array([Trap()], object)),
        "rewards: cannot be read: Object arrays cannot be loaded when allow_pickle=False",
    ),
    "huge": ("a.npz", huge, "rewards: cannot be read: "),
    "no hdf5": ("a.hdf5", lambda path: path.write_bytes(b"hdf5"), "cannot be read: Unable to"),
    "empty hdf5": ("a.h5", Path.touch, "cannot be read: Unable to"),
    "cut hdf5": (
        "a.hdf5",
        lambda path: path.write_bytes(whole_hdf5(path)[:-900]),
        "cannot be read: Unable to",
    ),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_nothing_is_unpickled(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, make, message = DAMAGES[damage]
    monkeypatch.chdir(tmp_path)
    make(tmp_path / name)
    with pytest.raises(ConfigError) as error:
        data_sets.read(str(tmp_path / name))
    assert str(error.value).startswith(message)
    assert not (tmp_path / "sprung").exists()


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.hdf5"
    data_sets.write(path, arrays())
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("h5py", "minari") else find(name)
    )
    with pytest.raises(ConfigError, match=r"pip install 'mbpo-cli\[hdf5\]'; \.npz needs none"):
        data_sets.read(str(path))
    with pytest.raises(ConfigError, match=r"needs this package's extra: pip install 'mbpo-cli\[minari\]'"):
        data_sets.read("pendulum/recorded-v0")


@pytest.mark.parametrize(
    ("name", "is_id"),
    [("pendulum/recorded-v0", True), ("a-v12", True), ("/data/a-v1", False), ("a.npz", False), ("v1", False)],
)
def test_names_of_minari_data_sets(
    name: str, is_id: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert data_sets.is_minari_id(name) == is_id
    if is_id:  # a run of that name comes first
        (tmp_path / name).mkdir(parents=True)
        assert not data_sets.is_minari_id(name)


def episode(first: int, num_steps: int, obs: Any, terminates: bool) -> SimpleNamespace:
    """An episode as Minari gives it."""
    is_last = np.arange(num_steps) == num_steps - 1
    return SimpleNamespace(
        observations=obs,
        actions=np.arange(first, first + num_steps),
        rewards=np.ones(num_steps),
        terminations=is_last & terminates,
        truncations=is_last & (not terminates),
    )


def test_minaris_episodes_are_joined_with_the_observation_after_each_step() -> None:
    found = data_sets.joined(
        [episode(0, 2, np.arange(3.0), True), episode(2, 3, np.arange(10.0, 14.0), False)]
    )
    assert found["observations"].tolist() == [0, 1, 10, 11, 12]
    assert found["next_observations"].tolist() == [1, 2, 11, 12, 13]
    assert found["actions"].tolist() == [0, 1, 2, 3, 4]
    assert found["terminals"].tolist() == [False, True, False, False, False]
    assert found["timeouts"].tolist() == [False, False, False, False, True]


def test_minaris_channels_have_names() -> None:
    obs = {"a": np.zeros((3, 2)), "b": np.arange(3.0)}
    assert data_sets.joined([episode(0, 2, obs, True)])["next_observations/b"].tolist() == [1, 2]
    found = data_sets.joined([episode(0, 2, tuple(obs.values()), True)])
    assert found["observations/1"].tolist() == [0, 1]


def test_incomplete_minari_data_are_named() -> None:
    with pytest.raises(ConfigError, match="has no episodes"):
        data_sets.joined([])
    with pytest.raises(ConfigError, match="observations: episode 1 has 2, but 2 steps"):
        data_sets.joined([episode(0, 1, np.zeros(2), True), episode(1, 2, np.zeros(2), True)])


@pytest.mark.filterwarnings("ignore::UserWarning:minari")  # of authors and versions that are not given
@pytest.mark.skipif(find("minari") is None, reason="needs the extra minari")
def test_a_minari_data_set_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import minari
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env, episodes = gym.make("Pendulum-v1"), []
    for seed in range(2):
        observations, actions = [env.reset(seed=seed)[0]], []
        outcomes: list[list[Any]] = []
        while not (outcomes and outcomes[-1][-1]):
            actions.append(env.action_space.sample())
            obs, *outcome = env.step(actions[-1])
            observations.append(obs)
            outcomes.append(outcome[:3])
        values = (np.stack(observations), np.stack(actions), *map(np.array, zip(*outcomes, strict=True)))
        names = ("observations", "actions", "rewards", "terminations", "truncations")
        episodes.append(EpisodeBuffer(id=seed, **dict(zip(names, values, strict=True))))
    minari.create_dataset_from_buffers("pendulum/recorded-v0", buffer=episodes, env=env)
    found = data_sets.read("pendulum/recorded-v0")
    played = np.concatenate([each.observations[:-1] for each in episodes])
    assert np.array_equal(found["observations"], played)
    assert found["timeouts"].nonzero()[0].tolist() == [199, 399]
    with pytest.raises(
        ConfigError, match="no Minari data set on this machine; get it with: minari download a/b-v0"
    ):
        data_sets.read("a/b-v0")
