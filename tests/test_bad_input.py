"""Every mistake of the user's gets one line that helps, status 2, and leaves nothing behind."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml

import dreamer
from utils import versions

ROOT = Path(__file__).parent.parent
SHIPPED = str(ROOT / "dreamer.yaml")


@pytest.fixture
def refuse(tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder; gives the one line that it says."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return partial(_refused, capsys)


def _refused(capsys, *argv):
    status = dreamer.main(["--config", SHIPPED, *argv])
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
    (["--set", "model.deter=[1"], ["--set model.deter=[1", "not valid YAML"]),
    (["--set", "replay.batch=many"], ["replay.batch", "whole number", "'many'"]),
    (["--set", "replay.batch=true"], ["replay.batch", "whole number", "True"]),
    (["--set", "optimizer.lr=fast"], ["optimizer.lr", "a number more than 0", "'fast'"]),
    (["--set", "optimizer.lr=.nan"], ["optimizer.lr", "a number", "nan"]),
    (["--set", "replay.batch=0"], ["replay.batch", "at least 1", "found 0"]),
    (["--set", "learning.horizon=0"], ["learning.horizon", "more than 1", "found 0"]),
    (["--set", "learning.imagination=0"], ["learning.imagination", "at least 1", "found 0"]),
    (["--set", "learning.lambda_=2"], ["learning.lambda_", "at most 1", "found 2"]),
    (["--set", "model.deter=130"], ["model.deter", "multiple of model.blocks = 8", "130"]),
    (["--set", "model.bins=254"], ["model.bins", "odd", "254"]),
    (["--set", "model.multipliers=[]"], ["model.multipliers", "list of whole numbers"]),
    (["--set", "replay.capacity=100"], ["replay.capacity", "at least one batch = 128", "100"]),
    (["--set", "replay.capacity=60"], ["replay.capacity", "= 68 rows", "found 60"]),
    (["--set", "run.prefill=8"], ["run.prefill", "= 68 steps", "found 8"]),
    (["--set", "run.observation=sound"], ["run.observation", "auto, vector, image", "'sound'"]),
    (["--steps", "0"], ["run.steps", "at least 1", "found 0"]),
    (["--steps", "some"], ["run.steps", "whole number", "'some'"]),
    (["--seed", "-1"], ["run.seed", "at least 0", "found -1"]),
    (["--sed", "1"], ["--sed", "unknown flag", "'--seed'"]),
    (["--seed"], ["--seed", "expected one argument"]),
    (["7"], ["7", "unknown flag"]),
    (["--env", "MNISTBandit-bsuite"], ["run.env", "MNISTBandit-bsuite", "not supported"]),
    (["--set", "run.observation=image"], ["run.observation", "2 or 3 axes", "CartPole-v1"]),
])
def test_a_wrong_flag_or_value_is_named_with_what_was_expected(refuse, flags, words):
    line = refuse(*flags)
    assert all(word in line for word in words), line


def _shipped_with(change):
    tree = yaml.safe_load(Path(SHIPPED).read_text(encoding="utf-8"))
    change(tree)
    return yaml.safe_dump(tree)


@pytest.mark.parametrize("text, words", [
    ("", ["is empty", "a mapping of sections"]),
    ("- run\n- model\n", ["expected a mapping", "['run', 'model']"]),
    ("run: [1\n", ["line 2", "is not valid YAML"]),
    ("run:\n\tseed: 1\n", ["line 2", "is not valid YAML"]),
    ("? [a]\n: b\n", ["is not valid YAML"]),
    (_shipped_with(lambda tree: tree.pop("replay")), ["section 'replay' is missing"]),
    (_shipped_with(lambda tree: tree["replay"].pop("batch")), ["replay.batch", "is missing"]),
    (_shipped_with(lambda tree: tree["replay"].update(bacth=8)),
     ["replay.bacth: unknown key", "'batch'"]),
    (_shipped_with(lambda tree: tree.update(replya={})), ["unknown section 'replya'", "'replay'"]),
    (_shipped_with(lambda tree: tree["replay"].update(batch="many")),
     ["replay.batch", "whole number", "'many'"]),
    (_shipped_with(lambda tree: tree.update(replay=5)), ["replay", "expected a mapping", "5"]),
    (_shipped_with(lambda tree: tree.update(presets=[1])), ["presets", "expected a mapping"]),
])
def test_a_wrong_file_is_named_with_what_is_wrong_in_it(refuse, tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
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


def test_a_folder_that_cannot_be_written_or_holds_a_run_is_named(refuse, tmp_path):
    file = tmp_path / "file"
    file.touch()
    assert "cannot be written" in refuse("--logdir", str(file / "run"))
    assert "cannot be written" in refuse("--logdir", str(file))
    done = tmp_path / "done"
    done.mkdir()
    (done / "metrics.jsonl").write_text("{}\n")
    assert "already holds a run" in refuse("--logdir", str(done))
    assert os.listdir(done) == ["metrics.jsonl"]


@pytest.mark.parametrize("found, words", [
    ((3, 10, 12), ["Python 3.11", "3.10.12"]), ((2, 7, 18), ["Python 3.11", "2.7.18"])])
def test_an_old_python_is_told_what_is_needed(monkeypatch, capsys, found, words):
    monkeypatch.setattr(versions.sys, "version_info", found)
    with pytest.raises(SystemExit) as stopped:
        versions.check()
    line = capsys.readouterr().err
    assert stopped.value.code == 2 and line.count("\n") == 1
    assert all(word in line for word in words), line


@pytest.mark.parametrize("package", ["jax", "flax", "optax", "gymnax"])
def test_an_old_package_is_named_with_the_version_that_is_needed(monkeypatch, capsys, package):
    monkeypatch.setattr(versions, "OLDEST", versions.OLDEST | {package: (99, 1)})
    with pytest.raises(SystemExit) as stopped:
        versions.check()
    line = capsys.readouterr().err
    assert stopped.value.code == 2 and line.count("\n") == 1
    assert f"{package} 99.1 or newer" in line and "requirements.txt" in line


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(versions, "OLDEST", {"no-such-package": (1,)})
    assert "no-such-package is not installed" in versions.package_problem()


def test_versions_are_compared_as_numbers():
    assert versions.numbers("0.10.2") > versions.numbers("0.9.30")
    assert versions.numbers("0.11.0.dev1") == (0, 11, 0)


def test_the_program_itself_ends_with_status_2_and_one_line(tmp_path):
    command = [sys.executable, ROOT / "dreamer.py", "--env", "CartPole"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, os.listdir(tmp_path)) == (2, "", [])
    assert done.stderr.count("\n") == 1 and "CartPole-v1" in done.stderr
