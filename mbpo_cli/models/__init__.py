"""Learned and known functions of the environment: transition, reward, is-done; losses and fitting."""
