"""Atomic writes of files, and locks on folders.

Some file systems know no locks or cannot sync a folder: a run goes on without.
"""

import contextlib
import errno
import os
import sys
from pathlib import Path

from utils.core import start

try:
    import fcntl
    import resource
except ImportError:  # Windows: folders are not locked there, and files are not counted
    fcntl = resource = None

OPEN, SPARE = 4, 32  # files that a run keeps open (lock, two logs, event file), and all others
UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


def lock(folder, wait=False):
    """Lock a folder -> a descriptor: `os.close` or the end of the process unlocks it.

    Raises: ValueError if another process has locked it, unless `wait`."""
    if fcntl is None:
        return os.open(os.devnull, os.O_RDONLY)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(f"{folder}: another process is using this folder") from None
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            os.close(descriptor)
            raise
        print(f"{start.program()}: {folder}: the file system knows no locks "
              f"({error.strerror.lower()}): start only one process there", file=sys.stderr)
    return descriptor


def check_open(runs):
    """Check that this process may open the files of so many runs at once.

    Raises: ValueError, one line."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if resource else -1
    needed = runs * OPEN + SPARE
    if 0 <= most < needed:  # below 0: without a limit
        raise ValueError(f"--seeds: {runs} seeds need {needed:,} open files, but {most:,} are "
                         f"allowed: train fewer seeds, or raise the limit (ulimit -n {needed})")


def make(*folders):
    """Create folders with their parents, all, or none where one fails: -> the new ones

    Raises: OSError."""
    new = []
    try:
        for folder in folders:
            new += missing(folder)
            Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError:
        unmake(new)
        raise
    return new


def missing(folder):
    """The parts of a path that do not exist, the outermost first."""
    path = Path(folder)
    return [part for part in (*reversed(path.parents), path) if not os.path.lexists(part)]


def unmake(folders):
    """Delete folders as far as they are empty, the last one first."""
    for folder in reversed(folders):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def refuse_links(folder, names):
    """Check that none of these names in a run folder leads elsewhere.

    Raises: ValueError, one line."""
    for name in names:
        path = Path(folder) / name
        if path.is_symlink():
            raise ValueError(f"{path}: is a link, expected a file or folder of the run itself")


def replace(path, data):
    """Write bytes to `path` atomically: it holds the old file or the new one, never a part.

    Raises: OSError where `path` cannot be written."""
    write(path, lambda file: file.write(data))


def write(path, fill):
    """Call `fill(file)` on a new file, then replace `path` by it, like `replace`.

    Raises: OSError where `path` cannot be written."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")  # same folder: the rename is atomic
    temporary.unlink(missing_ok=True)  # "x" below then follows no link
    try:
        with open(temporary, "xb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder):
    """Make the rename survive a power cut; Windows cannot open folders and need not."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
        finally:
            os.close(descriptor)
