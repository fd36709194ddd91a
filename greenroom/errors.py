"""Every exception of Greenroom, with its wire code and whether it closes the connection. Knows nothing else.

The codes are part of the wire (docs/protocol_v1.md, "Errors") and never change their meaning.
"""

from __future__ import annotations


class GreenroomError(Exception):
    """Base of all errors that have a code.

    Attributes:
        code: stable, upper snake case, in the specification.
        fatal: True if the connection is closed after the error was sent.
        field: name of the request field that is to blame, or None.
        retry_after_s: seconds after which trying again makes sense, or None.
    """

    code = "INTERNAL"
    fatal = False

    def __init__(self, message: str, *, field: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s


class InternalError(GreenroomError):
    """Raised when the broker met a bug of its own; the request may or may not have had an effect."""


class ProtocolError(GreenroomError):
    """Raised when the peer's bytes are not frames and messages of this protocol. The connection is closed."""

    code = "PROTOCOL_ERROR"
    fatal = True


class VersionError(GreenroomError):
    """Raised when the peer speaks no protocol version that we speak."""

    code = "VERSION"
    fatal = True


class DeadlineError(GreenroomError):
    """Raised when the peer did not say hello, or finish a frame, in time."""

    code = "DEADLINE"
    fatal = True


class InvalidError(GreenroomError):
    """Raised when a field is missing, of the wrong type or out of its range; `field` names it."""

    code = "INVALID"


class UnknownVerbError(GreenroomError):
    """Raised when a request names a verb that this broker does not have."""

    code = "UNKNOWN_VERB"


class DeniedError(GreenroomError):
    """Raised when the session's role does not allow the verb."""

    code = "DENIED"


class TooLargeError(GreenroomError):
    """Raised when a payload, result or list is over a limit told in the greeting."""

    code = "TOO_LARGE"


class BusyError(GreenroomError):
    """Raised when the broker has too much in flight just now; nothing was stored, try again after `retry_after_s`."""

    code = "BUSY"


class FullError(GreenroomError):
    """Raised when a cap on waiting jobs, bytes, queues, tasks or parked requests is reached; nothing was stored."""

    code = "FULL"


class StoreFullError(GreenroomError):
    """Raised when the disk is close to full; nothing was stored, settles still work."""

    code = "STORE_FULL"


class DrainingError(GreenroomError):
    """Raised when the broker is stopping; come back to its successor."""

    code = "DRAINING"


class UnknownOutcomeError(GreenroomError):
    """Raised when a commit failed, or the reply was lost: the request may or may not be on disk. The broker ends then."""

    code = "UNKNOWN"
    fatal = True


class LeaseLostError(GreenroomError):
    """Raised when a lease is not, or no longer, the current one of its job. Nothing was changed."""

    code = "LEASE_LOST"


class NotFoundError(GreenroomError):
    """Raised when no job with this id was ever accepted."""

    code = "NOT_FOUND"


class GoneError(GreenroomError):
    """Raised when a job id was handed out once, but the job is not there any more (pruned from history)."""

    code = "GONE"


class DamagedError(GreenroomError):
    """Raised when what the disk has of a job, or of a submission, does not match its checksum. It is kept for a person."""

    code = "DAMAGED"


class FinishedError(GreenroomError):
    """Raised when a verb needs an unfinished job and this one is already finished."""

    code = "FINISHED"


class ConflictError(GreenroomError):
    """Raised when a job is in a state in which what was asked can't be done. The caller's fault."""

    code = "CONFLICT"


class KeyConflictError(GreenroomError):
    """Raised when a submission id was used before with another body."""

    code = "KEY_CONFLICT"


class ConfigError(GreenroomError):
    """Raised when a flag, environment variable or configuration file holds a bad value. Never on the wire."""

    code = "CONFIG"


class StoreError(GreenroomError):
    """Raised when the store cannot be opened: in use, unwritable, corrupt or of a newer version. Never on the wire."""

    code = "STORE"


class ConnectError(GreenroomError):
    """Raised by a client when no broker could be reached in time. Never on the wire."""

    code = "CONNECT"


class TlsError(ConnectError):
    """Raised by a client when a broker was reached but TLS refused: unknown CA, wrong name, missing client certificate."""

    code = "TLS"


class WaitTimeoutError(GreenroomError):
    """Raised by a client when a job was not finished within the time it wanted to wait. Never on the wire."""

    code = "TIMEOUT"


class JobFailedError(GreenroomError):
    """Raised by a client whose job ended failed, cancelled or expired; `job` is the job's view. Never on the wire."""

    code = "JOB_FAILED"

    def __init__(self, message: str, *, job: dict | None = None) -> None:
        super().__init__(message)
        self.job = job


def _wire_classes() -> dict[str, type[GreenroomError]]:
    off_wire = {ConfigError, StoreError, ConnectError, TlsError, WaitTimeoutError, JobFailedError}
    found: dict[str, type[GreenroomError]] = {}
    pending = list(GreenroomError.__subclasses__())
    while pending:
        cls = pending.pop()
        pending.extend(cls.__subclasses__())
        if cls not in off_wire:
            found[cls.code] = cls
    return found


#: Wire code -> class, for turning an error that arrived into an exception.
WIRE_ERRORS: dict[str, type[GreenroomError]] = _wire_classes()


def from_wire(error: object) -> GreenroomError:
    """Turn the `error` map of a reply into an exception (not raised).

    Args:
        error: `{"code": str, "message": str, "field"?: str, "retry_after_s"?: float}`; anything else, or a code that
            this version does not know, becomes a plain GreenroomError that keeps code and message. What is not of its type is
            left out: a program must be able to show the one and sleep for the other.
    """
    fields = error if isinstance(error, dict) else {}
    code, message, field, retry_after_s = (fields.get(name) for name in ("code", "message", "field", "retry_after_s"))
    code = code if isinstance(code, str) else "INTERNAL"
    exc = WIRE_ERRORS.get(code, GreenroomError)(
        message if isinstance(message, str) else "error without a message", field=field if isinstance(field, str) else None,
        retry_after_s=retry_after_s if type(retry_after_s) in (int, float) and 0 <= retry_after_s < float("inf") else None)
    exc.code = code
    return exc
