"""Destinations: every file or folder is written whole or not at all, and never through a link.

A folder of results or of a model may come from somebody else. So whatever is made on the way is made anew, in a folder
that nobody else can write into, and what stands at the end of the way is only ever replaced where it is an ordinary
file. Folders of long runs, which are written bit by bit, are written by one process at a time.
"""

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from ropescale.console import Console
from ropescale.errors import CheckpointError, InvalidArgumentError

# Flags of an opening that neither follows a link nor waits; Windows has neither flag
NOT_ELSEWHERE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)

# What is wrong with the disk that is written, whichever file an error names: copying names the one that is read
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
REMEDY = "make room, or give another"
LOCK = ".lock"  # in a folder that a long run writes into


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
    apart, lock = place.with_name(f".{place.name}.partial"), FileLock(place.with_name(f".{place.name}.lock"))
    work = apart / f".{place.name}"
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
        fresh_folder(apart)
        with _in_words_of_the_system():
            yield work
        if stood:
            place.rmdir()  # which fails if somebody has filled it meanwhile
        elif os.path.lexists(place):  # a rename would replace a file or an empty folder without a word
            raise FileExistsError(17, "it was made by somebody else meanwhile")
        work.rename(place)
    except OSError as error:
        mine = error.filename is None or str(place) in (error.filename, error.filename2)
        raise (None if mine else _unreadable(error, apart)) or _unwritable(destination, error, name) from error
    finally:
        with contextlib.suppress(OSError):  # what cannot be removed is found out by whoever writes there next
            removed(apart)
        Path(lock.lock_file).unlink(missing_ok=True)  # nobody waits for it
        lock.release()


