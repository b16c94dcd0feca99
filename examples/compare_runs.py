"""Compare two runs, and then two methods, with intervals instead of impressions."""

# %% Train with and without the model. In parallel: `mbpo-train -m env=pendulum mbpo=on,off seed=0,1,2`.
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap

from mbpo_cli import evaluation_of, load, make_config, train
from mbpo_cli.commands.report import report
from mbpo_cli.report.groups import grouped
from mbpo_cli.report.runs import find, read
from mbpo_cli.report.verdict import compare

RUNS = Path("outputs/examples/compare")
for mbpo in ("on", "off"):
    for seed in range(3):
        config = make_config("env=pendulum", f"mbpo={mbpo}", f"seed={seed}", "trainer.num_env_steps=600")
        train(config, RUNS / f"{mbpo}_{seed}")

# %% Two runs: is one policy better? Runs of one seed are evaluated on the same episodes, so look at pairs.
with_model, alone = (evaluation_of(load(RUNS / f"{mbpo}_0"), 50).returns for mbpo in ("on", "off"))
gains = np.subtract(with_model, alone)
low, high = bootstrap((gains,), np.mean, rng=0).confidence_interval
print(f"with the model, seed 0 returns {gains.mean():.0f} [{low:.0f}, {high:.0f}] more per episode")

# %% Two methods: is one better on other seeds, too? Each run counts once, by its score.
theirs, ours = grouped(run for run in map(read, find([RUNS])) if run is not None)
comparison = compare(ours, theirs)
print(*(f"{heading}: {value}" for heading, value in comparison.cells().items()), sep="\n")

# %% The same as a page with curves.
report([RUNS], Path("outputs/examples/report"))
