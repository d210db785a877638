"""A folder that one process at a time may hold."""

import os

try:
    import fcntl
except ImportError:  # Windows: there, a second process is not refused
    fcntl = None


def lock(folder, wait=False):
    """An open descriptor of a folder that no other process holds: let go by os.close, or at exit.

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
