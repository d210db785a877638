"""Joins the processes of a run, before jax looks for devices: --hosts and --host.

Process 0 listens at the address until all others have come. Only then does jax connect them: it
would abort the process, with a page of C++, when one is missing. Addresses, numbers and devices
that SLURM, Open MPI or Kubernetes have given out are found by jax.
"""

import json
import re
import selectors
import socket
import subprocess
import sys
import time
from typing import NamedTuple

from utils.core.cli import Parser, add_host_flags, complain, warn
from utils.core.config import ConfigError
from utils.core.machine import ROOT
from utils.hosts import service
from utils.hosts.group import GROUP
from utils.hosts.watch import WATCH

PATIENCE = 300.0  # seconds until all processes have arrived
QUIET = 3.0  # seconds before a line says who is waited for
TAKEN = 90.0  # seconds in which the port of a run that was killed becomes free
LOOPBACK = ("localhost", "127.0.0.1")
WITHOUT_RUN = ("--help", "-h", "--print-config", "--list-envs")


class Place(NamedTuple):
    """The place of a process: number `index` of `count`, which meet at `address`."""

    address: str
    index: int
    count: int
    flags: tuple = ()  # with which a run is resumed from here
    apart: bool = False  # each trains seeds of its own
    devices: tuple = ()  # of this machine that are for this process, all if empty

    @property
    def host(self):
        """The machine of process 0."""
        return self.address.rpartition(":")[0]

    @property
    def port(self):
        """Where process 0 listens."""
        return int(self.address.rpartition(":")[2])


def join(arguments):
    """Join the processes that --hosts names; without it, do nothing.

    Exits with status 2 and one line if it is wrong, or if a process does not arrive."""
    if any(word in WITHOUT_RUN for word in arguments):
        return
    try:
        place = place_of(arguments)
        GROUP.flags = place.flags if place else ()
        if place and place.count > 1:
            _meet(place)
            _connect(place)
    except (ValueError, OSError) as error:
        sys.exit(complain(error))


def place_of(arguments):
    """The Place that the flags give, None without --hosts. Raises: ConfigError."""
    parser = Parser("dreamer.py", add_help=False, allow_abbrev=False)
    add_host_flags(parser)
    parser.add_argument("--seeds")
    flags, _ = parser.parse_known_args(arguments)
    if flags.hosts is None:
        if flags.host is not None:
            raise ConfigError("--host: is only for --hosts ADDRESS:PORT")
        return None
    if flags.hosts == "auto":
        if flags.host is not None:
            raise ConfigError("--host: cannot be used with --hosts auto")
        place = _found()._replace(flags=("--hosts", "auto"))
    else:
        place = _named(flags.hosts, flags.host)
    return place._replace(apart=flags.seeds is not None)


def _named(address, host):
    """The Place of --hosts ADDRESS:PORT --host I/N. Raises: ConfigError."""
    name, _, port = address.rpartition(":")
    if not (name and re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 2**16):
        raise ConfigError(f"--hosts: expected auto or ADDRESS:PORT, found {address!r}")
    if host is None:
        raise ConfigError(f"--hosts {address}: needs --host index/count such as 0/4")
    numbers = re.fullmatch("([0-9]{1,6})/([0-9]{1,6})", host)
    index, count = map(int, numbers.groups()) if numbers else (0, 0)
    if not index < count:
        raise ConfigError(f"--host: expected index/count such as 0/4, found {host!r}")
    return Place(address, index, count, ("--hosts", address, "--host", host))


def _found():
    """The Place that jax finds in the variables of a cluster. Raises: ConfigError."""
    from jax._src import clusters  # no public interface

    try:
        address, count, index, devices = (
            clusters.ClusterEnv.auto_detect_unset_distributed_params(
                None, None, None, None, None, int(PATIENCE)))
    except (ValueError, LookupError, OSError, RuntimeError) as error:
        raise ConfigError(f"--hosts: auto failed: {type(error).__name__}: {error}") from None
    if None in (address, count, index):
        raise ConfigError("--hosts: auto found no SLURM, Open MPI or Kubernetes")
    return Place(address, index, count, devices=tuple(devices or ()))


def _meet(place):
    """Wait until all processes are there. Raises: ValueError, one line; OSError."""
    until = time.monotonic() + PATIENCE
    if place.index:
        _arrive(place, until)
    else:
        _receive(place, until)


def _receive(place, until):
    """Process 0: wait for the others, then tell them to go on, or what is wrong."""
    arrived, waiting, told = {}, time.monotonic() + QUIET, None
    with _listen(place) as listener, selectors.DefaultSelector() as ready:
        ready.register(listener, selectors.EVENT_READ)
        while len(arrived) < place.count - 1:
            now = time.monotonic()
            missing = sorted({*range(1, place.count)} - arrived.keys())
            if now > until:
                _answer(arrived, line := _late(missing, place))
                raise ConfigError(line)
            if now > waiting and told != missing:
                told, waiting = missing, now + QUIET
                _say_waiting(f"{len(missing)} of {place.count} processes", place)
            if ready.select(timeout=0.2):
                _admit(place, listener.accept()[0], arrived)
    try:
        process = _serve(place)
    except ConfigError as error:
        _answer(arrived, str(error))
        raise
    _answer(arrived, "")
    GROUP.service = process


