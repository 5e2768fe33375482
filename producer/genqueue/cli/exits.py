"""How a command ends: a code for each kind of error."""

from enum import IntEnum

from genqueue import errors
from genqueue.errors import GenqueueError


class ExitCode(IntEnum):
    """How the command ended."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    CONFIG = 3
    INVALID_REQUEST = 4
    QUEUE_FULL = 5
    REDIS = 6
    NOT_FOUND = 7
    REJECTED = 8
    FAILED = 9
    EXPIRED = 10
    CANCELLED = 11
    TIMED_OUT = 12
    TOO_LATE = 13
    RESTARTED = 14
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """For ``--help`` and the README."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "done; also when whoever read our output has left",
    ExitCode.FAILURE: "something unexpected, a finding of doctor, or a part of the demo, or a worker, did not start",
    ExitCode.USAGE: "the command line cannot be understood",
    ExitCode.CONFIG: "a setting cannot work, or an extra is not installed",
    ExitCode.INVALID_REQUEST: "the request cannot run as it is; nothing was queued",
    ExitCode.QUEUE_FULL: "the generator's queue is at its limit; nothing was queued",
    ExitCode.REDIS: "Redis does not answer, or refuses",
    ExitCode.NOT_FOUND: "no such generation or dead letter, or its log is gone",
    ExitCode.REJECTED: "the model server refused the request",
    ExitCode.FAILED: "the model server, or the way to it, failed",
    ExitCode.EXPIRED: "the deadline passed",
    ExitCode.CANCELLED: "the generation was cancelled",
    ExitCode.TIMED_OUT: "an end that was waited for did not come in time",
    ExitCode.TOO_LATE: "nothing to cancel: the generation had ended",
    ExitCode.RESTARTED: "the text began anew behind --from-seq: what was read up to there is void",
    ExitCode.INTERRUPTED: "Ctrl-C; the generation goes on",
}

_CODES: tuple[tuple[type[GenqueueError], ExitCode], ...] = (
    (errors.ConfigError, ExitCode.CONFIG),
    (errors.InvalidRequestError, ExitCode.INVALID_REQUEST),
    (errors.QueueFullError, ExitCode.QUEUE_FULL),
    (errors.StoreError, ExitCode.REDIS),
    (errors.GenerationNotFoundError, ExitCode.NOT_FOUND),
    (errors.NotDeadError, ExitCode.NOT_FOUND),
    (errors.LogExpiredError, ExitCode.NOT_FOUND),
    (errors.LogBrokenError, ExitCode.NOT_FOUND),
    (errors.StreamRestartedError, ExitCode.RESTARTED),
    (errors.GenerationRejectedError, ExitCode.REJECTED),
    (errors.GenerationExpiredError, ExitCode.EXPIRED),
    (errors.GenerationCancelledError, ExitCode.CANCELLED),
    (errors.GenerationError, ExitCode.FAILED),
    (errors.ResultTimeoutError, ExitCode.TIMED_OUT),
)


def exit_code(error: GenqueueError) -> ExitCode:
    """The code with which the command reports ``error``."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.FAILURE)