def cached(
    folder: Path, make: Callable[[Path], Path], *, whole: Callable[[Path], bool] = Path.exists, waiting: str
) -> Path:
    """A folder of a cache, made where it is not there.

    The work is done beside it, under a lock that other processes wait for, and takes its place at the end.

    Args:
        folder: of the cache.
        make: fills an empty folder, and returns it or the folder within it that is to take the place.
        whole: whether the folder is there as it was made; `make` removes one that is not.
        waiting: what is said while another process makes it.

    Raises:
        OSError: it cannot be written; whatever `make` raises.
    """
    if whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    work, lock = folder.with_suffix(".partial"), FileLock(folder.with_suffix(".lock"))
    with Console(stderr=True).status(waiting):
        lock.acquire()
    try:
        if not whole(folder):  # the process that held the lock may have made it
            shutil.rmtree(work, ignore_errors=True)  # what a killed run left
            work.mkdir()
            try:
                make(work).rename(folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    finally:
        lock.release()
    return folder


@contextlib.contextmanager
def replaced(path: Path, *, name: str = "destination", remedy: str = REMEDY) -> Iterator[Path]:
    """A path to make a file at, which takes the place of an ordinary file or of nothing when the block ends.

    If the block fails, what was there still is. Whoever reads meanwhile meets the old file or the new one.

    Args:
        path: where the file is to be; its folder is made where there is none.
        name: what the caller's argument is called.
        remedy: what to do where it cannot be written.

    Raises:
        InvalidArgumentError: a folder, a link, a device or a pipe is there.
        CheckpointError: it cannot be written.
    """
    require_ordinary(path, name=name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        apart = Path(tempfile.mkdtemp(prefix=f".{path.name[:64]}.", dir=path.parent))  # new, and for nobody else
        try:
            with _in_words_of_the_system():
                yield apart / path.name
            require_ordinary(path, name=name)
            os.replace(apart / path.name, path)
        finally:
            removed(apart)
    except OSError as error:
        raise _unwritable(path, error, name, remedy) from error


@contextlib.contextmanager
def _in_words_of_the_system() -> Iterator[None]:
    """What the system refuses to safetensors, which wraps it in an error of its own, as the system's again.

    Raises:
        OSError: the system refused it.
    """
    try:
        yield
    except SafetensorError as error:
        if "os error" in str(error):
            raise OSError(str(error)) from error
        raise


def write_file(path: Path, text: str, *, name: str = "destination", remedy: str = REMEDY) -> None:
    """Write a text in UTF-8 as `replaced` does.

    Raises:
        InvalidArgumentError: a folder, a link, a device or a pipe is there.
        CheckpointError: it cannot be written; what was there still is.
    """
    with replaced(path, name=name, remedy=remedy) as work:
        work.write_text(text, encoding="utf-8")


def append_line(path: Path, line: str, *, name: str = "destination", remedy: str = REMEDY) -> None:
    """Add one line to a file with one write; what cannot be written whole is taken back.

    Raises:
        InvalidArgumentError: not an ordinary file of that folder alone.
        CheckpointError: it cannot be written; the file is as it was.
    """
    content = f"{line}\n".encode()
    there = os.path.lexists(path)
    with _going_on(path, os.O_APPEND | os.O_CREAT, name, remedy) as descriptor:
        before = os.fstat(descriptor).st_size
        try:
            if os.write(descriptor, content) != len(content):
                raise OSError(28, "No space left on device")
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, before)
            if not there:
                path.unlink(missing_ok=True)
            raise


def cut_torn_line(path: Path, *, name: str = "destination", remedy: str = REMEDY) -> None:
    """Remove what stands after the last line end of a file, so that the next line is one of its own.

    Raises:
        InvalidArgumentError: not an ordinary file of that folder alone.
        CheckpointError: it cannot be written.
    """
    if not os.path.lexists(path):
        return
    with _going_on(path, 0, name, remedy) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file:
        os.ftruncate(descriptor, file.read().rfind(b"\n") + 1)


def require_appendable(path: Path, *, name: str = "destination", remedy: str = REMEDY) -> None:
    """Refuse a file that `append_line` would refuse, where there is one.

    Raises:
        InvalidArgumentError: not an ordinary file of that folder alone.
        CheckpointError: it cannot be written.
    """
    if os.path.lexists(path):
        with _going_on(path, 0, name, remedy):
            pass


def require_ordinary(path: Path, *, name: str = "destination") -> None:
    """Refuse what a file cannot take the place of: a folder, a link, a device, a pipe.

    Raises:
        InvalidArgumentError: one of those is there.
        CheckpointError: a path that the system cannot look at.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # a name that is too long, or holds a zero
        raise CheckpointError(
            f"{name}: must be a path that this system can look at, got {str(path)!r} ({error}); give another"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise InvalidArgumentError(
            f"{name}: must be new, or an ordinary file to write again, got {str(path)!r}, which is "
            f"{_kind(status.st_mode)}; give another, or remove it"
        )


def require_own_folder(path: Path, *, name: str = "destination") -> None:
    """Refuse a folder within an output that is a link: what is written into it would be written elsewhere.

    Raises:
        InvalidArgumentError: a link is there.
    """
    if path.is_symlink():
        raise InvalidArgumentError(
            f"{name}: must hold its folders itself, got {str(path)!r}, which is a link; give another, or remove it"
        )


@contextlib.contextmanager
def _going_on(path: Path, flags: int, name: str, remedy: str) -> Iterator[int]:
    """A descriptor of a file that is written on, and of no file by another name."""
    require_ordinary(path, name=name)
    try:
        # a link that was put there meanwhile fails, and a pipe does not wait for a reader
        descriptor = os.open(path, os.O_RDWR | flags | NOT_ELSEWHERE, 0o644)
        try:
            if os.fstat(descriptor).st_nlink > 1:
                raise InvalidArgumentError(
                    f"{name}: must be a file of its own to be written on, got {str(path)!r}, which stands in another "
                    f"place too (a hard link); copy the folder, and use the copy"
                )
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unwritable(path, error, name, remedy) from error


def _kind(mode: int) -> str:
    kinds = {
        stat.S_ISDIR: "a folder",
        stat.S_ISLNK: "a link",
        stat.S_ISFIFO: "a pipe",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
        stat.S_ISSOCK: "a socket",
    }
    return next((said for is_kind, said in kinds.items() if is_kind(mode)), "no file")


def make_folder(folder: Path) -> None:
    """Make the folder of a long run, where it is not there.

    Raises:
        CheckpointError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise no_output(folder, error) from error


def no_output(folder: Path, error: OSError) -> CheckpointError:
    """The error for the folder of a long run in which nothing can be made."""
    return CheckpointError(
        f"output: {str(folder)!r} must be writable, got {error.strerror!r}; choose another folder with output=DIR"
    )


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold a folder that a long run writes into, and goes on in: a second run would write the same files.

    Raises:
        InvalidArgumentError: another process is writing there, or the place is taken by something else.
        CheckpointError: nothing can be written there.
    """
    make_folder(folder)
    try:
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise InvalidArgumentError(
            f"output: only one run at a time can write to a folder, got {str(folder)!r}, where another one is "
            f"writing; wait for it, or choose another folder with output=DIR"
        ) from error
    except OSError as error:
        raise no_output(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def try_folder(folder: Path) -> None:
    """Refuse a folder in which a long run could make nothing, by trying it, and leave everything as it was.

    Raises:
        CheckpointError: nothing can be written there.
    """
    with _unmade(folder):
        make_folder(folder)
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise no_output(folder, error) from error


def try_writer(folder: Path) -> None:
    """Refuse a folder that `sole_writer` would refuse, by trying it, and leave everything as it was.

    Raises:
        InvalidArgumentError: another process is writing there, or the place is taken by something else.
        CheckpointError: nothing can be written there.
    """
    locked = os.path.lexists(folder / LOCK)
    with _unmade(folder), sole_writer(folder):
        if not locked:
            (folder / LOCK).unlink(missing_ok=True)


@contextlib.contextmanager
def _unmade(folder: Path) -> Iterator[None]:
    """A block that may make a folder, and the folders above it: they are gone after it."""
    made = [parent for parent in (folder, *folder.parents) if not os.path.lexists(parent)]  # the innermost first
    try:
        yield
    finally:
        for parent in made:
            with contextlib.suppress(OSError):  # somebody else has put something there meanwhile
                parent.rmdir()


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def removed(path: Path) -> None:
    """Remove what stands at a path, whatever it is: of a link the link itself.

    Raises:
        OSError: it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def fresh_folder(path: Path) -> None:
    """An empty folder that nobody else may look into, in the place of what a killed run left there.

    Raises:
        OSError: something is there that cannot be removed, or was put there meanwhile.
    """
    removed(path)
    path.mkdir(mode=0o700)  # which makes a new one or fails


def _unwritable(destination: Path, error: OSError, name: str, remedy: str = REMEDY) -> CheckpointError:
    return CheckpointError(
        f"{name}: must be a place with room that can be written, got {str(destination)!r} ({error}); {remedy}"
    )


def _unreadable(error: OSError, apart: Path) -> CheckpointError | None:
    """The error for a file that could not be read while something else was written; None where that is not so."""
    if error.errno in FULL or not isinstance(error.filename, (str, Path)):
        return None
    place = Path(error.filename).absolute()
    if apart in (place, *place.parents):
        return None
    return CheckpointError(
        f"{error.filename}: must be a file that can be read, got {error.strerror or type(error).__name__}; make it "
        f"readable, or fetch it again"
    )
