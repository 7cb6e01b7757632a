"""How a command ends that does not end well: always in one sentence, and with a code.

1    something that nobody foresaw; the whole traceback is in a file that the sentence names
2    wrong usage, or something else that ropescale has words for
130  stopped by Ctrl-C
"""

import errno
import importlib.util
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence

from ropescale.errors import RopescaleError
from ropescale.version import __version__

UNFORESEEN, USAGE, STOPPED = 1, 2, 130
# What each extra of the package brings, as Python imports it
EXTRAS = {
    "train": ("accelerate", "peft", "datasets"),
    "eval": ("lm_eval", "datasets", "accelerate", "matplotlib", "wonderwords", "psutil"),
    "export": ("gguf", "xllamacpp"),
    "search": ("cmaes", "accelerate"),
    "qlora": ("bitsandbytes",),
    "torchao": ("torchao",),
    "ulysses": ("ringmaster",),
}


class MissingExtraError(RopescaleError, ImportError):
    """A verb without the packages that it needs."""


def require_extras(verb: str, extras: Sequence[str]) -> None:
    """Refuse a verb whose packages are not installed, before any of them is looked for half-way.

    Raises:
        MissingExtraError: with the command that installs them.
    """
    missing = [package for extra in extras for package in EXTRAS[extra] if not _installed(package)]
    if missing:
        raise MissingExtraError(
            f"{verb}: needs packages of its own, got no {', '.join(dict.fromkeys(missing))}; "
            f"pip install 'ropescale[{','.join(extras)}]'"
        )


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # a module without a spec, which is what its import left behind
        return False


def ended(
    work: Callable[[], int], *, doing: str, command: str, spelled: Callable[[str], str], extras: Sequence[str] = ()
) -> int:
    """The exit code of a piece of work, with a sentence on standard error where it failed.

    Args:
        work: returns its exit code.
        doing: what it does, for what nobody foresaw, as in "evaluating tiny".
        command: as it was typed, for the file with the traceback.
        spelled: puts the text of an error into the language of the command line.
        extras: what the verb needs besides the core, for the package that is missing.
    """
    try:
        code = work()
        sys.stdout.flush()
    except RopescaleError as error:
        _say(spelled(str(error)))
        return USAGE
    except KeyboardInterrupt:
        _say("stopped", fresh=True)
        return STOPPED
    except BrokenPipeError:  # whoever read the output has enough of it
        _print_rest()
        return UNFORESEEN
    except Exception as error:
        if missing := _missing(error, doing, extras):
            _say(missing)
            return USAGE
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            _print_rest()
            _say(
                f"{doing}: what is written or printed must have room, got {error.strerror!r}; make room where it goes"
            )
            return USAGE
        _say(_unforeseen(error, doing, command))
        return UNFORESEEN
    return code


def stopped(what: str) -> int:
    """Say that Ctrl-C has stopped a run that can go on; returns the exit code."""
    _say(f"stopped; {what}", fresh=True)
    return STOPPED


def _print_rest() -> None:
    """Print what is left to be printed, or have it go nowhere: what is flushed at exit would fail again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(sentence: str, *, fresh: bool = False) -> None:
    """One sentence on standard error; on a line of its own where a terminal has written ^C."""
    print(f"{chr(10) if fresh and sys.stderr.isatty() else ''}ropescale: {sentence}", file=sys.stderr)


def _missing(error: Exception, doing: str, extras: Sequence[str]) -> str:
    """The sentence for a package of an extra that is not installed; empty for any other exception."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    homes = [extra for extra, packages in EXTRAS.items() if package in packages]
    if not homes:
        return ""
    wanted = [extra for extra in extras if extra in homes] or homes[:1]
    return (
        f"{doing}: the package {package} must be installed, got {_first_line(error)}; "
        f"pip install 'ropescale[{','.join(wanted)}]'"
    )


def _unforeseen(error: Exception, doing: str, command: str) -> str:
    """The sentence for an exception that is none of ropescale's own."""
    what = f"{type(error).__name__}: {_first_line(error)}".rstrip(": ")
    where = _kept(error, command)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate" in str(error):
        return (
            f"{doing}: the memory must suffice, got {what}; ask for shorter lengths or fewer rows at a time, see "
            f"`ropescale memory --help`; {where}"
        )
    return f"{doing}: must end in a result or in a reason, got {what}; {where}"


def _first_line(error: Exception) -> str:
    """What an exception says, on one line and with nothing in it that a terminal would obey."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    line = "".join(letter if letter.isprintable() else " " for letter in (lines or [""])[0]).strip().rstrip(".")
    return line if len(line) <= 300 else f"{line[:300]}..."


def _kept(error: Exception, command: str) -> str:
    """Write the whole traceback into a new file of the system's temporary folder, and say where it is."""
    whole = "".join(traceback.format_exception(error))
    report = (
        f"{command}\nropescale {__version__}, Python {platform.python_version()}, {platform.platform()}\n\n{whole}"
    )
    try:
        # a new name that nobody could have taken or linked before, readable by its owner alone
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="backslashreplace", prefix="ropescale-", suffix=".txt", delete=False
        ) as file:
            file.write(report)
    except OSError as refusal:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"it was in {frame.filename}, line {frame.lineno}, and no file could be written ({refusal.strerror})"
    return f"the whole traceback is in {file.name}"
