"""The processes of a run: which one this is, and what they tell each other.

They tell it through jax's coordination service, as texts under names: small things, before and
between chunks. Arrays are never sent this way (parts.py).
"""

import atexit
import contextlib
import json
import os
import sys
import time

from utils.core import cli
from utils.hosts.service import QUIT

PATIENCE = 1800.0  # seconds until a process that tells nothing is given up
PAUSE = 0.2  # seconds between two looks at what others have told, at most
SOON, LATEST = 5.0, 600.0  # seconds until process 0 ends although others have not, if it failed
SILENT = 60.0  # seconds without a sign of life: it was killed, or its machine is gone
FAILED = (1, 2)  # exit statuses of a run or a command that went wrong


class Ended(ValueError):
    """Another process has ended before it told what all were to tell."""


class Group:
    """This process is number `index` of `count`; `flags` are those with which it joined.

    Processes that train seeds of their own stay `apart`: each has devices of its own. A process
    that runs alone is a group of one, which has nothing to tell."""

    def __init__(self):
        self.index, self.count, self.flags, self.apart = 0, 1, (), False
        self._client = self._posted = None
        self.service = None  # the process of service.py, None but in process 0
        self.has_ended = False

    def begin(self, place, client):
        """Become one of many: at a Place (join.py), with jax's client of the service."""
        self.index, self.count = place.index, place.count
        self.flags, self.apart = place.flags, place.apart
        self._client = client
        sys.excepthook = self._crash
        atexit.register(self.leave, 2)  # after the one of jax, so it is called before

    @property
    def shares(self):
        """Whether several processes train one agent."""
        return self.count > 1 and not self.apart

    @property
    def is_first(self):
        """Whether this process logs, shows and saves what all that train one agent share."""
        return self.index == 0 or self.apart

    def share(self, number):
        """Which of so many things are for this process: -> range, as equal as can be."""
        if not self.apart:
            return range(number)
        return range(number * self.index // self.count, number * (self.index + 1) // self.count)

    def folder_in(self, run):
        """The folder of this process in that of a run: the same, or RUN/host-INDEX."""
        return run if self.is_first else run / f"host-{self.index}"

    def gather(self, name, value):
        """What all processes tell under this name, which is used once: -> list of values [count]

        Raises: Ended, naming a process that has ended instead, or that tells nothing."""
        if self.count == 1:
            return [value]
        self.post(f"{name}/{self.index}", value)
        pause, until = 0.002, time.monotonic() + PATIENCE
        while True:
            ended, found = self.ended(), self.told(name)  # in this order: it may tell, then end
            if len(found) == self.count:
                return [found[index] for index in range(self.count)]
            for index, line in ended.items():
                raise Ended(f"process {index} has ended: {line}")
            if time.monotonic() > until:
                index = min({*range(self.count)} - found.keys())
                raise Ended(f"process {index} has told nothing for {PATIENCE:.0f} s")
            time.sleep(pause)
            pause = min(PAUSE, 1.5 * pause)

    def post(self, name, value):
        """Tell a value of plain types under a name; a later one replaces it."""
        self._client.key_value_set(name, json.dumps(value), True)

    def told(self, name):
        """{index: value} of what has been told under this name so far."""
        found = self._client.key_value_dir_get(f"{name}/")
        return {int(key.rpartition("/")[2]): json.loads(value) for key, value in found}

    def agree(self, facts):
        """Check that all processes have the same facts {name: value}.

        Raises: ValueError, the same one line in all."""
        first, *others = self.gather("facts", facts)
        for index, found in enumerate(others, 1):
            for name in (name for name in first if found.get(name) != first[name]):
                raise ValueError(f"process {index} has another {name} ({cut(found.get(name))}, "
                                 f"process 0 has {cut(first[name])})")

    def stops(self, chunk, received):
        """The signal that ends the run after this chunk, None for none: the same in all

        A signal that a process has `received` counts one chunk later: the others take part in
        that chunk, so before its end they have all been told."""
        if not self.shares:
            return received
        if received and not self._posted:
            self._posted = [chunk + 1, received]
            self.post(f"stop/{self.index}", self._posted)
        due = [number for at, number in self.told("stop").values() if at <= chunk]
        return max(due, default=None)

    def complain(self, error):
        """Print an error as one line, and tell it to the others: -> exit status"""
        self._tell_end(cli.reason(error))
        return cli.complain(error)

    def ended(self):
        """{index: line} of the other processes that have ended with an error."""
        return {index: line for index, line in self.told("ended").items() if index != self.index}

    def leave(self, status):
        """End this process with this exit status; process 0 after the others, for its service."""
        if self.count == 1:
            sys.exit(status)
        in_order = status not in FAILED
        self._tell_end(None if in_order else f"exit status {status}")
        if self.service:
            self._wait_for_others(LATEST if in_order else SOON)
        quit_now(status)

    def part(self):
        """Who trains seeds of its own goes on alone, and no longer ends with the others."""
        if self.count > 1 and self.apart:
            self.gather("parting", None)
            self.count = 1  # also for the thread that watches
            self._client.shutdown()
            if self.service:
                self._end_service()
            atexit.unregister(self.leave)
            sys.excepthook = sys.__excepthook__

    def _tell_end(self, line):
        """Tell how this process ends, once: with an error, or in order (None)."""
        if self.count > 1 and not self.has_ended:
            self.has_ended = True
            try:
                self.post(f"{'left' if line is None else 'ended'}/{self.index}", line)
            except RuntimeError:
                pass  # nobody is left who could hear it

    def _crash(self, kind, error, trace):
        """Called by Python for an error that nothing caught."""
        sys.__excepthook__(kind, error, trace)
        self._tell_end(f"{kind.__name__}: {error}")
        quit_now(1)

    def _wait_for_others(self, seconds):
        """Wait until the others have ended, then end the service; else it does so by itself

        Without one that is silent for SILENT seconds: it was killed."""
        now = time.monotonic()
        until, signs, heard = now + seconds, None, now
        with contextlib.suppress(RuntimeError, OSError):  # the service is gone already
            while (now := time.monotonic()) < min(until, heard + SILENT):
                gone = {*self.told("left"), *self.told("ended"), self.index}
                if len(gone) == self.count:
                    self._end_service()
                    return
                beats = self.told("beat").items()
                if (new := [one for one in beats if one[0] not in gone]) != signs:
                    signs, heard = new, now
                time.sleep(PAUSE)

    def _end_service(self):
        self.service.stdin.write(QUIT)
        self.service.stdin.close()


def cut(value):
    """A value in a message, at most 40 characters."""
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def quit_now(status):
    """End this process at once: jax's own end would wait for processes that are gone."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads it any more
    os._exit(status)


GROUP = Group()
