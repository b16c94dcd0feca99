"""What the user probably meant by a key that does not exist; names of MATLAB's options are known."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence

from mbpo_cli.config.matlab import OBJECTS, REMARKS
from mbpo_cli.config.typed import Config, options_in

Compose = Callable[[Sequence[str]], Config]
"""From choices of groups to a configuration with them."""

MAX_SHOWN, MIN_LETTERS = 4, 4
# Names of other programs and of papers: an option, or the last part of its key.
ALIASES = {
    "batch_size": "mini_batch_size",
    "buffer_size": "agent.experience_buffer_length",
    "ensemble_size": "model.transition.num_networks",
    "env_id": "env.id",
    "env_name": "env.id",
    "epochs": "mbpo.num_epoch_for_training_model",
    "gamma": "agent.discount_factor",
    "gpu": "device",
    "gradient_steps": "agent.num_gradient_steps_per_update",
    "learning_rate": "learn_rate",
    "learning_starts": "agent.num_warm_start_steps",
    "lr": "learn_rate",
    "n_envs": "env.num_envs",
    "net_arch": "agent.hidden_sizes",
    "rollout_length": "mbpo.model_rollout_options.horizon",
    "steps": "trainer.num_env_steps",
    "tau": "agent.target_smooth_factor",
    "total_timesteps": "trainer.num_env_steps",
    "train_freq": "agent.learning_frequency",
    "utd_ratio": "agent.num_gradient_steps_per_update",
    "warmup_steps": "agent.num_warm_start_steps",
}

TITLES = {title.lower(): title for title in OBJECTS}
NAMES = {name.lower(): name for entry in OBJECTS.values() for name in entry.options}


def suggest(key: str, config: Config, compose: Compose) -> str | None:
    """Say in words what to write instead of `key`, or None if nothing is like it.

    `compose` is asked for options of MATLAB that `config` lacks, such as those of another agent.
    """
    if answer := _of_matlab(key, config, compose):
        return answer
    known = [name for name, _, _, _ in options_in(config, groups=True)]
    *groups, last = key.split(".")
    usual = ALIASES.get(last.lower().replace("-", "_"), last)
    typed = ".".join([*groups, usual.rpartition(".")[2]])
    near = [usual] if usual in known else difflib.get_close_matches(typed, known, n=1, cutoff=0.75)
    if not near:
        ends = [name.rpartition(".")[2] for name in known]
        meant = difflib.get_close_matches(usual, ends, n=1, cutoff=0.75)
        near = [name for name, end in zip(known, ends, strict=True) if [end] == meant]
    if not near and len(last) >= MIN_LETTERS:
        near = [name for name in known if last.lower() in name.rpartition(".")[2].split("_")]
    more = f", or one of {len(near) - MAX_SHOWN} more" if len(near) > MAX_SHOWN else ""
    return f"did you mean {' or '.join(near[:MAX_SHOWN])}{more}?" if near else None


def _of_matlab(key: str, config: Config, compose: Compose) -> str | None:
    """Say which options a name of MATLAB stands for, or why there is none; None if it is no such name."""
    *groups, name = key.lower().split(".")
    own = {option for option, _, _, _ in options_in(config, groups=True)}
    known = {*TITLES, *NAMES, *(part for option in own for part in option.split("."))}
    groups = [group for group in groups if group in known]
    best, found, needed = -1, [], ""
    for choices, candidate in _configs([*groups, name], config, compose):
        score, keys = _meant(groups, name, candidate)
        if keys and score > best:
            needs = [] if keys[0] in own else [item for item in choices if keys[0].startswith(_group(item))]
            best, found, needed = score, keys, f", with {' '.join(needs)}" if needs else ""
        if best == len(groups):
            break
    remark = _remark(groups, name)
    if found:
        return f"did you mean {' and '.join(found)}{needed}?{f' ({remark})' if remark else ''}"
    if name in TITLES:
        title = TITLES[name]
        return f"the options of MATLAB's {title} lie in {' and '.join(OBJECTS[title].places)}"
    return f"MATLAB's {NAMES[name]} is no option here: {remark}" if name in NAMES else None


def _group(choice: str) -> str:
    """Return the key of the group that is chosen."""
    return choice.partition("=")[0].replace("/", ".")


def _remark(groups: Sequence[str], name: str) -> str:
    """Return what is said of an option of MATLAB, preferably as an option of the object that was typed."""
    name = NAMES.get(name, "")
    keys = [*(f"{TITLES[group]}.{name}" for group in groups if group in TITLES), name]
    return next((REMARKS[key] for key in keys if key in REMARKS), "").replace("`", "")


def _configs(
    words: Sequence[str], config: Config, compose: Compose
) -> Iterator[tuple[tuple[str, ...], Config]]:
    """Yield the user's configuration, then those in which MATLAB's objects with these names exist."""
    yield (), config
    for choices in dict.fromkeys(
        entry.choices
        for title, entry in OBJECTS.items()
        if entry.choices and {title.lower(), *map(str.lower, entry.options)} & set(words)
    ):
        yield choices, compose(choices)


def _meant(groups: Sequence[str], name: str, config: Config) -> tuple[int, list[str]]:
    """Return the options that a name of MATLAB stands for, and in how many of these groups they lie.

    Of several options, the nearest to what was typed is meant, with those beside it, which together say what
    MATLAB's option says.
    """
    options = list(options_in(config, groups=True))
    words = {
        key: {word.lower() for word in (key.rpartition(".")[2], *meaning.matlab)}
        for key, _, meaning, _ in options
    }
    objects = {group: OBJECTS[TITLES[group]] for group in groups if group in TITLES}
    ranked: dict[str, tuple[int, float]] = {}
    for key, _, meaning, _ in options:
        # Where the object has this option, it means those of its places only.
        elsewhere = any(
            not entry.has(key) and name in map(str.lower, entry.options) for entry in objects.values()
        )
        if name not in map(str.lower, meaning.matlab) or elsewhere:
            continue
        parts = key.split(".")
        around = [words[".".join(parts[:length])] for length in range(1, len(parts))]
        score = sum(
            any(group in names for names in around) or (group in objects and objects[group].has(key))
            for group in groups
        )
        typed = ".".join([*groups, name])
        ranked[key] = (score, difflib.SequenceMatcher(None, typed, key).ratio())
    if not ranked:
        return 0, []
    meant = max(ranked, key=lambda key: ranked[key])
    place = meant.rpartition(".")[0]
    return ranked[meant][0], [key for key in ranked if key.rpartition(".")[0] == place]
