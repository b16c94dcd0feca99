"""How long a run trains."""

from __future__ import annotations

from dataclasses import dataclass

from mbpo_cli.options import option


@dataclass
class TrainerOptions:
    """How long to train, and how often to evaluate and log."""

    num_env_steps: int = option("real environment steps to train for", low=1, high=10**12)
    evaluate_every_steps: int = option("environment steps between two evaluations", low=1)
    num_eval_episodes: int = option("episodes per evaluation", low=1, high=10_000)
    num_score_evaluations: int = option("last evaluations whose mean return is the run's score", low=1)
    log_every_steps: int = option("environment steps over which logged metrics are averaged", low=1)
    diagnostics: bool = option("true = examine model and critics after each evaluation, with pictures")
    max_hours: float | None = option(
        "hours until the run saves and stops; null = no limit", above=0, high=10**5
    )
    events_required: bool = option("true = fail if the TensorBoard file cannot be written; false = warn")
