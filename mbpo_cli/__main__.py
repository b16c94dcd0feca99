"""`python -m mbpo_cli` is `mbpo-train`."""

from mbpo_cli.commands.train import main

main()
