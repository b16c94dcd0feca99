"""How a run may end before its time: what is raised, and the exit code that goes with it."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration is wrong; the message is one line that names key, value and what would be right."""

    exit_code = 2

    def __init__(self, message: object) -> None:
        """Say what is wrong."""
        super().__init__(one_line(message))


class RunFailed(RuntimeError):
    """A run ended with an error."""

    exit_code = 1


class EnvironmentFailed(RunFailed):
    """An environment cannot go on; the message names it, the step and the reason."""

    exit_code = 3


class Diverged(RunFailed):
    """A number of the training is not finite, or far beyond what it can be; the message names it."""

    exit_code = 4


class NoUsableCheckpoint(RunFailed):
    """There are checkpoints, or were, and none can be used; the message says what is wrong with each."""

    exit_code = 5


class StorageFailed(RunFailed):
    """The disk is full or broken; the message names the file and the free space."""

    exit_code = 6


class Busy(RunFailed):
    """Another process works in the run directory; the message says which."""

    exit_code = 75


class Interrupted(KeyboardInterrupt):
    """A run was told to stop, and has kept its state.

    Attributes:
        exit_code: 130 after Ctrl-C, 143 after any other signal or the time limit.
    """

    def __init__(self, by_keyboard: bool) -> None:
        """Tell Ctrl-C from all else."""
        super().__init__()
        self.exit_code = 130 if by_keyboard else 143


def one_line(error: object) -> str:
    """Return a message without line breaks, or whatever else a terminal would not print but obey."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))
