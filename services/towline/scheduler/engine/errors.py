"""Errors that a caller sees.

::

    SchedulerError
    ├── NotFoundError           NOT_FOUND
    ├── AlreadyExistsError      ALREADY_EXISTS
    ├── PreconditionError       FAILED_PRECONDITION
    ├── InvalidRequestError     INVALID_ARGUMENT
    ├── TooLargeError           RESOURCE_EXHAUSTED
    └── NotDurableError         UNAVAILABLE      (the caller may try again)
"""

from typing import ClassVar


class SchedulerError(Exception):
    """Something a caller is told about; ``code`` names the gRPC status."""

    code: ClassVar[str] = "UNKNOWN"


class NotFoundError(SchedulerError):
    """No such instance."""

    code = "NOT_FOUND"


class AlreadyExistsError(SchedulerError):
    """An instance of that id exists and may not be replaced."""

    code = "ALREADY_EXISTS"


class PreconditionError(SchedulerError):
    """The instance is not in a state that allows this."""

    code = "FAILED_PRECONDITION"


class InvalidRequestError(SchedulerError):
    """The request makes no sense as it is."""

    code = "INVALID_ARGUMENT"


class TooLargeError(SchedulerError):
    """A payload is over the limit."""

    code = "RESOURCE_EXHAUSTED"


class NotDurableError(SchedulerError):
    """The change could not be committed and did not happen."""

    code = "UNAVAILABLE"
