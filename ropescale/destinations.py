"""Destinations: a file or folder that is written whole or not at all, where nothing was before."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ropescale.errors import CheckpointError, InvalidArgumentError


def require_new(destination: Path, source: Path | None = None, *, name: str = "destination") -> None:
    """Refuse a destination that holds something, or that lies within what is read.

    Args:
        destination: a file or folder that is not there yet, or an empty folder.
        source: the folder that is read, if one is.
        name: what the caller's argument is called.

    Raises:
        InvalidArgumentError: something is there, or the source is around it.
        CheckpointError: a path that the system cannot resolve or look at.
    """
    try:
        if source is not None:
            real, start = destination.resolve(), source.resolve()
            if real == start or start in real.parents:
                raise InvalidArgumentError(
                    f"{name}: must lie outside the source, got {str(destination)!r} for {str(source)!r}; give another"
                )
        taken = os.path.lexists(destination) and not _is_empty_folder(destination)
    except (OSError, RuntimeError) as error:  # a loop of links, a name that is too long
        raise CheckpointError(
            f"{name}: must be a path that this system can resolve, got {str(destination)!r} ({error}); give another"
        ) from error
    if taken:
        raise InvalidArgumentError(
            f"{name}: must be new, or an empty folder, got {str(destination)!r}, which exists; give another, or "
            f"remove it"
        )


@contextlib.contextmanager
def written_whole(destination: Path, size: int = 0, *, name: str = "destination") -> Iterator[Path]:
    """A path beside the destination to make a file or folder at; it takes its place when the block ends.

    If the block fails, it is gone. What a killed run leaves is hidden and has no ending that an engine knows, and the
    next run removes it. Two runs for one place are kept apart by a lock.

    Args:
        destination: as `require_new` takes it.
        size: bytes that it will take at least; 0 where nobody knows.
        name: what the caller's argument is called.

    Raises:
        CheckpointError: another run is writing there, it was made while the block ran, or it cannot be written for
            want of room or rights.
        InvalidArgumentError: something is there already.
    """
    place = destination.absolute()  # "." has no name to make others from
    work, lock = place.with_name(f".{place.name}.partial"), FileLock(place.with_name(f".{place.name}.lock"))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        if not Path(lock.lock_file).exists():  # a place where nothing can be made looks like a lock that is held
            raise _unwritable(destination, PermissionError(13, "no file can be made beside it"), name) from error
        raise CheckpointError(
            f"{name}: must not be in the making, got {str(destination)!r}, which another process is writing; wait for "
            f"it"
        ) from error
    except OSError as error:
        raise _unwritable(destination, error, name) from error
    try:
        require_new(destination, name=name)  # again: whoever held the lock may have written it
        free = shutil.disk_usage(place.parent).free
        if free < size:
            raise CheckpointError(
                f"{name}: needs {size / 1e9:.2f} GB, got {free / 1e9:.2f} GB free at {str(place.parent)!r}; "
                f"make room, or give a place on another disk"
            )
        stood = place.is_dir()
        _remove(work)
        yield work
        if stood:
            place.rmdir()  # which fails if somebody has filled it meanwhile
        elif os.path.lexists(place):  # a rename would replace a file or an empty folder without a word
            raise FileExistsError(17, "it was made by somebody else meanwhile")
        work.rename(place)
    except OSError as error:
        raise _unwritable(destination, error, name) from error
    finally:
        _remove(work)
        Path(lock.lock_file).unlink(missing_ok=True)  # nobody waits for it
        lock.release()


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _remove(work: Path) -> None:
    """Remove a file or folder; what cannot be removed is found out by whoever writes there next."""
    with contextlib.suppress(OSError):
        if work.is_dir():
            shutil.rmtree(work)
        else:
            work.unlink(missing_ok=True)


def _unwritable(destination: Path, error: OSError, name: str) -> CheckpointError:
    return CheckpointError(
        f"{name}: must be a place with room that can be written, got {str(destination)!r} ({error}); make room, or "
        f"give another"
    )
