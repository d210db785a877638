"""Machines and projects that differ from ours: a run goes on, and commands can be pasted."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from unittest import mock

import jax
import pytest

import dreamer
import gymnax_wrappers
from utils.core import backend, cli, machine, start
from utils.run import commands, files, signals


def raising(error):
    """A function that raises this error, whatever it is called with."""
    return lambda *_: (_ for _ in ()).throw(error)


def test_a_user_without_a_home_folder_has_no_cache(monkeypatch):
    monkeypatch.setattr(backend.Path, "home", raising(RuntimeError("no home directory")))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert backend.cache_folder() is None


@pytest.mark.skipif(files.fcntl is None, reason="Windows")
@pytest.mark.parametrize("number", files.UNSUPPORTED)
def test_a_file_system_without_locks_is_used_without_with_one_warning(
        tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(files.fcntl, "flock", raising(OSError(number, os.strerror(number))))
    os.close(files.lock(tmp_path))
    assert "knows no locks" in capsys.readouterr().err


def _sync_files_only(sync, descriptor):
    if Path(f"/proc/self/fd/{descriptor}").is_dir():
        raise OSError(errno.EINVAL, "invalid argument")
    sync(descriptor)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
def test_a_folder_that_cannot_be_synced_is_written_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "fsync", partial(_sync_files_only, os.fsync))
    files.replace(tmp_path / "a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"


def test_a_run_in_a_thread_goes_on_without_signals():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(_enter, signals.Stop(print, print)).result() is None


def _enter(stop):
    with stop:
        return stop.received


def test_an_environment_may_use_the_utils_of_its_own_project(tmp_path, monkeypatch):
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "__init__.py").touch()
    (tmp_path / "utils" / "maps_of_mine.py").write_text("from tests.fleet import Walk\n")
    (tmp_path / "with_utils.py").write_text("from utils.maps_of_mine import Walk\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert gymnax_wrappers.make("with_utils:Walk").action_size == 3


def test_a_command_can_be_pasted_in_the_folder_where_it_is_printed(tmp_path, monkeypatch):
    monkeypatch.setattr(commands.sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.chdir(machine.ROOT)
    python = str(tmp_path / ".venv" / "bin" / "python")
    assert commands.tool("watch", "runs/a b") == f"{python} -m utils.watch 'runs/a b'"
    assert commands.train("dreamer.py", "--resume", "x") == f"{python} dreamer.py --resume x"
    monkeypatch.chdir(tmp_path)
    assert commands.tool("watch", "x") == (
        f"PYTHONPATH={machine.ROOT} .venv/bin/python -m utils.watch x")
    (tmp_path / "utils").mkdir()
    assert " -P -m utils.watch" in commands.tool("watch", "x")


def _look(x):
    raise LookupError("no camera")


CALLS = {
    "debug": lambda x: (jax.debug.callback(_look, x), x)[1],
    "io": lambda x: jax.experimental.io_callback(_look, x, x),
    "pure": lambda x: jax.pure_callback(_look, x, x)}


def _fail(kind, *_):
    """Stands for training in an environment whose callback fails."""
    jax.block_until_ready(jax.jit(CALLS[kind])(jax.numpy.ones(1)))
    jax.effects_barrier()


@pytest.mark.parametrize("kind", CALLS)
def test_a_callback_that_fails_ends_the_run_with_its_line_and_how_to_resume(
        kind, tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.setattr(dreamer, "train", partial(_fail, kind))
    assert dreamer.main(["--preset", "debug", "--logdir", str(tmp_path / "run")]) == 1
    first, *others = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"dreamer.py: LookupError in .*_machines.py, line \d+: no camera", first)
    assert others == ["saved        nothing yet"] and caplog.records == []


def test_folders_are_made_all_or_none(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        files.make(tmp_path / "a" / "b", tmp_path / "file" / "c")
    assert os.listdir(tmp_path) == ["file"]
    made = files.make(tmp_path / "a" / "b", tmp_path / "a" / "c")
    assert sorted(os.listdir(tmp_path / "a")) == ["b", "c"]
    files.unmake(made)
    assert os.listdir(tmp_path) == ["file"]


def test_a_message_has_one_line_of_at_most_200_columns_with_its_begin_and_end():
    line = cli.one_line("dreamer.py: begin " + "some words\n" * 60 + "did you mean 'end'?")
    assert line.startswith("dreamer.py: begin some") and line.endswith("did you mean 'end'?")
    assert "..." in line and "\n" not in line and len(line) == 200


def test_an_error_inside_of_a_compiled_program_is_said_in_one_line():
    text = """INTERNAL: CpuCallback error calling callback: Traceback (most recent call last):
  File "site-packages/jax/callback.py", line 816, in wrapped
  File "mine.py", line 3, in look
    raise Dark("no camera")
