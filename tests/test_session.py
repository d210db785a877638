"""Runs that are stopped, killed and resumed: in separate processes where these matter, else in this
one, where all runs share one compiled program."""

import json
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest

import dreamer
import gymnax_wrappers
from tests import sharing
from utils import evaluate
from utils.core.replay import Replay
from utils.run import commands
from utils.run.checkpoint import Checkpoints

ROOT = Path(__file__).parent.parent
# Small chunks, each evaluated and saved, so that a random moment often falls into a save.
FLAGS = ["--preset", "debug", "--seed", "5", "--steps", "1600", "--set", "run.chunk=64",
         "--set", "run.eval_every=64", "--set", "run.save_every=64", "--set", "run.eval_limit=60",
         # The learning rate rises for the whole run: one with more steps has the same program.
         "--set", "optimizer.warmup=1000"]
LAST_WEIGHTS = "agent/params/"


def _start(*flags, cwd=ROOT):
    return subprocess.Popen([sys.executable, ROOT / "dreamer.py", *map(str, flags)], cwd=cwd,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture(scope="module", autouse=True)
def _one_program():
    with sharing.one_program(draws=False):
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without interruption."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert dreamer.main([*FLAGS, "--logdir", str(run)]) == 0
    return run


def _last_step(run):
    return Checkpoints(run).last_step() or 0


def _wait_for_step(process, run, step):
    """Wait for a checkpoint of this step."""
    while process.poll() is None and _last_step(run) < step:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()


def _rows(path):
    """The rows of a log, without times."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items()
             if not name.startswith("time/")} for line in lines]


def _assert_same_run(run, other):
    for log in ("metrics.jsonl", "scores.jsonl"):
        assert _rows(run / log) == _rows(other / log)
    last, same = (Checkpoints(folder).load(pytest.fail) for folder in (run, other))
    assert last.record["step"] == same.record["step"] and last.arrays.keys() == same.arrays.keys()
    for arrays, others in ((last.arrays, same.arrays), (last.rows, same.rows)):
        for name, array in arrays.items():
            assert np.array_equal(array, others[name]), name
    assert any(name.startswith(LAST_WEIGHTS) for name in last.arrays)
    with np.load(run / "weights.npz") as kept, np.load(other / "weights.npz") as kept_too:
        assert all(np.array_equal(kept[name], kept_too[name]) for name in kept)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The output and the folder of a run that SIGTERM stopped."""
    run = tmp_path_factory.mktemp("stopped") / "run with space"
    process = _start(*FLAGS, "--logdir", run)
    _wait_for_step(process, run, 400)
    process.send_signal(signal.SIGTERM)
    return _finish(process), run


def _resumed(capsys, run, *flags):
    """Resume a run in this process: its status and its output."""
    capsys.readouterr()
    status = dreamer.main(["--resume", str(run), *flags])
    return status, *capsys.readouterr()


def _copy(run, folder):
    shutil.copytree(run, folder / "run")
    return folder / "run"


def _kill(run, times):
    """Start or resume a run and kill it at a random moment, again and again."""
    moments, kills = random.Random(run.name), 0
    while kills < times:
        process = _start(*(["--resume", run] if run.exists() else [*FLAGS, "--logdir", run]))
        _wait_for_step(process, run, _last_step(run) + 1)
        time.sleep(moments.uniform(0.0, 0.08))  # about the time of a chunk and its save
        process.kill()
        kills += process.wait() == -signal.SIGKILL  # not one that had just ended
        process.communicate()


@pytest.mark.parametrize("times", [
    2, pytest.param(10, marks=[pytest.mark.slow, pytest.mark.hurried])])
def test_a_run_that_is_killed_at_random_moments_ends_like_an_undisturbed_one(
        times, whole, stopped, tmp_path, capsys):
    run = tmp_path / f"killed-{times}"
    if times == 2:  # two kills find place in what is left of a run that was stopped
        shutil.copytree(stopped[1], run)
    _kill(run, times)
    status, out, err = _resumed(capsys, run)
    assert status == 0, err
    assert f"resuming     {run} from step" in out
    _assert_same_run(whole, run)


class NeverRun:
    """A stub for `train_chunk` where a run is refused: nothing is compiled or run."""

    def lower(self, *_):
        """Itself."""
        return self

    def compile(self):
        """Itself."""
        return self


@pytest.fixture
def no_chunk(monkeypatch):
    """A chunk of training is an error."""
    calls = dreamer.ONE_SEED._replace(train_chunk=NeverRun())
    monkeypatch.setattr(dreamer, "ONE_SEED", calls)


def test_sigterm_ends_the_chunk_saves_and_says_how_to_resume(stopped):
    (status, out, err), run = stopped
    assert status == 143 and not err
    assert "stopping" in out and not (run / "learning_curve.png").exists()
    command = re.search(r"saved +step [\d,]+; to resume: (.*)", out).group(1)
    assert command == commands.train("dreamer.py", "--resume", str(run))
    assert _last_step(run) == _rows(run / "metrics.jsonl")[-1]["step"] < 1600


def _pressing(checkpoints, save, signals, *arguments):
    """Save a checkpoint, and then send this process the next of the signals that are left."""
    save(checkpoints, *arguments)
    for number in signals:
        return signal.raise_signal(number)


def test_ctrl_c_does_the_same(stopped, tmp_path, monkeypatch, capsys):
    run = _copy(stopped[1], tmp_path)
    monkeypatch.setattr(Checkpoints, "save", partialmethod(
        _pressing, Checkpoints.save, iter([signal.SIGINT])))
    status, out, err = _resumed(capsys, run)
    assert status == 130 and not err and "dreamer.py --resume" in out
    assert _last_step(run) == _rows(run / "metrics.jsonl")[-1]["step"] < 1600


def test_two_processes_cannot_use_one_folder_and_a_run_saves_after_its_output_pipe_breaks(
        stopped, tmp_path, capsys):
    run = _copy(stopped[1], tmp_path)
    process = _start("--resume", run)
    assert any(line.startswith("device") for line in process.stdout)  # it has taken the folder
    status, _, err = _resumed(capsys, run)
    assert status == 2 and err == f"dreamer.py: {run}: another process is using this folder\n"
    process.stdout.close()  # as when Ctrl-C has ended the `| tee` before the run
    _wait_for_step(process, run, _last_step(run) + 1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 130 and process.stderr.read() == ""
    process.stderr.close()
    assert _last_step(run) == _rows(run / "metrics.jsonl")[-1]["step"]


@pytest.mark.parametrize("left", ['', '{"step": 1600, "charts/sco'])
def test_a_run_that_was_killed_while_writing_its_score_is_finished(
        left, whole, tmp_path, capsys):
    run = _copy(whole, tmp_path)
    (run / "learning_curve.png").unlink()
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]) + left, encoding="utf-8")
    status, _, err = _resumed(capsys, run)
    assert status == 0, err
    assert (run / "learning_curve.png").exists()
    _assert_same_run(whole, run)


