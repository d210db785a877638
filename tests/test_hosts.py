"""Several processes train one agent: the same one, to the bit, and they stop and fail together.

In real processes, on this machine. What needs no training starts without it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import dreamer
from utils.run.checkpoint import Checkpoints

ROOT = Path(__file__).parent.parent
FLAGS = ["--preset", "debug", "--steps", "1600", "--set", "run.devices=2", "--set", "run.chunk=64",
         "--set", "run.eval_every=480", "--set", "run.save_every=160", "--set", "run.eval_limit=60"]


def _port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


# As those of a user are: compiled in a hurry, one program with two devices and two with one may
# round differently.
IN_FULL = {name: value for name, value in os.environ.items()
           if name != "JAX_DISABLE_MOST_OPTIMIZATIONS"}


class Processes:
    """Processes 0 to count - 1 of one run, and what each has said."""

    def __init__(self, command, flags, own=None, count=2):
        self.address, self.flags = f"localhost:{_port()}", flags
        self.all = [subprocess.Popen(
            [sys.executable, *command, *map(str, flags), "--hosts", self.address, "--host",
             f"{index}/{count}", *(own or {}).get(index, ())], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=IN_FULL) for index in range(count)]

    def ends(self, seconds=300):
        """-> [(status, output, errors)] of all, within so many seconds."""
        until, found = time.monotonic() + seconds, []
        for process in self.all:
            out, err = process.communicate(timeout=max(1, until - time.monotonic()))
            found.append((process.returncode, out, err))
        return found


@contextmanager
def _started(command, flags, own=None, count=2):
    processes = Processes(command, flags, own, count)
    try:
        yield processes
    finally:
        for process in processes.all:
            process.kill()
            process.communicate()


def _train(*flags, own=None):
    return _started([ROOT / "dreamer.py"], flags, own)


def _wait_for_step(processes, run, step):
    while (Checkpoints(run).last_step() or 0) < step:
        assert all(one.poll() is None for one in processes.all), processes.ends()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, in_full):
    """A run of one process with two devices."""
    run = tmp_path_factory.mktemp("whole") / "run"
    with in_full():
        assert dreamer.main([*FLAGS, "--logdir", str(run)]) == 0
    return run


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of two processes with a device each, of which the second got SIGTERM: (folder, ends)"""
    run = tmp_path_factory.mktemp("stopped") / "run"
    with _train(*FLAGS, "--logdir", run) as processes:
        _wait_for_step(processes, run, 320)
        processes.all[1].send_signal(signal.SIGTERM)
        return run, processes.ends(), processes.address


@pytest.fixture(scope="module")
def resumed(stopped):
    """The same run, resumed to its end."""
    run, *_ = stopped
    with _train("--resume", run) as processes:
        return run, processes.ends()


def _rows(path):
    """The rows of a log, without times."""
    return [{name: value for name, value in json.loads(line).items()
             if not name.startswith("time/")} for line in path.read_text("utf-8").splitlines()]


def test_a_signal_to_one_process_stops_all_at_the_same_chunk_and_says_how_to_resume(stopped):
    run, ends, address = stopped
    steps = [Checkpoints(folder).last_step() for folder in (run, run / "host-1")]
    assert 320 <= steps[0] == steps[1] < 1600
    assert [status for status, *_ in ends] == [143, 143], ends
    said = [ends[0][1], (run / "host-1" / "output.txt").read_text("utf-8")]
    for index, text in enumerate(said):
        assert (f"saved        step {steps[0]:,}; to resume: " in text
                and f"--resume {run} --hosts {address} --host {index}/2\n" in text)
    assert "hosts        2 processes, this is 0" in said[0]
    assert all(err == "" for *_, err in ends) and ends[1][1] == ""


def test_two_processes_stopped_and_resumed_equal_one_with_two_devices_to_the_bit(whole, resumed):
    run, ends = resumed
    assert [status for status, *_ in ends] == [0, 0], ends
    assert f"resuming     {run} from step" in ends[0][1]
    for log in ("metrics.jsonl", "scores.jsonl"):
        rows = _rows(whole / log)
        assert len(rows) > 10 and rows == _rows(run / log) == _rows(run / "host-1" / log)
    one, first, second = (Checkpoints(folder).load(pytest.fail)
                          for folder in (whole, run, run / "host-1"))
    assert one.record["step"] == first.record["step"] == second.record["step"]
    for name, array in one.arrays.items():
        found = first.arrays[name]
        if name.startswith("actor/"):
            found = np.concatenate([found, second.arrays[name]])
        assert np.array_equal(array, found), name
    for name, array in one.rows.items():
        both = np.concatenate([first.rows[name], second.rows[name]])
        assert array.dtype == both.dtype and np.array_equal(array, both), name
    with np.load(whole / "weights.npz") as ours, np.load(run / "weights.npz") as theirs:
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_the_agent_is_saved_once_and_each_process_saves_its_own_part(resumed):
    run, _ = resumed
    names = {path.name for path in run.iterdir()}
    assert names == {"checkpoints", "config.yaml", "host-1", "learning_curve.png", "metrics.jsonl",
                     "scores.jsonl", "weights.npz"}
    assert {path.name for path in (run / "host-1").iterdir()} == {
        "checkpoints", "metrics.jsonl", "output.txt", "scores.jsonl"}
    second = Checkpoints(run / "host-1").load(pytest.fail).arrays
    assert {name.partition("/")[0] for name in second} == {"actor", "key"}
    said = (run / "host-1" / "output.txt").read_text("utf-8")
    assert "steps 100%" in said and "dreamer.py:" not in said


def test_a_run_of_two_processes_is_not_resumed_by_one(resumed, capsys):
    run, _ = resumed
    before = sorted(run.rglob("*"))
    assert dreamer.main(["--resume", str(run), "--steps", "4800"]) == 2
    assert capsys.readouterr().err == (f"dreamer.py: {run}: was saved by 2 processes, found 1: it "
                                       "can only be resumed on as many (--hosts)\n")
    assert sorted(run.rglob("*")) == before
