"""Model-Based Policy Optimization (MBPO), run from the command line with Hydra configs.

Throughout, "the page" is MathWorks' documentation page "Model-Based Policy Optimization (MBPO)
Agents", and "the paper" is Janner, Fu, Zhang and Levine, "When to Trust Your Model: Model-Based
Policy Optimization", NeurIPS 2019.
"""

__version__ = "0.1.0"
