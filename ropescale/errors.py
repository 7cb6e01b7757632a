"""The errors of ropescale. Every one a caller can meet is a `RopescaleError`.

Texts follow one form: `{what}: {rule}, got {value!r}; {what to do}`.
"""


class RopescaleError(Exception):
    """The root of every error that ropescale raises on purpose."""


class InvalidArgumentError(RopescaleError, ValueError):
    """An argument or knob that breaks its rule."""


class UnknownMethodError(RopescaleError, ValueError):
    """A method name that is not in the registry."""


class UnsupportedModelError(RopescaleError, ValueError):
    """A model or config that this version cannot patch, or not with this method."""


class AlreadyScaledError(RopescaleError, ValueError):
    """A checkpoint whose positions are rescaled already, where `existing` does not say what to do with that."""


class AlreadyPatchedError(RopescaleError, RuntimeError):
    """A model that is patched, where an unpatched one is needed."""


class NotPatchedError(RopescaleError, RuntimeError):
    """A model that is not patched, where a patched one is needed."""


class VerificationError(RopescaleError, RuntimeError):
    """A patch that did not take effect as planned, and was rolled back."""


class CheckpointError(RopescaleError, RuntimeError):
    """A checkpoint on disk that cannot be obtained, read or written."""


class ExportError(RopescaleError, ValueError):
    """A rotation that an engine cannot hold exactly, or a model that a format cannot hold."""


def shortened(value: object) -> str:
    """A caller's value for a message: as Python writes it, cut where nobody would read on."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write integers of more than 4,300 digits
        return f"a {type(value).__name__} of too many digits"
    return text if len(text) <= 200 else f"{text[:200]}..."