def test_fewer_steps_than_the_run_has_made_are_refused(stopped, tmp_path, capsys):
    run = _copy(stopped[1], tmp_path)
    for _ in range(2):  # the second time, the folder is unlocked
        assert dreamer.main(["--resume", str(run), "--steps", "200"]) == 2
        assert "steps; continue it with a larger --steps" in capsys.readouterr().err
    assert "steps: 1600" in (run / "config.yaml").read_text(encoding="utf-8")


def test_someone_elses_checkpoint_cannot_change_files_outside_its_folder(
        stopped, no_chunk, tmp_path, capsys):
    run, precious = _copy(stopped[1], tmp_path), tmp_path / "precious.txt"
    precious.write_text("kept")
    saved = Checkpoints(run).load(pytest.fail)
    record = saved.record | {"logs": saved.record["logs"] | {"../precious.txt": 0}}
    Checkpoints(run).save(record, saved.arrays | {"key": np.zeros(7, np.uint32)})
    assert dreamer.main(["--resume", str(run)]) == 2
    assert "the array 'key' is uint32[7]" in capsys.readouterr().err
    assert precious.read_text() == "kept"
    assert (run / "metrics.jsonl").stat().st_size == (
        stopped[1] / "metrics.jsonl").stat().st_size  # a run that does not fit is left unchanged


