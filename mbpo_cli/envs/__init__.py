"""Real environments: making them, their spaces, and what is known of their reward and termination."""
