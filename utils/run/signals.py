"""Ctrl-C and SIGTERM: the first is a request that the program takes up when it can, the second
ends the process at once.

Python runs signal handlers only between its own instructions, and a program that waits for a
compiled loop may not come to the next one for minutes. So the interpreter writes the number of
each signal into a socket the moment it arrives, and a thread reads it there.
"""

import os
import signal
import socket
import threading

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Between `with` and the end of the block, `asked` is the signal that asked to stop, or None.

    `say` is called with a line at the first signal, `leave` without arguments before the process
    ends at the second; both from another thread."""

    def __init__(self, say, leave):
        self.asked = None
        self._say, self._leave = say, leave

    def __enter__(self):
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._old_handlers = {number: signal.signal(number, _do_nothing) for number in SIGNALS}
        self._old_descriptor = signal.set_wakeup_fd(self._writer.fileno())
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        signal.set_wakeup_fd(self._old_descriptor)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._writer.close()  # the thread reads the end and leaves
        self._thread.join()
        self._reader.close()

    def _listen(self):
        while number := self._reader.recv(1):
            if number[0] not in SIGNALS:
                continue
            if self.asked:
                self._leave()
                os._exit(128 + number[0])
            self.asked = number[0]
            self._say("stopping     after this chunk of training; once more to leave at once")


def _do_nothing(number, frame):
    """A handler of Python's own must stand, or nothing is written into the socket."""
