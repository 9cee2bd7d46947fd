"""What can go wrong: one sentence for people, a code for programs."""


class Error(RuntimeError):
    """A call of pith failed. `str(error)` is one sentence; `error.code` is a short name such as "out_of_budget"."""

    def __init__(self, message: str, code: str = "unknown"):
        super().__init__(message)
        self.code = code


class InvalidArgument(Error, ValueError):
    """The caller asked for something that makes no sense."""


class NotFound(Error, LookupError):
    """A file, model or recipe that does not exist."""


class Corrupt(Error):
    """Bytes read from outside that break their format."""


class Unsupported(Error):
    """Well-formed, but pith cannot do it."""


class OutOfBudget(Error, MemoryError):
    """The KV budget holds no more."""


class IoError(Error, OSError):
    """The system refused a read, a write or memory."""

    __str__ = RuntimeError.__str__


class Cancelled(Error):
    """The caller asked to stop."""


class Busy(Error):
    """There is no room now; later there may be."""


class OutOfContext(Error):
    """The context's positions are used up."""


KINDS = {
    "invalid_argument": InvalidArgument,
    "not_found": NotFound,
    "corrupt": Corrupt,
    "unsupported": Unsupported,
    "out_of_budget": OutOfBudget,
    "io": IoError,
    "cancelled": Cancelled,
    "busy": Busy,
    "out_of_context": OutOfContext,
}
