"""What can go wrong, and who can put it right.

GptflowError                what failed, the value, what to do; one line; exit code 1
├── ConfigError             a setting or argument is wrong; every wrong one is listed; exit code 2
├── DataError               the text, file or dataset itself is not usable
├── ArtifactError           something in the store is missing, damaged or not what it says
│   └── CheckpointError     the same for weights and training state
├── StorageError            the disk is full, read-only or closed to us; a retry would only meet it again
├── TrainingError           training cannot go on (NaN, a spike); retrying would repeat it
├── BudgetError             training went over its budget; state is saved; a higher budget goes on
├── LockLostError           another run took over this one's lock; nothing more may be written
├── Interrupted             asked to stop by a signal; state is saved; exit code 143 or 130
└── TransientError          time may heal it: these, and only these, are retried
    ├── NetworkError        a server did not answer, or answered that it cannot now
    ├── TrackingError       the tracking server is out of reach
    ├── LockHeldError       another run is writing the same artifact
    └── ChildDiedError      the training process was killed from outside
"""

from __future__ import annotations

import re


class GptflowError(Exception):
    """Base of all errors that a person is meant to read; `str` is one plain message."""

    exit_code = 1


class ConfigError(GptflowError, ValueError):
    """A wrong setting. A ValueError too, so that a schema validator collects it with the others."""

    exit_code = 2

    def __init__(self, problems: str | list[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(GptflowError):
    """Input text, file or dataset that cannot be used."""


class ArtifactError(GptflowError):
    """An artifact that is missing, damaged, or not of the kind asked for."""


class CheckpointError(ArtifactError):
    """Weights or training state that are missing, damaged or do not fit the model."""


class StorageError(GptflowError):
    """No room, or no right, to write where the step must. What was finished before stands."""


class TrainingError(GptflowError):
    """Training met a state that a retry would only meet again."""


class BudgetError(GptflowError):
    """Stopped, saved, since the run took more than its budget. Not retried: only a person can raise it."""


class LockLostError(GptflowError):
    """This run was taken for dead and another has its lock: a retry would only compete with that one."""

    exit_code = 3


class Interrupted(GptflowError):  # noqa: N818 - not a fault: somebody asked
    """Stopped by a signal after the state was saved."""

    def __init__(self, message: str, signum: int) -> None:
        self.signum = signum
        self.exit_code = 128 + signum
        super().__init__(message)


class TransientError(GptflowError):
    """What time may heal. The only kind that tasks retry."""


class NetworkError(TransientError):
    """A remote did not answer as it should. `retry_after` is the remote's own wish in seconds; it is told."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        self.retry_after = retry_after
        super().__init__(f"{message} (it asks to wait {retry_after:.0f} s)" if retry_after else message)


class TrackingError(TransientError):
    """The tracking server did not take what was sent."""


class LockHeldError(TransientError):
    """Another living run holds the artifact."""


class ChildDiedError(TransientError):
    """The training process ended by a signal that it did not handle."""


def first_line(error: BaseException) -> str:
    """What any error says, as one short line; its class where it says nothing.

    Of a connection that could not be made, the HTTP library's account of its pools and retries is left out.
    """
    if "Max retries exceeded" in str(error) and (cause := re.search(r"\[Errno -?\d+\] ([^'\")]+)", str(error))):
        return cause[1].lower()
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
