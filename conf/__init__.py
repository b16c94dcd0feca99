"""Hydra configuration of mbpo-train: values only."""
