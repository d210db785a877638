"""The process that holds what the processes of a run tell each other: jax's coordination service.

Process 0 starts it as a process of its own. Inside of process 0 it would end with it, and jax then
aborts all others with thirty lines of C++ before they can say a word.

    python -m utils.hosts.service ADDRESS:PORT COUNT
"""

import os
import sys
import time

READY = b"ready\n"
QUIT = b"q"
GRACE = 75.0  # seconds for the others, after an end of process 0 that nobody announced
LAST = 1.0  # seconds in which those who have said that they leave are gone
NEVER = 10**6  # seconds: who is still alive is watched elsewhere (watch.py)


def serve(address, count):
    """Serve until process 0 writes QUIT, or for GRACE seconds after its end."""
    from jaxlib import _jax  # no public interface

    service = _jax.get_distributed_runtime_service(address, count, heartbeat_timeout=NEVER,
                                                   shutdown_timeout=1)
    os.write(sys.stdout.fileno(), READY)
    time.sleep(LAST if sys.stdin.buffer.read(1) == QUIT else GRACE)
    del service
    os._exit(0)  # an orderly end would wait for processes that are gone


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
