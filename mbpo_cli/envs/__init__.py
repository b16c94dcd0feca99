"""Real environments: construction, spaces, collection of experience, known reward and is-done functions."""
