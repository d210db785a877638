"""Several processes train one agent: the same one, to the bit, and they stop and fail together.

In real processes, on this machine. What needs no training starts without it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import dreamer
from tests import sharing
from utils.core import config, devices
from utils.core.settings import Config
from utils.hosts import group as the_group
from utils.hosts.group import Ended, Group
from utils.hosts.join import join, place_of
from utils.run import session
from utils.run.checkpoint import Checkpoints, Saved
from utils.run.session import Run

ROOT = Path(__file__).parent.parent
FLAGS = ["--preset", "debug", "--steps", "1600", "--set", "run.devices=2", "--set", "run.chunk=64",
         "--set", "run.eval_every=480", "--set", "run.save_every=160", "--set", "run.eval_limit=60"]


def _port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


class Processes:
    """Processes 0 to count - 1 of one run, and what each has said."""

    def __init__(self, command, flags, own=None, count=2):
        self.address, self.flags = f"localhost:{_port()}", flags
        self.all = [subprocess.Popen(
            [sys.executable, *command, *map(str, flags), "--hosts", self.address, "--host",
             f"{index}/{count}", *(own or {}).get(index, ())], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE) for index in range(count)]

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


def _train(*flags, own=None, count=2):
    return _started([ROOT / "dreamer.py"], flags, own, count)


def _wait_for_step(processes, run, step):
    while (Checkpoints(run).last_step() or 0) < step:
        assert all(one.poll() is None for one in processes.all), processes.ends()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of two processes with a device each, of which the second got SIGTERM: (folder, ends)"""
    return _stopped(tmp_path_factory.mktemp("stopped") / "run")


def _stopped(run):
    with _train(*FLAGS, "--logdir", run) as processes:
        _wait_for_step(processes, run, 320)
        processes.all[1].send_signal(signal.SIGTERM)
        return run, processes.ends(), processes.address


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


def test_two_processes_equal_one_with_two_devices_up_to_rounding(stopped, tmp_path):
    """Compiled in a hurry, as all in the fast group, two devices may round otherwise than one."""
    run, one = stopped[0], tmp_path / "one"
    with sharing.stopped_after(2, signal.SIGTERM):
        assert dreamer.main([*FLAGS, "--logdir", str(one)]) == 143
    for log in ("metrics.jsonl", "scores.jsonl"):
        rows = _rows(run / log)
        assert len(rows) > 3 and rows == _rows(run / "host-1" / log)
    ours, theirs = _rows(run / "metrics.jsonl"), _rows(one / "metrics.jsonl")
    for mine, other in zip(ours, theirs[:2], strict=False):
        assert mine.keys() == other.keys() and mine["step"] == other["step"]
        for name in (name for name in mine if name.startswith(("losses/", "latents/"))):
            np.testing.assert_allclose(mine[name], other[name], 1e-3, 1e-5, err_msg=name)
    played = [[row for row in _rows(folder / "scores.jsonl") if row["step"] <= ours[0]["step"]]
              for folder in (run, one)]
    assert played[0] == played[1] != []


