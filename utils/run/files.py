"""Files that are whole or not there, and folders that one process holds at a time."""

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: a second process is not refused there
    fcntl = None


def lock(folder, wait=False):
    """A descriptor that holds a folder until `os.close`, or until the process ends.

    Raises: ValueError where another process holds it, unless this one is to `wait` for it."""
    if fcntl is None:
        return os.open(os.devnull, os.O_RDONLY)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(f"{folder}: another process is running there") from None
    return descriptor


def replace(path, data):
    """Write bytes to `path`, which then holds the old file or the new one, never a part of it.

    Raises: OSError where `path` cannot be written."""
    write(path, lambda file: file.write(data))


def write(path, fill):
    """Call `fill(file)` on a new file and put that in the place of `path`, as `replace` does.

    Raises: OSError where `path` cannot be written."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")  # in the same folder: the rename is atomic
    try:
        with open(temporary, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder):
    """Make the rename survive a power cut. Windows cannot open a folder and needs none of it."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
