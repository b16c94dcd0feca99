"""When a run evaluates, saves and ends: intervals, limits, and criteria of what is good enough."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mbpo_cli.evaluation.evaluate import Evaluation
from mbpo_cli.options import option, resolve

Criterion = Literal[
    "none",
    "average_reward",
    "episode_reward",
    "average_steps",
    "episode_count",
    "global_step_count",
    "evaluation",
    "custom",
]
CRITERIA = (
    "{} the average return or length of the last trainer.score_averaging_window_length episodes, the return "
    "of an episode, the number of episodes or environment steps, or the mean return of an evaluation reaches "
    "{}; custom = a function of one's own returns true; none = never"
)
VALUE = "value that {} must reach; for custom the function, as package.module.name"

# Pictures per run, the last one at its end: they change slowly, and each takes half a second.
NUM_PICTURES = 3


@dataclass(frozen=True)
class TrainingRecord:
    """What a criterion knows of a training; a function of one's own gets it as its only argument.

    Attributes:
        env_steps: Real environment steps so far.
        episodes: Finished episodes so far.
        last_episodes: Undiscounted return and number of steps of the last finished episodes, oldest first: of
            `trainer.score_averaging_window_length`, or of all if there are fewer.
        evaluation: The last evaluation; None before the first.
    """

    env_steps: int
    episodes: int
    last_episodes: Sequence[tuple[float, int]]
    evaluation: Evaluation | None

    @property
    def returns(self) -> list[float]:
        """The returns of the last episodes."""
        return [total_reward for total_reward, _ in self.last_episodes]

    @property
    def lengths(self) -> list[int]:
        """The numbers of steps of the last episodes."""
        return [length for _, length in self.last_episodes]


@dataclass
class TrainerOptions:
    """How long to train, and how often to evaluate and log."""

    num_env_steps: int = option(
        "real environment steps to train for; 0 = learn from data alone", low=0, high=10**12
    )
    max_episodes: int | None = option(
        "finished episodes after which training ends; null = no limit", low=1, matlab="MaxEpisodes"
    )
    stop_training_criteria: Criterion = option(
        CRITERIA.format("training ends when", "stop_training_value"), matlab="StopTrainingCriteria"
    )
    stop_training_value: float | str | None = option(
        VALUE.format("stop_training_criteria"), matlab="StopTrainingValue"
    )
    score_averaging_window_length: int = option(
        "last episodes over which criteria average", low=1, high=10_000, matlab="ScoreAveragingWindowLength"
    )
    evaluate_every_steps: int = option(
        "environment steps between two evaluations", low=1, matlab="EvaluationFrequency"
    )
    num_eval_episodes: int = option("episodes per evaluation", low=1, high=10_000, matlab="NumEpisodes")
    num_score_evaluations: int = option("last evaluations whose mean return is the run's score", low=1)
    log_every_steps: int = option("environment steps over which logged metrics are averaged", low=1)
    diagnostics: bool = option(
        "true = draw the learning curve and examine model and critics after each evaluation, with pictures"
    )
    film_episodes: int = option(
        "episodes of the greedy policy that are filmed at the end of the training, in film.gif; 0 = none",
        low=0,
        high=100,
    )
    max_hours: float | None = option(
        "hours until the run saves and stops; null = no limit", above=0, high=10**5
    )
    events_required: bool = option("true = fail if the TensorBoard file cannot be written; false = warn")

    def __post_init__(self) -> None:
        check_criterion("stop_training", self.stop_training_criteria, self.stop_training_value)

    def reason_to_stop(self, record: TrainingRecord) -> str | None:
        """Return in words why training ends before its last step, or None."""
        if self.max_episodes is not None and record.episodes >= self.max_episodes:
            return f"the number of episodes reached trainer.max_episodes={self.max_episodes}"
        criterion, value = self.stop_training_criteria, self.stop_training_value
        return reason(criterion, value, record, self.score_averaging_window_length)

    def picture_is_due(self, env_steps: int) -> bool:
        """Return True for the first evaluation in each of `NUM_PICTURES` equal parts of the training."""
        last = max(env_steps - self.evaluate_every_steps, 0)
        parts = [NUM_PICTURES * step // max(self.num_env_steps, 1) for step in (last, env_steps)]
        return parts[0] < parts[1] or self.num_env_steps == 0


@dataclass
class CheckpointOptions:
    """When the state of a run is saved, and how many checkpoints are kept."""

    every_steps: int | None = option(
        "environment steps between two checkpoints; null = no limit in steps", low=1, high=10**12
    )
    every_minutes: float | None = option(
        "minutes between two checkpoints; null = no limit in time", above=0, high=10**6
    )
    keep: int = option(
        "number of latest checkpoints to keep, besides that of the best evaluation", low=2, high=1000
    )
    save_agent_criteria: Criterion = option(
        CRITERIA.format("an agent is saved, after an episode or an evaluation, when", "save_agent_value"),
        matlab="SaveAgentCriteria",
    )
    save_agent_value: float | str | None = option(
        VALUE.format("save_agent_criteria"), matlab="SaveAgentValue"
    )
    keep_saved: int = option(
        "number of latest checkpoints to keep of those that save_agent_criteria saved", low=1, high=1000
    )

    def __post_init__(self) -> None:
        check_criterion("save_agent", self.save_agent_criteria, self.save_agent_value)


def check_criterion(prefix: str, criterion: Criterion, value: float | str | None) -> None:
    """Raise a ValueError that names the option if the value is none for the criterion."""
    shown = "null" if value is None else value
    key, needed = f"{prefix}_value={shown}", f"{prefix}_criteria={criterion} needs"
    if criterion == "none":
        if value is not None:
            raise ValueError(f"{key}: has no meaning with {prefix}_criteria=none")
    elif criterion != "custom":
        if not isinstance(value, float):
            raise ValueError(f"{key}: {needed} a number")
    elif not isinstance(value, str):
        raise ValueError(f"{key}: {needed} a function, as package.module.name")
    else:
        try:
            function = resolve(value)
        except ImportError as error:
            raise ValueError(f"{key}: {error}") from error
        if not callable(function):
            raise ValueError(f"{key}: is not a function")


def reason(
    criterion: Criterion, value: float | str | None, record: TrainingRecord, window: int
) -> str | None:
    """Return in words how a criterion is satisfied, or None if it is not.

    It sees the last `window` episodes, and averages are never of fewer.
    """
    if criterion == "none":  # asked at every step
        return None
    record = replace(record, last_episodes=record.last_episodes[-window:])  # a resumed run may have more
    if criterion == "custom":
        return f"{value} returned true" if resolve(str(value))(record) else None
    what, measured = _measured(criterion, record, window)
    if measured is None or not isinstance(value, float) or measured < value:
        return None
    shown = f"{measured:,.2f}".removesuffix(".00")
    return f"{what}, {shown}, reached {value:,g}"


def _measured(criterion: Criterion, record: TrainingRecord, window: int) -> tuple[str, float | None]:
    """Return what a criterion looks at, in words and as a number; None if there is none yet."""
    is_full = len(record.returns) == window
    match criterion:
        case "average_reward":
            what = f"the average return of {window} episodes"
            return what, statistics.fmean(record.returns) if is_full else None
        case "average_steps":
            what = f"the average length of {window} episodes"
            return what, statistics.fmean(record.lengths) if is_full else None
        case "episode_reward":
            return "the return of an episode", record.returns[-1] if record.returns else None
        case "episode_count":
            return "the number of episodes", record.episodes
        case "global_step_count":
            return "the number of environment steps", record.env_steps
        case _:  # evaluation
            last = record.evaluation
            return "the mean return of an evaluation", None if last is None else last.return_mean
