"""Model-Based Policy Optimization (MBPO), run from the command line with Hydra configs."""

__version__ = "0.1.0"