@pytest.mark.slow
def test_two_processes_stopped_and_resumed_equal_one_with_two_devices_to_the_bit(tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert dreamer.main([*FLAGS, "--logdir", str(whole)]) == 0
    _stopped(run)
    with _train("--resume", run) as processes:
        ends = processes.ends()
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


def test_the_agent_is_saved_once_and_each_process_saves_its_own_part(stopped):
    run, *_ = stopped
    names = {path.name for path in run.iterdir()} - {"weights.npz"}  # of the best evaluation so far
    assert names == {"checkpoints", "config.yaml", "host-1", "metrics.jsonl", "scores.jsonl"}
    assert {path.name for path in (run / "host-1").iterdir()} == {
        "checkpoints", "metrics.jsonl", "output.txt", "scores.jsonl"}
    second = Checkpoints(run / "host-1").load(pytest.fail).arrays
    assert {name.partition("/")[0] for name in second} == {"actor", "key"}
    said = (run / "host-1" / "output.txt").read_text("utf-8")
    assert "eval" in said and "dreamer.py:" not in said


def test_a_run_of_two_processes_is_not_resumed_by_one(stopped, capsys):
    run, *_ = stopped
    before = sorted(run.rglob("*"))
    assert dreamer.main(["--resume", str(run), "--steps", "4800"]) == 2
    assert capsys.readouterr().err == (f"dreamer.py: {run}: was saved by 2 processes, found 1: it "
                                       "can only be resumed on as many (--hosts)\n")
    assert sorted(run.rglob("*")) == before


# ------------------------------------------------------------------------------------------------
# Who is missing, or goes: processes that join and train nothing
# ------------------------------------------------------------------------------------------------

LIGHT = """
import sys, time
from utils.hosts import join, watch
join.PATIENCE, join.QUIET, watch.OWN_END, watch.PERIOD = 20.0, 10.0, 0.5, 0.2
watch.SILENT, watch.LEAST = 5.0, 10.0  # a busy machine may keep a process waiting for seconds
join.join(sys.argv[1:])
GROUP, WATCH = join.GROUP, watch.WATCH
WATCH.folder, WATCH.hints = "RUN", lambda: ["saved        step 64"]
print("joined", flush=True)
"""
IMPATIENT = LIGHT.replace("20.0, 10.0,", "4.0, 0.5,")
# What process 1 does while the others wait for a chunk of training.
KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
STOPPED = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"
FAILS = "raise LookupError('of one process')"
HANGS = "time.sleep(60)"
WAITS = "with WATCH.a_chunk(): time.sleep(60)"


def _light(does, count=2, wrong=1):
    """Processes of which one does something wrong and the others wait for a chunk."""
    code = f"{LIGHT}\nif GROUP.index == {wrong}: {does}\n{WAITS}"
    return _started(["-c", code], [], count=count)


# Who does what, and what another one says.
WRONG = {
    "killed": (KILLED, 1, "process 1 has not been heard of for"),
    "fails": (FAILS, 1, "process 1 has ended; see RUN/host-1/output.txt"),
    "hangs": (
        HANGS, 1, "no chunk of training for 10 s: process 1 hangs; see RUN/host-1/output.txt")}
SLOW = {
    "first-killed": (KILLED, 0, "process 0 has not been heard of for"),
    "stopped": (STOPPED, 1, "process 1 has not been heard of for"),
    "first-hangs": (HANGS, 0, "no chunk of training for 10 s: process 0 hangs")}


@pytest.fixture(scope="module")
def side_by_side():
    """{name: the processes of WRONG, when they began}: all at once, for most of it is waiting."""
    with ExitStack() as stack:
        yield {name: (stack.enter_context(_light(does, wrong=wrong)), time.monotonic())
               for name, (does, wrong, _) in WRONG.items()}


def _one_ends(processes, began, wrong, line):
    """Whether one whose neighbour does something wrong ends as it should."""
    other = processes.all[1 - wrong]
    out, err = other.communicate(timeout=60)
    assert other.returncode == 1 and out == "joined\n"
    said = err.splitlines()
    assert said[0].startswith(f"dreamer.py: {line}") and said[1:] == ["saved        step 64"], err
    assert time.monotonic() - began < 40


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_the_others_end_soon_whoever_it_is(name):
    does, wrong, line = SLOW[name]
    with _light(does, wrong=wrong) as processes:
        _one_ends(processes, time.monotonic(), wrong, line)


@pytest.mark.usefixtures("side_by_side")  # these wait from here on, while other tests run
def test_a_process_that_never_arrives_is_named_while_it_is_waited_for_and_at_the_end():
    waiting = {
        0: ("1 of 2 processes", "1 of 2 processes (1) did not arrive at ADDRESS within 4 s"),
        1: ("process 0", "process 0 did not arrive at ADDRESS within 4 s")}
    addresses = {index: f"localhost:{_port()}" for index in waiting}
    alone = {index: subprocess.Popen(  # the two wait at the same time, each for another one
        [sys.executable, "-c", IMPATIENT, "--hosts", address, "--host", f"{index}/2"], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for index, address in addresses.items()}
    for index, (whom, line) in waiting.items():
        out, err = alone[index].communicate(timeout=60)
        assert alone[index].returncode == 2 and out == ""
        assert err.splitlines() == [
            f"dreamer.py: --hosts: waiting for {whom} at {addresses[index]} (gives up after 4 s)",
            f"dreamer.py: --hosts: {line.replace('ADDRESS', addresses[index])}"]


def test_processes_that_count_differently_are_both_refused():
    address = f"localhost:{_port()}"
    both = [subprocess.Popen([sys.executable, "-c", LIGHT, "--hosts", address, "--host", host],
                             cwd=ROOT, stderr=subprocess.PIPE, text=True)
            for host in ("0/2", "1/3")]
    said = [process.communicate(timeout=60)[1].splitlines() for process in both]
    assert [process.returncode for process in both] == [2, 2]
    assert [lines[-1] for lines in said] == [
        "dreamer.py: --host: found 1/3, but process 0 has 0/2"] * 2


def test_a_second_process_0_says_that_the_port_is_in_use():
    address, code = f"localhost:{_port()}", LIGHT.replace("20.0, 10.0,", "60.0, 0.5,")
    with ExitStack() as stack:
        for line in ("for 1 of 2 processes at ADDRESS (gives up after 60 s)",
                     "for the port of ADDRESS, which is in use (gives up after 90 s)"):
            process = stack.enter_context(subprocess.Popen(
                [sys.executable, "-c", code, "--hosts", address, "--host", "0/2"], cwd=ROOT,
                stderr=subprocess.PIPE, text=True))
            stack.callback(process.kill)
            assert process.stderr.readline() == (
                f"dreamer.py: --hosts: waiting {line.replace('ADDRESS', address)}\n")


@pytest.mark.parametrize("name", WRONG)
def test_the_others_end_soon_in_one_line_and_say_how_to_go_on(name, side_by_side):
    _one_ends(*side_by_side[name], *WRONG[name][1:])


@pytest.mark.parametrize("flags, line", [
    (["--hosts", "localhost:1234", "--host", "4/4"],
     "--host: expected index/count such as 0/4, found '4/4'"),
    (["--hosts", "localhost:1234", "--host", "one"],
     "--host: expected index/count such as 0/4, found 'one'"),
    (["--hosts", "localhost:1234"], "--hosts localhost:1234: needs --host index/count such as 0/4"),
    (["--hosts", "localhost", "--host", "0/2"],
     "--hosts: expected auto or ADDRESS:PORT, found 'localhost'"),
    (["--hosts", "localhost:70000", "--host", "0/2"],
     "--hosts: expected auto or ADDRESS:PORT, found 'localhost:70000'"),
    (["--host", "0/2"], "--host: is only for --hosts ADDRESS:PORT"),
    (["--hosts", "auto", "--host", "0/2"], "--host: cannot be used with --hosts auto"),
    (["--hosts", "auto"], "--hosts: auto found no SLURM, Open MPI or Kubernetes"),
    (["--hosts", "no.such.machine.invalid:1234", "--host", "1/2"],
     "--hosts: no.such.machine.invalid: no such machine"),
])
def test_a_wrong_place_is_refused_before_anything_begins(flags, line, capsys):
    with pytest.raises(SystemExit, match="2"):
        join(flags)
    assert capsys.readouterr().err == f"dreamer.py: {line}\n"


def test_slurm_says_the_place_of_a_process_to_auto(monkeypatch):
    for name, value in {"JOB_ID": "31000", "STEP_NODELIST": "node[3-6]", "NTASKS": "4",
                        "PROCID": "2", "LOCALID": "0", "STEP_NUM_NODES": "4"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    place = place_of(["--hosts", "auto", "--seed", "1"])
    assert (place.host, place.index, place.count) == ("node3", 2, 4)
    assert place.flags == ("--hosts", "auto") and not place.apart


def test_another_seed_in_one_process_is_refused_by_all_and_leaves_nothing(tmp_path):
    with _train("--preset", "debug", "--set", "run.devices=2", "--logdir", tmp_path / "run",
                own={1: ["--seed", "1"]}) as processes:
        ends = processes.ends(120)
    line = "dreamer.py: process 1 has another run.seed (1, process 0 has 0)\n"
    assert ends == [(2, "", line), (2, "", line)]
    assert not any(tmp_path.iterdir())


class Store:
    """What jax's client of the coordination service does, for groups in one process."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, name, value, again):
        assert again or name not in self.values
        self.values[name] = value

    def key_value_dir_get(self, name):
        return [(key, value) for key, value in self.values.items() if key.startswith(name)]


@pytest.fixture
def three():
    """Three processes of one run, without processes."""
    groups, store = [Group() for _ in range(3)], Store()
    for index, group in enumerate(groups):
        group.index, group.count, group._client = index, 3, store
    return groups


def test_a_signal_to_some_stops_all_after_the_chunk_that_follows_the_first(three):
    first, second, third = three
    assert [first.stops(3, None), second.stops(3, 15), third.stops(3, None)] == [None] * 3
    assert [third.stops(4, 2), first.stops(4, None), second.stops(4, 15)] == [15] * 3


def test_what_all_tell_is_gathered_in_order_and_an_end_is_not_waited_for(three):
    with ThreadPoolExecutor(3) as pool:
        found = [*pool.map(lambda group: group.gather("step", 10 * group.index), three)]
    assert found == [[0, 10, 20]] * 3
    three[1]._tell_end("a full disk")
    with pytest.raises(Ended, match="process 1 has ended: a full disk"):
        three[0].gather("more", None)


def test_what_a_process_has_told_counts_although_it_has_ended_since(three):
    for group in three[1:]:
        group.post(f"step/{group.index}", 10 * group.index)
    three[1]._tell_end("another seed")
    assert three[0].gather("step", 0) == [0, 10, 20]


def test_a_process_that_tells_nothing_is_given_up_by_name(three, monkeypatch):
    monkeypatch.setattr(the_group, "PATIENCE", 0.05)
    three[1].post("step/1", 10)
    with pytest.raises(Ended, match="process 2 has told nothing for 0 s"):
        three[0].gather("step", 0)


@pytest.mark.parametrize("silent", [False, True])
def test_process_0_waits_at_its_end_for_those_that_live_and_not_for_the_silent(
        silent, three, monkeypatch):
    monkeypatch.setattr(the_group, "PAUSE", 0.01)
    monkeypatch.setattr(the_group, "SILENT", 0.05)
    began, first = time.monotonic(), three[0]
    told = first.told
    alive = 0 if silent else 1  # process 0 itself lives on; one that is silent was killed
    first.post("left/2", None)
    monkeypatch.setattr(first, "told", lambda name: told(name) | (
        {alive: time.monotonic(), 2: time.monotonic()} if name == "beat" else {}))
    first._wait_for_others(1.0)
    assert (time.monotonic() - began < 0.9) == silent


class Newest:
    """The Checkpoints of a process: the newest step, and the rows of its replay."""

    def __init__(self, step, rows):
        self.step, self.rows = step, rows

    def load(self, _warned, step=None):
        """A Saved without arrays."""
        return Saved({"step": step or self.step}, {}, self.rows)


class Mine:
    """The Group of the thread that asks."""

    here = threading.local()

    def __getattr__(self, name):
        return getattr(self.here.group, name)


def _load_common(group, checkpoints):
    Mine.here.group = group
    return Run._load_common(SimpleNamespace(checkpoints=checkpoints), None)


def test_all_begin_with_an_empty_replay_where_one_has_lost_its_part(three, monkeypatch):
    monkeypatch.setattr(session, "GROUP", Mine())
    newest = [Newest(9600, {"x": [1]}), Newest(4800, None), Newest(4800, {"x": [1]})]
    with ThreadPoolExecutor(3) as pool:
        found = [*pool.map(_load_common, three, newest)]
    assert [(saved.record["step"], saved.rows) for saved in found] == [(4800, None)] * 3


@pytest.mark.parametrize("name, value, line", [
    ("run.seed", "1", r"process 2 has another run.seed \(1, process 0 has 0\)"),
    ("jax", "0.9", r"process 2 has another jax \(0.9, process 0 has 0.10\)")])
def test_another_fact_in_one_process_is_refused_by_all_in_the_same_line(name, value, line, three):
    same = {"run.seed": "0", "jax": "0.10"}
    facts = [same, same, same | {name: value}]
    with ThreadPoolExecutor(3) as pool:
        for told in [pool.submit(one.agree, mine) for one, mine in zip(three, facts)]:
            with pytest.raises(ValueError, match=line):
                told.result()


def test_seeds_are_shared_out_as_equally_as_can_be(three):
    for group in three:
        group.apart = True
    assert [[*group.share(7)] for group in three] == [[0, 1], [2, 3], [4, 5, 6]]
    three[1].apart = False
    assert [*three[1].share(2)] == [0, 1]


def test_a_process_without_its_part_of_the_common_checkpoint_is_refused(tmp_path):
    part = tmp_path / "host-2"
    part.mkdir()
    with pytest.raises(ValueError, match="host-2: holds no checkpoint of step 4,800"):
        Checkpoints(part).load(pytest.fail, 4800)


@pytest.mark.slow
def test_processes_that_share_out_seeds_need_each_other_only_to_begin(tmp_path):
    flags = [flag.replace("1600", "800") for flag in FLAGS]
    with _train(*flags, "--seeds", "3", "--logdir", tmp_path / "run") as processes:
        assert [status for status, *_ in processes.ends()] == [0, 0]
    found = {path.name for path in (tmp_path / "run").iterdir()}
    assert found == {"learning_curve.png", "host-1", "seed-0", "seed-1", "seed-2"}
    with _train(*flags, "--seeds", "2", "--logdir", tmp_path / "other") as processes:
        _wait_for_step(processes, tmp_path / "other" / "seed-1", 160)
        processes.all[1].kill()
        assert [status for status, *_ in processes.ends()] == [0, -signal.SIGKILL]
    assert dreamer.main(["--resume", str(tmp_path / "other" / "seed-1")]) == 0


@pytest.mark.parametrize("sets, line", [
    (["run.envs=3"], "2 processes need run.envs, replay.batch and run.devices that are multiples "
                     "of 2, found 3, 4 and 1"),
    (["run.devices=2", "replay.batch=5"], "found 2, 5 and 2")])
def test_work_that_cannot_be_divided_is_refused(sets, line, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(devices, "_of_processes", lambda: [jax.devices()[:1]] * 2)
    settings = config.load(ROOT / "dreamer.yaml", Config, ["debug"], sets)
    with pytest.raises(ValueError, match=line):
        devices.count(settings)


# ------------------------------------------------------------------------------------------------
# The same in the middle of training
# ------------------------------------------------------------------------------------------------

# A silence of fifteen seconds is enough to be taken for dead.
SOON = f"""
import runpy, sys
from utils.hosts import watch
watch.SILENT = 15.0
sys.argv[0] = {str(ROOT / "dreamer.py")!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("number, wrong", [
    (signal.SIGKILL, 0), (signal.SIGKILL, 1), (signal.SIGSTOP, 0), (signal.SIGSTOP, 1)])
def test_a_run_one_of_whose_processes_is_gone_ends_and_goes_on_later(number, wrong, tmp_path):
    run = tmp_path / "run"
    longer = [flag.replace("1600", "16000") for flag in FLAGS]
    with _started(["-c", SOON], [*longer, "--logdir", run]) as processes:
        _wait_for_step(processes, run, 320)
        processes.all[wrong].send_signal(number)
        began, other = time.monotonic(), processes.all[1 - wrong]
        out, err = other.communicate(timeout=60)
    said = (err if wrong else (run / "host-1" / "output.txt").read_text("utf-8")).splitlines()
    assert other.returncode == 1 and time.monotonic() - began < 45
    assert f"dreamer.py: process {wrong} has not been heard of for" in said[-2], said
    assert said[-1].startswith("saved        step ") and f"--host {1 - wrong}/2" in said[-1]
    with _train("--resume", run, "--steps", "1600") as processes:
        assert [status for status, *_ in processes.ends()] == [0, 0]
    assert _rows(run / "metrics.jsonl") == _rows(run / "host-1" / "metrics.jsonl")


@pytest.mark.slow
def test_four_processes_begin_like_one_with_four_devices_up_to_rounding(tmp_path):
    flags = [flag.replace("1600", "480").replace("devices=2", "devices=4") for flag in FLAGS]
    flags += ["--set", "run.envs=4"]
    four, one = tmp_path / "four", tmp_path / "one"
    with _train(*flags, "--logdir", four, count=4) as processes:
        ends = processes.ends()
    assert [status for status, *_ in ends] == [0] * 4, ends
    devices_of_one = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run([sys.executable, "dreamer.py", *flags, "--logdir", str(one)], cwd=ROOT,
                          env=os.environ | devices_of_one, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, expected = _rows(four / "metrics.jsonl"), _rows(one / "metrics.jsonl")
    assert len(found) == len(expected) > 3 and found[0].keys() == expected[0].keys()
    for name in (name for name in expected[0] if name.startswith("losses/")):
        # Sums are rounded otherwise, and soon a draw differs.
        np.testing.assert_allclose(found[0][name], expected[0][name], 0.05, 0.01, err_msg=name)
    assert all(_rows(four / f"host-{index}" / "metrics.jsonl") == found for index in range(1, 4))
    parts = [four, *(four / f"host-{index}" for index in range(1, 4))]
    whole, *own = (Checkpoints(folder).load(pytest.fail).rows["x"] for folder in (one, *parts))
    before = 96 // 4  # rows of each environment before the first update
    np.testing.assert_array_equal(np.concatenate(own)[:, :before], whole[:, :before])


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_with_a_line_each(tmp_path):
    run = tmp_path / "run"
    with _train(*FLAGS, "--logdir", run) as processes:
        while not (run / "host-1").is_dir():
            time.sleep(0.01)
        (run / "host-1" / "checkpoints").touch()  # a file in the place of its folder
        ends = processes.ends(120)
    assert [status for status, *_ in ends] == [1, 1]
    said = ends[0][2].splitlines()
    assert said[0] == f"dreamer.py: process 1 has ended; see {run}/host-1/output.txt"
    assert said[1].startswith("saved        ") and not said[2:]
    text = (run / "host-1" / "output.txt").read_text("utf-8")
    assert f"dreamer.py: {run}/host-1/checkpoints: file exists\n" in text
