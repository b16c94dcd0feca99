"""Off-policy base agents, each a complete algorithm in a file of its own."""
