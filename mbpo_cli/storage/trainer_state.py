"""The state of a trainer, from which a run continues exactly.

Knows the attributes of the trainer; does not know where the state is stored.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

# The trainer's attributes in a checkpoint.
COUNTERS = (
    "env_steps",
    "gradient_steps",
    "num_model_trainings",
    "best_step",
    "_max_reward",
    "_generation_sizes",
    "_last_episodes",
    "_num_first_updates",
    "_num_recorded",
)
STREAMS = ("_exploration_stream", "_rollout_stream", "_mix_stream")
EVALUATIONS = ("evaluation", "best_evaluation")


def progress_of(trainer: Any) -> tuple[int | None, ...]:
    """Return numbers of which some change whenever training goes on."""
    return trainer.env_steps, trainer.num_model_trainings, trainer.gradient_steps, trainer.best_step


def _parts(trainer: Any) -> dict[str, Any]:
    parts = {"agent": trainer.agent, "logger": trainer.logger, "stopwatch": trainer.stopwatch}
    if trainer.model_based is not None:
        names = ("model", "fitter", "policy", "guard", "uncertainty")
        parts |= {name: getattr(trainer.model_based, name) for name in names}
    return parts


def state_of(trainer: Any) -> dict[str, Any]:
    """Return all state, except for the contents of the replay buffers."""
    evaluations = {name: getattr(trainer, name) for name in EVALUATIONS}
    # The name is that of older checkpoints, in which each new step brought one learning iteration.
    within_step = {"num_new_steps": trainer._num_iterations, "metrics": trainer.logger.unwritten}
    is_within_updates = bool(trainer.logger.unwritten) and not trainer._is_within_step
    return {
        **{name: getattr(trainer, name) for name in COUNTERS},
        **{name: getattr(trainer, name).get_state() for name in STREAMS},
        **{name: part.state_dict() for name, part in _parts(trainer).items()},
        **{name: None if found is None else asdict(found) for name, found in evaluations.items()},
        "collector": trainer.collector.state_dict(),
        "held_actions": trainer._warm_start.held,
        "_warm_start_stream": trainer._warm_start.stream.get_state(),
        **({"within_step": within_step} if trainer._is_within_step else {}),
        **({"unwritten": trainer.logger.unwritten} if is_within_updates else {}),
    }


def restore(trainer: Any, state: dict[str, Any]) -> bool:
    """Restore what `state_of` returned.

    Returns:
        True if the environments are exactly where they were.

    Raises:
        Stopped: `should_stop` returned True before they were there.
    """
    for name in COUNTERS:
        setattr(trainer, name, state.get(name, getattr(trainer, name)))
    for name in STREAMS:
        getattr(trainer, name).set_state(state[name])
    for name, part in _parts(trainer).items():
        if name in state:  # older checkpoints lack some
            part.load_state_dict(state[name])
    if trainer.model_based is not None and trainer.model_based.world is not None:
        trainer.model_based.world.refresh()
    for name in EVALUATIONS:
        stored = state[name]
        found = trainer.evaluation_of(stored["returns"], stored["lengths"]) if stored else None
        setattr(trainer, name, found)
    trainer._warm_start.held = state["held_actions"].clone()
    trainer._warm_start.stream.set_state(state["_warm_start_stream"])
    if "within_step" in state:
        trainer._is_within_step, trainer._num_iterations = True, state["within_step"]["num_new_steps"]
        trainer.logger.log(state["within_step"]["metrics"])
    trainer.logger.log(state.get("unwritten", {}))
    is_there: bool = trainer.collector.load_state_dict(state["collector"], trainer.should_stop)
    return is_there