def test_a_second_ctrl_c_quits_immediately(tmp_path):
    # a chunk that would last for minutes, longer than the limit below on any machine
    flags = ["--preset", "debug", "--steps", "10000000", "--set", "run.chunk=1000000"]
    with _start(*flags, "--logdir", tmp_path / "run") as process:
        try:
            assert any(line.startswith("compiling") for line in process.stdout)
            time.sleep(3)
            process.send_signal(signal.SIGINT)
            assert any(line.startswith("stopping") for line in process.stdout)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 130
        finally:
            process.kill()  # one that does not quit
        assert process.stdout.read() == ""  # no end of the chunk, nothing saved


def test_a_finished_run_continues_only_with_more_steps(whole, tmp_path, capsys):
    run = _copy(whole, tmp_path)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert dreamer.main(["--resume", str(run)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "continue it with a larger --steps" in err
    assert before == {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    status, _, err = _resumed(capsys, run, "--steps", "1800")
    assert status == 0, err
    rows, old = _rows(run / "metrics.jsonl"), _rows(whole / "metrics.jsonl")
    assert rows[:len(old) - 1] == old[:-1] and rows[-1]["step"] >= 1800
    assert "steps: 1800" in (run / "config.yaml").read_text()


@pytest.mark.parametrize("flags, named", [
    (["--env", "Pendulum-v1"], "run.env"),
    (["--seed", "6", "--set", "learning.horizon=50"], "run.seed, learning.horizon"),
])
def test_a_setting_that_must_not_change_is_named_and_nothing_changes(flags, named, whole, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in whole.iterdir()}
    assert dreamer.main(["--resume", str(whole), *flags]) == 2
    err = capsys.readouterr().err
    assert f"--resume: another {named} than" in err and err.count("\n") == 1
    assert before == {path.name: path.stat().st_mtime_ns for path in whole.iterdir()}


def test_a_run_whose_configuration_was_changed_by_hand_is_refused_before_its_world_is_made(
        stopped, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gymnax_wrappers, "configured", lambda run: pytest.fail("was imported"))
    run = _copy(stopped[1], tmp_path)
    text = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(text.replace("horizon: 333", "horizon: 50"), encoding="utf-8")
    assert dreamer.main(["--resume", str(run)]) == 2
    assert "--resume: another learning.horizon than" in capsys.readouterr().err


@pytest.mark.parametrize("log", ["metrics.jsonl", "scores.jsonl"])
@pytest.mark.parametrize("harmed", [b"?", b"\xff", b"[1]", b"{}", b'{"step": NaN}'])
def test_a_harmed_line_of_a_log_is_named_before_anything_is_trained(
        log, harmed, stopped, no_chunk, tmp_path, capsys):
    run = _copy(stopped[1], tmp_path)
    lines = (run / log).read_bytes().splitlines()
    lines[1] = harmed.ljust(len(lines[1]))
    (run / log).write_bytes(b"\n".join(lines) + b"\n")
    assert dreamer.main(["--resume", str(run)]) == 2
    err = capsys.readouterr().err
    assert f"{run / log}: line 2 is damaged" in err and err.count("\n") == 1


def test_arrays_of_another_shape_are_named(stopped, no_chunk, tmp_path, capsys):
    run = _copy(stopped[1], tmp_path)
    saved = Checkpoints(run).load(pytest.fail)
    arrays = saved.arrays | {"agent/params/actor/out/bias": np.zeros(3, np.float32)}
    Checkpoints(run).save(saved.record, arrays)
    assert dreamer.main(["--resume", str(run)]) == 2
    err = capsys.readouterr().err
    assert "the array 'agent/params/actor/out/bias' is float32[3], expected float32[2]" in err


@pytest.mark.parametrize("name, said", [
    ("run-2", "no such folder; did you mean 'run-1'?"),
    ("empty", "contains no run (no config.yaml)"),
    ("run-1", "is empty, expected a mapping of sections"),
    ("run-1/config.yaml", "expected the folder of a run, found"),
])
def test_a_folder_without_a_run_gets_one_line(name, said, tmp_path, capsys):
    (tmp_path / "run-1").mkdir()
    (tmp_path / "run-1" / "config.yaml").write_text("")
    (tmp_path / "empty").mkdir()
    assert dreamer.main(["--resume", str(tmp_path / name)]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_a_run_saved_without_its_replay_prefills_an_empty_one(stopped, tmp_path, capsys):
    run = _copy(stopped[1], tmp_path)
    checkpoints, step = Checkpoints(run), _last_step(run)
    saved = checkpoints.load(pytest.fail)
    shutil.rmtree(checkpoints.folder)
    checkpoints.save(saved.record, saved.arrays)
    status, out, err = _resumed(capsys, run, "--save-replay", "false")
    assert status == 0, err
    assert "replay       was not saved: it starts empty" in out
    steps = [row["step"] for row in _rows(run / "metrics.jsonl")]
    assert step + 96 + 64 in steps  # the prefill of the debug preset, then a chunk
    assert _last_step(run) >= 1600 and not list(checkpoints.folder.glob("rows-*"))


def test_a_damaged_checkpoint_is_skipped_and_a_partial_last_line_is_written_again(
        whole, stopped, tmp_path, capsys):
    run = _copy(stopped[1], tmp_path)
    path = run / "checkpoints" / f"{_last_step(run):010}.npz"
    path.write_bytes(path.read_bytes()[:-1000])
    for log in ("metrics.jsonl", "scores.jsonl"):
        with open(run / log, "a", encoding="utf-8") as file:
            file.write('{"step": 99999, "los')
    status, _, err = _resumed(capsys, run)
    assert status == 0, err
    assert f"{path}: is damaged (its SHA-256 differs); trying the checkpoint before it" in err
    _assert_same_run(whole, run)


@contextmanager
def _file_limit(size):
    """Limit the size of files, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("full", ["in a checkpoint", "in a log"])
def test_a_full_disk_ends_the_run_with_one_line_and_an_intact_last_checkpoint(
        full, stopped, tmp_path, capsys):
    run = _copy(stopped[1], tmp_path)
    before = _last_step(run)
    limit = 50_000 if full == "in a checkpoint" else (run / "metrics.jsonl").stat().st_size + 100
    with _file_limit(limit):
        status, _, err = _resumed(capsys, run)
    first, second = err.splitlines()
    assert (status, first) == (1, f"dreamer.py: {run}: file too large")
    assert second.startswith(f"saved        step {before:,}; to resume: ")
    assert second.endswith(commands.train("dreamer.py", "--resume", str(run)))
    assert Checkpoints(run).load(pytest.fail).record["step"] == before
    assert not list(run.rglob("*.tmp"))


def test_an_empty_name_is_not_a_run(capsys):
    for command, flags in ((dreamer, ["--resume", ""]), (evaluate, [""])):
        assert command.main(flags) == 2
        assert "expected the folder of a run, found ''" in capsys.readouterr().err


def test_non_finite_values_are_named_and_the_last_good_checkpoint_stays(
        stopped, tmp_path, capsys):
    run = _copy(stopped[1], tmp_path)
    saved, checkpoints = Checkpoints(run).load(pytest.fail), Checkpoints(run)
    step, written = saved.record["step"], saved.record["written"]
    rows = saved.rows | {"x": np.full_like(saved.rows["x"], np.nan)}
    shutil.rmtree(checkpoints.folder)
    replay = Replay(dreamer.Transition(**rows), np.int32(written))
    checkpoints.save(saved.record, saved.arrays, replay)
    status, _, err = _resumed(capsys, run)
    first, second = err.splitlines()
    update = saved.record["diary"]["updates"] + 1
    assert status == 1 and first == (
        f"dreamer.py: latents/posterior_entropy is nan in update {update:,}, "
        f"before step {step + 64:,}")
    assert second.startswith(f"saved        step {step:,}; to resume")
    assert checkpoints.last_step() == step == _rows(run / "metrics.jsonl")[-1]["step"]


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", "weights.npz"])
def test_a_run_that_leads_out_of_its_folder_is_refused_and_nothing_there_is_touched(
        stopped, tmp_path, capsys, name):
    run, victim = _copy(stopped[1], tmp_path), tmp_path / "victim"
    if name == "checkpoints":
        (run / name).rename(victim)
    else:
        victim.write_text("mine", encoding="utf-8")
        (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(victim)
    before = {path: path.stat().st_mtime_ns for path in [victim, *victim.glob("*")]}
    status, _, err = _resumed(capsys, run)
    assert status == 2 and f"{name}: is a link" in err and err.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in [victim, *victim.glob("*")]} == before
