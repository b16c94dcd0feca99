"""The environment model: learned and known transition, reward and is-done functions, and their fit."""
