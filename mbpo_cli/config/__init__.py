"""Composing, typing and checking the configuration of a run, new or stored; its JSON schema."""