def _late(missing, place):
    numbers = ", ".join(map(str, missing[:5])) + (" ..." if missing[5:] else "")
    return (f"--hosts: {len(missing)} of {place.count} processes ({numbers}) did not arrive at "
            f"{place.address} within {PATIENCE:.0f} s")


def _say_waiting(whom, place):
    warn(f"dreamer.py: --hosts: waiting for {whom} at {place.address} "
         f"(gives up after {PATIENCE:.0f} s)")


def _admit(place, connection, arrived):
    """One more process: its place must fit. Raises: ConfigError, told to all."""
    connection.settimeout(5.0)
    try:
        index, count = json.loads(connection.makefile("rb").readline(100))
        fits = type(index) is int and type(count) is int
    except (OSError, ValueError, TypeError):
        fits = False
    if not fits:  # some other program that tries all ports
        connection.close()
        return
    line = ""
    if count != place.count:
        line = f"--host: found {index}/{count}, but process 0 has 0/{place.count}"
    elif index in arrived or index == 0:
        line = f"--host: two processes have {index}/{count}"
    if line:
        _answer(arrived | {-1: connection}, line)
        raise ConfigError(line)
    arrived[index] = connection


def _answer(arrived, line):
    """Tell the processes that have arrived to go on, or what is wrong, and close."""
    for connection in arrived.values():
        try:
            connection.sendall(json.dumps(line).encode() + b"\n")
            connection.close()
        except OSError:
            pass  # it has ended, and will be missed


def _listen(place):
    """A socket at the address. Raises: OSError."""
    host, begun = place.host if place.host in LOOPBACK else "", time.monotonic()
    told = False
    while True:
        try:
            return socket.create_server((host, place.port), backlog=place.count)
        except OSError as error:
            if time.monotonic() > begun + TAKEN or "in use" not in str(error):
                reason = (error.strerror or str(error)).lower()
                raise ConfigError(f"--hosts: {place.address}: {reason}") from None
        if not told and time.monotonic() > begun + QUIET:
            told = True
            warn(f"dreamer.py: --hosts: waiting for the port of {place.address}, which is in use "
                 f"(gives up after {TAKEN:.0f} s)")
        time.sleep(0.2)


def _arrive(place, until):
    """Another process: connect to process 0 and wait until all are there."""
    begun, told = time.monotonic(), False
    while True:
        line = _asked(place)
        if line:
            raise ConfigError(line)
        if line is not None:
            return
        if time.monotonic() > until:
            raise ConfigError(f"--hosts: process 0 did not arrive at {place.address} within "
                              f"{PATIENCE:.0f} s")
        if not told and time.monotonic() > begun + QUIET:
            told = True
            _say_waiting("process 0", place)
        time.sleep(0.2)


def _asked(place):
    """What process 0 answers once all are there: "" to go on, else what is wrong

    None if it is not there: it has not come, or has gone, or a run before still has its port."""
    try:
        with socket.create_connection((place.host, place.port), timeout=5.0) as connection:
            connection.sendall(json.dumps([place.index, place.count]).encode() + b"\n")
            connection.settimeout(PATIENCE + 10)
            return json.loads(connection.makefile("rb").readline())
    except socket.gaierror:
        raise ConfigError(f"--hosts: {place.host}: no such machine") from None
    except (OSError, ValueError):
        return None


def _serve(place):
    """Start jax's coordination service: -> its process. Raises: ConfigError."""
    host = "127.0.0.1" if place.host in LOOPBACK else "[::]"
    command = [sys.executable, "-m", "utils.hosts.service", f"{host}:{place.port}",
               str(place.count)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, start_new_session=True)
    if process.stdout.readline() != service.READY:
        raise ConfigError(f"--hosts: {place.address}: jax's coordination service does not start")
    return process


def _connect(place):
    """Connect to jax's service, and let jax see the devices of all unless they stay apart."""
    import jax
    from jax._src import distributed  # its client has no public interface
    from jaxlib import _jax

    client = _jax.get_distributed_runtime_client(
        place.address, place.index, init_timeout=int(PATIENCE), use_compression=True,
        heartbeat_timeout=service.NEVER, shutdown_on_destruction=False)
    client.connect()
    if place.devices:
        for kind in ("cuda", "rocm"):
            jax.config.update(f"jax_{kind}_visible_devices", ",".join(map(str, place.devices)))
    if not place.apart:
        state = distributed.global_state
        state.client, state.coordinator_address = client, place.address
        state.process_id, state.num_processes = place.index, place.count
    GROUP.begin(place, client)
    WATCH.start()
