"""Every user error gets one helpful line and status 2, and leaves no files."""

import ast
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml

import dreamer
from utils.core import start
from utils.run import files

ROOT = Path(__file__).parent.parent
SHIPPED = str(ROOT / "dreamer.yaml")


@pytest.fixture
def refuse(tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder -> its one line of output."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(dreamer, "train", _never_train)
    return partial(_refused, capsys)


def _never_train(*_):
    pytest.fail("what should have been refused began to train")


def _refused(capsys, *argv):
    status = dreamer.main([*argv] if "--config" in argv else ["--config", SHIPPED, *argv])
    said = capsys.readouterr()
    assert (status, said.out, os.listdir()) == (2, "", [])
    assert said.err.startswith("dreamer.py: ") and said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize("flags, words", [
    (["--env", "CartPole-v2"], ["run.env", "'CartPole-v2'", "CartPole-v1"]),
    (["--preset", "size13m"], ["--preset", "'size13m'", "'size1m'"]),
    (["--set", "learning.gama=0.9"], ["--set: learning.gama", "unknown key", "'lambda_'"]),
    (["--set", "modle.deter=64"], ["--set: unknown section 'modle'", "'model'"]),
    (["--set", "deter=64"], ["--set", "section.key=value", "'deter=64'"]),
    (["--set", "model.deter"], ["--set", "section.key=value", "'model.deter'"]),
    (["--set", "model.deter=[1"], ["--set 'model.deter=[1'", "not valid YAML"]),
    (["--set", "model.deter=" + "[" * 5000], ["--set 'model.deter=[[", "not valid YAML", "nested"]),
    (["--set", "replay.batch=many"], ["replay.batch", "whole number", "'many'"]),
    (["--set", "replay.batch=true"], ["replay.batch", "whole number", "True"]),
    (["--set", "optimizer.lr=fast"], ["optimizer.lr", "a number more than 0", "'fast'"]),
    (["--set", "optimizer.lr=.nan"], ["optimizer.lr", "a number", "nan"]),
    (["--set", "replay.batch=0"], ["replay.batch", "at least 1", "found 0"]),
    (["--set", "model.actor_layers=1e9"], ["model.actor_layers", "at most 100", "1000000000"]),
    (["--set", "learning.horizon=0"], ["learning.horizon", "more than 1", "found 0"]),
    (["--set", "learning.imagination=0"], ["learning.imagination", "at least 1", "found 0"]),
    (["--set", "learning.lambda_=2"], ["learning.lambda_", "at most 1", "found 2"]),
    (["--set", "model.deter=130"], ["model.deter", "multiple of model.blocks = 8", "130"]),
    (["--set", "model.bins=254"], ["model.bins", "odd", "254"]),
    (["--set", "model.multipliers=[]"], ["model.multipliers", "list of whole numbers"]),
    (["--set", "replay.capacity=60"], ["replay.capacity", "at least one batch = 64", "found 60"]),
    (["--set", "replay.capacity=100", "--set", "run.envs=8"],
     ["replay.capacity", "= 136 rows", "found 100"]),
    (["--set", "run.prefill=8"], ["run.prefill", "= 34 steps", "found 8"]),
    (["--set", "run.observation=sound"], ["run.observation", "auto, vector, image", "'sound'"]),
    (["--steps", "0"], ["run.steps", "at least 1", "found 0"]),
    (["--steps", "400"], ["run.steps", "more than run.prefill = 400", "found 400"]),
    (["--steps", "some"], ["run.steps", "whole number", "'some'"]),
    (["--seed", "-1"], ["run.seed", "at least 0", "found -1"]),
    (["--seed", "1.5"], ["run.seed", "whole number", "found 1.5"]),
    (["--seed", str(2**32)], ["run.seed", "less than 4294967296"]),  # the same as seed 0
    (["--seed", "9" * 400], ["run.seed", "whole number", "999"]),
    (["--set", "run.train_ratio=1e-9"], ["run.train_ratio", "at least 0.0001", "1e-09"]),
    (["--env", "2020-13-45"], ["run.env=2020-13-45", "line 1", "not valid YAML", "no timestamp"]),
    (["--sed", "1"], ["--sed", "unknown flag", "'--seed'"]),
    (["--se", "1"], ["--se", "unknown flag", "'--set'"]),
    (["--print-config=5"], ["--print-config", "'5'"]),
    (["--seed"], ["--seed", "expected one argument"]),
    (["--seed", "1", "--seed=2"], ["--seed: is given 2 times"]),
    (["--steps", "20k"], ["--steps: run.steps", "'20k'"]),
    (["--steps", "300"], ["--steps: run.steps", "more than run.prefill = 400", "found 300"]),
    (["--set", "horizon=3"], ["did you mean 'learning.horizon'?"]),
    (["--set", "run.eval_limit=3e9"], ["run.eval_limit", "at most 2147483647"]),
    (["--set", "optimizer.lr=1e30"], ["optimizer.lr", "at most 1e+18"]),
    (["--set", "learning.eta=-1e30"], ["learning.eta", "at least 0", "-1e+30"]),
    (["--set", "model.std_bias=-1e30"], ["model.std_bias", "at least -1e+18", "-1e+30"]),
    (["--set", "run.steps=20k"], ["--set: run.steps", "'20k'"]),
    (["--config", ""], ["'': no such file"]),
    (["--env", "a\x1b[2Jb"], ["run.env", "a\\x1b[2Jb"]),
    (["--set", "run.env=" + "x" * 9000], ["xxx..."]),
    (["7"], ["7", "unknown flag"]),
    (["--env", "MNISTBandit-bsuite"], ["run.env", "MNISTBandit-bsuite", "download"]),
    (["--env", "Breakout-MinAtar", "--set", "model.multipliers=[1]", "--set", "model.depth=3"],
     ["model.depth", "multiple of model.blocks = 8", "found 3"]),
    (["--set", "run.observation=image"], ["run.observation", "2 or 3 axes", "CartPole-v1"]),
])
def test_a_wrong_flag_or_value_is_named_with_the_expected_one(refuse, flags, words):
    line = refuse(*flags)
    assert all(word in line for word in words), line


def _shipped_with(change):
    """The shipped file after a change of what is in it."""
    tree = yaml.safe_load(Path(SHIPPED).read_text(encoding="utf-8"))
    change(tree)
    return yaml.safe_dump(tree)


@pytest.mark.parametrize("text, words", [
    ("", ["is empty", "a mapping of sections"]),
    ("- run\n- model\n", ["expected a mapping", "['run', 'model']"]),
    ("run: [1\n", ["line 2", "is not valid YAML"]),
    ("run:\n\tseed: 1\n", ["line 2", "is not valid YAML"]),
    ("? [a]\n: b\n", ["is not valid YAML"]),
    (lambda tree: tree.pop("replay"), ["section 'replay' is missing"]),
    (lambda tree: tree["replay"].pop("batch"), ["replay.batch", "is missing"]),
    (lambda tree: tree["replay"].update(bacth=8), ["replay.bacth: unknown key", "'batch'"]),
    (lambda tree: tree.update(replya={}), ["unknown section 'replya'", "'replay'"]),
    (lambda tree: tree["replay"].update(batch="many"), ["replay.batch", "whole number", "'many'"]),
    (lambda tree: tree.update(replay=5), ["replay", "expected a mapping", "5"]),
    (lambda tree: tree.update(replay=False), ["replay", "a mapping", "False"]),
    (lambda tree: tree.update(presets=[1]), ["presets", "expected a mapping"]),
    (lambda tree: tree.update(presets=0), ["presets", "a mapping", "found 0"]),
    (lambda tree: tree["presets"].update(mine=[]), ["preset mine", "a mapping"]),
    (lambda tree: tree["presets"].update(mine={"model": []}),
     ["preset mine: model", "expected a mapping"]),
    ("run:\n  seed: 1\n  seed: 2\n", ["line 3", "'seed' occurs twice"]),
    ("run:\n  seed: 2020-13-45\n", ["line 2, column 9", "not valid YAML", "no timestamp"]),
    ("run: !!python/object/apply:os.getcwd []\n", ["line 1", "not valid YAML", "os.getcwd"]),
])
def test_a_wrong_file_is_named_with_its_error(refuse, tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    # not where the cases are listed: each of the processes would read the long file for all of them
    path.write_text(_shipped_with(text) if callable(text) else text, encoding="utf-8")
    line = refuse("--config", str(path))
    assert all(word in line for word in [str(path), *words]), line


def test_a_file_that_cannot_be_read_is_named(refuse, tmp_path):
    assert "no such file" in refuse("--config", str(tmp_path / "nowhere.yaml"))
    (tmp_path / "dreamer.yaml").write_text("run:\n")
    assert "did you mean 'dreamer.yaml'" in refuse("--config", str(tmp_path / "draemer.yaml"))
    assert "cannot be read" in refuse("--config", str(tmp_path))
    (tmp_path / "latin.yaml").write_bytes(b"run: \xe9\n")
    assert "is not UTF-8" in refuse("--config", str(tmp_path / "latin.yaml"))
    (tmp_path / "zero.yaml").write_bytes(b"run: \0\n")
    assert "is not valid YAML" in refuse("--config", str(tmp_path / "zero.yaml"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(refuse, tmp_path):
    path = tmp_path / "locked.yaml"
    path.touch(mode=0)
    assert "permission denied" in refuse("--config", str(path))


def test_a_folder_that_is_not_writable_or_contains_a_run_is_named(refuse, tmp_path):
    file = tmp_path / "file"
    file.touch()
    assert "cannot be written" in refuse("--logdir", str(file / "run"))
    assert "cannot be written" in refuse("--logdir", str(file))
    assert "name too long" in refuse("--logdir", "new/" + "x" * 300)
    done = tmp_path / "done"
    done.mkdir()
    (done / "metrics.jsonl").write_text("{}\n")
    assert "already contains a run" in refuse("--logdir", str(done))
    assert os.listdir(done) == ["metrics.jsonl"]


@pytest.mark.skipif(files.resource is None, reason="Windows")
def test_more_seeds_than_files_may_be_open_are_refused(refuse, monkeypatch):
    monkeypatch.setattr(files.resource, "getrlimit", lambda _: (200, 200))
    line = refuse("--preset", "debug", "--seeds", "300")
    assert "--seeds: 300 seeds need 1,232 open files, but 200 are allowed" in line
    files.check_open(42)  # as many as fit


@pytest.mark.parametrize(
    "name", ["config.yaml", "metrics.jsonl", "scores.jsonl", "learning_curve.png", "weights.npz"])
def test_no_file_of_a_run_is_ever_overwritten(refuse, tmp_path, name):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / name).write_text("mine")
    assert f"{kept}: already contains a run ({name})" in refuse("--logdir", str(kept))
    assert [path.name for path in kept.iterdir()] == [name]
    assert (kept / name).read_text() == "mine"


@pytest.mark.parametrize("found, words", [
    ((3, 10, 12), ["Python 3.11", "3.10.12"]), ((2, 7, 18), ["Python 3.11", "2.7.18"])])
def test_an_old_python_is_refused_with_the_required_version(monkeypatch, capsys, found, words):
    monkeypatch.setattr(start.sys, "version_info", found)
    with pytest.raises(SystemExit) as stopped:
        start.check()
    line = capsys.readouterr().err
    assert stopped.value.code == 2 and line.count("\n") == 1
    assert all(word in line for word in words), line


@pytest.mark.parametrize("package", ["jax", "flax", "optax", "gymnax"])
def test_an_old_package_is_named_with_the_required_version(monkeypatch, capsys, package):
    monkeypatch.setattr(start, "OLDEST", start.OLDEST | {package: (99, 1)})
    with pytest.raises(SystemExit) as stopped:
        start.check()
    line = capsys.readouterr().err
    assert stopped.value.code == 2 and line.count("\n") == 1
    assert f"{package} 99.1 or newer" in line and "requirements.txt" in line


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(start, "OLDEST", {"no-such-package": (1,)})
    assert "no-such-package is not installed" in start.package_problem()


def test_versions_are_compared_as_numbers():
    assert start.numbers("0.10.2") > start.numbers("0.9.30")
    assert start.numbers("0.11.0.dev1") == (0, 11, 0)


def _run_program(folder, *command, path=""):
    environment = os.environ | {"PYTHONPATH": str(path)}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment,
                          capture_output=True, text=True)
    assert (done.returncode, done.stdout, os.listdir(folder)) == (2, "", [])
    assert done.stderr.startswith("dreamer.py: ") and done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize("name, value, words", [
    ("JAX_ENABLE_X64", "1", ["JAX_ENABLE_X64", "32 bits"]),
    ("JAX_PLATFORMS", "cuda", ["jax finds no device", "cuda"])])
def test_settings_of_jax_that_cannot_work_get_one_line(empty, monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    line = _run_program(empty, ROOT / "dreamer.py", path=ROOT)
    assert all(word in line for word in words), line


def test_the_help_can_be_printed_where_the_output_is_ascii(monkeypatch):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, ROOT / "dreamer.py", "--help"], env=environment,
                          capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr and "learning.horizon" in done.stdout


@pytest.fixture
def empty(tmp_path):
    """An empty folder."""
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def test_the_program_itself_exits_with_status_2_and_one_line(empty):
    assert "CartPole-v1" in _run_program(empty, ROOT / "dreamer.py", "--env", "CartPole")


def test_an_old_jax_is_refused_before_it_is_imported(empty, tmp_path):
    old = tmp_path / "site" / "jax-0.4.30.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: jax\nVersion: 0.4.30\n")
    (tmp_path / "site" / "jax.py").write_text("raise SystemExit('jax was imported')\n")
    said = _run_program(empty, ROOT / "dreamer.py", path=tmp_path / "site")
    assert "jax 0.10 or newer is needed, found 0.4.30" in said


def test_an_old_python_is_refused_before_anything_is_imported(empty):
    pretend = ("import runpy, sys; sys.version_info = (3, 10, 1); sys.modules['jax'] = None; "
               f"runpy.run_path({str(ROOT / 'dreamer.py')!r}, run_name='__main__')")
    said = _run_program(empty, "-c", pretend, path=ROOT)
    assert "Python 3.11 or newer is needed, this is 3.10.1" in said


@pytest.mark.parametrize("name", ["dreamer", "utils/__init__", "utils/core/__init__",
                                  "utils/core/start", "utils/core/xla"])
def test_an_old_python_can_parse_the_files_up_to_the_version_check(name):
    ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"), feature_version=(3, 7))
