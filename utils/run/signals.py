"""Ctrl-C and SIGTERM: the first asks the program to stop, the second ends the process at once.

Python runs signal handlers only between bytecode instructions, and a program that waits for a
compiled loop may not reach the next one for minutes. So the interpreter writes each signal's number
into a socket as soon as it arrives, and a thread reads it there.
"""

import os
import signal
import socket
import threading

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 1.0  # seconds until the process ends although the screen could not be restored


class Stop:
    """A context that listens for signals; `received` is the first one, None until then.

    `say` is called with a line at the first signal, `leave` without arguments before the second one
    ends the process; both from another thread."""

    def __init__(self, say, leave):
        self.received = None
        self._say, self._leave = say, leave

    def __enter__(self):
        self._thread = None
        if threading.current_thread() is not threading.main_thread():
            return self  # Python allows signal handlers only there
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._old_handlers = {number: signal.signal(number, _do_nothing) for number in SIGNALS}
        self._old_descriptor = signal.set_wakeup_fd(self._writer.fileno())
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        if not self._thread:
            return
        signal.set_wakeup_fd(self._old_descriptor)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._writer.close()  # the thread reads the end of file and returns
        self._thread.join()
        self._reader.close()

    def _listen(self):
        while number := self._reader.recv(1):
            if number[0] not in SIGNALS:
                continue
            if self.received:
                _in_thread(self._leave).join(PATIENCE)
                os._exit(128 + number[0])
            self.received = number[0]
            _in_thread(self._say, "stopping     after this chunk of training; repeat to quit "
                       "immediately")


def _in_thread(function, *arguments):
    """Call a function that prints, in a thread of its own: a full pipe blocks whoever prints."""
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def _do_nothing(number, frame):
    """A Python handler must be installed, or nothing is written to the socket."""
