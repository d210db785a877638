"""Where the processes that do not show the run write what they have to say."""

import os
import shutil
import sys
from functools import partial
from pathlib import Path


def redirect(folder):
    """Write everything that this process prints from now on to output.txt in a folder.

    Returns: a function that undoes it. Raises: OSError."""
    folder, is_new = Path(folder), not Path(folder).exists()
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    before = [os.dup(number) for number in (1, 2)]
    for number in (1, 2):
        os.dup2(file, number)
    os.close(file)
    return partial(_undo, folder if is_new else None, before)


def _undo(folder, before):
    """Print to the old streams again, and delete the folder, if there is one."""
    for number, old in enumerate(before, 1):
        os.dup2(old, number)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
