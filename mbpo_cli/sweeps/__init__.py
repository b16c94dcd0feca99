"""Many runs: what their jobs are called, how they are run side by side, how the best are searched for."""