mine.Dark: no camera
and no light"""
    for kind in (jax.errors.JaxRuntimeError, ValueError):  # jax raises both
        assert cli.reason(kind(text)) == "mine.Dark in mine.py, line 3: no camera"
    assert cli.reason(ValueError("run.env: no such thing")) == "run.env: no such thing"
    text = "RESOURCE_EXHAUSTED: Out of memory allocating 6 bytes.\nmore"
    assert cli.reason(jax.errors.JaxRuntimeError(text)) == text.splitlines()[0]


@pytest.mark.skipif(os.name == "nt", reason="the shell closes streams")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_opened_so_that_no_file_takes_their_place(closed):
    code = "import os, utils, sys; file = open(os.devnull); sys.exit(file.fileno() < 3)"
    done = subprocess.run(["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, code],
                          cwd=machine.ROOT, stdin=subprocess.DEVNULL)
    assert done.returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("program, handler", [
    (["dreamer.py"], signal.SIG_DFL), (["-m", "utils.watch"], signal.SIG_DFL),
    (["/a/dreamer4.py"], signal.SIG_DFL), (["dreamer5.py"], signal.default_int_handler),
    (["mine.py"], signal.default_int_handler), (["-m", "my.utils"], signal.default_int_handler)])
def test_ctrl_c_ends_the_imports_of_our_programs_at_once_and_not_those_of_others(program, handler):
    with mock.patch.object(sys, "orig_argv", [sys.executable, *program]):
        before = signal.getsignal(signal.SIGINT)
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            start.begin()
            assert signal.getsignal(signal.SIGINT) == handler
            start.heed_interrupts()
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        finally:
            signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("words, name", [
    (["dreamer4.py"], "dreamer4.py"), (["a/dreamer.py"], "dreamer.py"),
    (["-m", "utils.watch"], "dreamer.py"), (["mine.py"], "dreamer.py")])
def test_a_message_before_the_start_begins_with_the_program(words, name):
    with mock.patch.object(sys, "orig_argv", [sys.executable, *words]):
        assert start.program() == name


def _said_to_a_full_pipe(*_):
    time.sleep(60)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_second_signal_ends_a_process_whose_output_is_a_full_pipe():
    code = ("import signal, time; from utils.run import signals; from tests import test_machines;"
            "signals.PATIENCE = .1; stop = test_machines._said_to_a_full_pipe\n"
            "with signals.Stop(stop, stop) as running:\n"
            "    signal.raise_signal(signal.SIGINT)\n"
            "    while not running.received: time.sleep(.01)\n"
            "    signal.raise_signal(signal.SIGTERM)\n"
            "    time.sleep(60)")
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=machine.ROOT, timeout=50)
    assert done.returncode == 128 + signal.SIGTERM and time.monotonic() - began < 30


def test_a_damaged_program_in_the_cache_is_compiled_once_and_written_again(tmp_path):
    code = ("import jax, sys; from utils.core import backend, config; import dreamer\n"
            "settings = config.load('dreamer.yaml', dreamer.Config)\n"
            "backend.set_up(settings)\n"
            "jax.jit(lambda x: x * 2 + 1)(3.0).block_until_ready()")
    command = [sys.executable, "-c", code]
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    run = partial(subprocess.run, command, cwd=machine.ROOT, env=env, check=True, text=True,
                  capture_output=True)
    run()
    entry, *_ = tmp_path.glob("dreamer/*/jit__lambda-*")
    whole = entry.read_bytes()
    entry.write_bytes(whole[:len(whole) // 2])
    assert not run().stderr and len(entry.read_bytes()) > 0.9 * len(whole)


def test_a_reader_that_has_seen_enough_is_no_error():
    shell = f"{sys.executable} dreamer.py --help | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", shell], cwd=machine.ROOT, text=True,
                          capture_output=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("usage:")
