"""Everything that a run keeps on disk: checkpoints, its directory, its records."""
