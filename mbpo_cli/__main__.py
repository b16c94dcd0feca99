"""`python -m mbpo_cli` is `mbpo-train`."""

from mbpo_cli.cli import main

main()
