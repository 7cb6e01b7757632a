"""The errors of ropescale. Every one a caller can meet is a `RopescaleError`.

Texts follow one form: `{what}: {rule}, got {value!r}; {what to do}`.
"""

# What a terminal obeys, or what makes a line look like another: controls of both blocks, the ends of lines and
# paragraphs, and what turns the direction of writing
OBEYED = frozenset(
    [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
)
LONGEST = 4000  # characters of a text: what nobody reads to the end
ENDING = 600  # of those, at the end, where it stands what to do


def cleaned(text: str, *, lines: bool = False) -> str:
    """A text without anything that a terminal obeys: such a character is shown as Python would write it.

    Args:
        text: it may quote files that somebody else wrote.
        lines: leave line ends and tabs as they are.
    """
    kept = "\n\t" if lines else ""
    shown = {code: repr(chr(code))[1:-1] for code in OBEYED if chr(code) not in kept}
    return text.translate(shown)


class RopescaleError(Exception):
    """The root of every error that ropescale raises on purpose. Its text is of one line, and nothing a terminal obeys.

    Texts quote what stands in configs and other files, which somebody else may have written.

    Example:
        >>> import ropescale
        >>> try:
        ...     ropescale.get_method("yarm")
        ... except ropescale.RopescaleError as error:
        ...     print(type(error).__name__)
        UnknownMethodError
    """

    def __init__(self, text: str = "") -> None:
        shown = cleaned(text)
        cut = f"{shown[: LONGEST - ENDING]} ... {shown[-ENDING:]}"
        super().__init__(shown if len(shown) <= LONGEST else cut)


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


class BusyModelError(RopescaleError, RuntimeError):
    """A model that another thread reads while it is to be patched, or the other way round; nothing was changed."""


class VerificationError(RopescaleError, RuntimeError):
    """A patch that did not take effect as planned, and was rolled back."""


class CheckpointError(RopescaleError, RuntimeError):
    """A checkpoint on disk that cannot be obtained, read or written."""


class ExportError(RopescaleError, ValueError):
    """A rotation that an engine cannot hold exactly, or a model that a format cannot hold."""


class ServerError(RopescaleError, RuntimeError):
    """A running server that cannot be reached, or that does not say what it was asked."""


def shortened(value: object) -> str:
    """A caller's value for a message: as Python writes it, cut where nobody would read on."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write integers of more than 4,300 digits
        return f"a {type(value).__name__} of too many digits"
    return text if len(text) <= 200 else f"{text[:200]}..."


ROOM = 400  # characters of another library's error within one of ours


def first_line(error: Exception) -> str:
    """What an error says, as far as a message of one line has room for it: up to the first line that ends a clause."""
    said = ""
    for line in (str(error).strip() or repr(error)).splitlines():
        said = f"{said} {line.strip()}".strip()
        if not said.endswith(":"):
            break
    said = said.rstrip(".;")
    return said if len(said) <= ROOM else f"{said[:ROOM]}..."  # some name every model type that there is
