"""The errors that a person or the other side gets to see, and the exit codes that go with them.

    EvenfleetError                 exit 1, failed
    ├── ConfigError                exit 2, arguments or configuration
    ├── DataError                  exit 2, data that does not fit the model
    ├── RefusedError               exit 3, the other side said no
    ├── UnreachableError           exit 1, the other side did not answer
    ├── MessageError               a message from the network is not what it must be
    ├── ArtifactError              a file of a release is missing, damaged or not what its manifest says
    │   └── ReleaseError           the manifest itself
    ├── RuntimeMissingError        exit 1, an interpreter is not installed; names the command that installs it
    ├── ModelRefusedError          an interpreter cannot run this model
    ├── ResourceError              a build needs more than it was given
    ├── RunnerError                the measuring subprocess crashed, hung or answered nonsense
    └── StoreError                 the database or the outbox on disk

A message says what, what was expected, what was found, and what happens now or what to do. `ValueError` is kept
for programming mistakes.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3
EXIT_OUTSIDE = 4


class EvenfleetError(Exception):
    """Anything that ends in one line for a person."""

    exit_code = EXIT_FAILED


class ConfigError(EvenfleetError):
    """Arguments, environment or a configuration file."""

    exit_code = EXIT_USAGE


class DataError(EvenfleetError):
    """Labelled data that cannot be read, or that does not fit the model."""

    exit_code = EXIT_USAGE


class RefusedError(EvenfleetError):
    """The other side understood and said no."""

    exit_code = EXIT_REFUSED


class UnreachableError(EvenfleetError):
    """The other side did not answer."""


class MessageError(EvenfleetError):
    """A message from the network breaks the protocol; `reason` is the short word that dead letters are counted by."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class ArtifactError(EvenfleetError):
    """A file of a release is missing, damaged, or not what the manifest says."""


class ReleaseError(ArtifactError):
    """A manifest that cannot be read or contradicts itself."""


class RuntimeMissingError(EvenfleetError):
    """An interpreter that is not installed here."""


class ResourceError(EvenfleetError):
    """A build that needs more than it was given."""


class ModelRefusedError(EvenfleetError):
    """An interpreter that is installed but cannot run this model."""


class RunnerError(EvenfleetError):
    """The measuring subprocess crashed, hung or answered nonsense."""


class StoreError(EvenfleetError):
    """The database, or the outbox, on disk."""
