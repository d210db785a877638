"""TensorBoard and Weights & Biases: asked for in the YAML, imported only then."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import pytest

import dreamer
from utils.core import config
from utils.core.settings import Config
from utils.run import sinks
from utils.run.logger import Logger

ROOT = Path(__file__).parent.parent


def _config(*sets):
    return config.load(ROOT / "dreamer.yaml", Config, ["debug"], sets)


class Recorder:
    """Stands in for a writer of either package: remembers every call."""

    def __init__(self, *args, purge_step=None):
        self.calls = [("open", args, purge_step)]

    def add_scalar(self, name, value, step):
        """As tensorboardX."""
        self.calls.append((name, value, step))

    def log(self, values, step):
        """As wandb."""
        self.calls.append((values, step))

    def flush(self):
        """As tensorboardX."""

    def close(self):
        """As tensorboardX."""
        self.calls.append("closed")

    finish = close  # as wandb


@pytest.fixture
def packages(monkeypatch):
    """Both packages, as recorders: what was opened, and the arguments of wandb.init."""
    opened, asked = [], {}
    board, bias = ModuleType("tensorboardX"), ModuleType("wandb")
    board.SummaryWriter = lambda *args, purge_step: (
        opened.append(Recorder(*args, purge_step=purge_step)) or opened[-1])
    bias.Error = RuntimeError
    bias.init = lambda project, name, id, dir, resume, config: (
        asked.update(project=project, name=name, id=id, resume=resume, config=config)
        or opened.append(Recorder(dir)) or opened[-1])
    monkeypatch.setitem(sys.modules, "tensorboardX", board)
    monkeypatch.setitem(sys.modules, "wandb", bias)
    return SimpleNamespace(opened=opened, asked=asked)


def test_both_get_every_row_under_cleanrls_names_and_are_closed(packages, tmp_path):
    settings = _config("log.tensorboard=true", "log.wandb=dreams")
    with Logger(tmp_path) as logger:
        logger.sinks = sinks.open_sinks(settings, tmp_path, 0)
        logger.metrics(8, {"charts/episodic_return": 2.0, "time/SPS": 90.0})
    board, bias = packages.opened
    assert board.calls == [("open", (str(tmp_path / "tensorboard"),), None),
                           ("charts/episodic_return", 2.0, 8), ("charts/SPS", 90.0, 8), "closed"]
    assert bias.calls[1:] == [({"charts/episodic_return": 2.0, "charts/SPS": 90.0}, 8), "closed"]
    assert packages.asked["project"] == "dreams" and packages.asked["name"] == tmp_path.name
    assert packages.asked["config"]["run"]["env"] == "CartPole-v1"
    json.dumps(packages.asked["config"])


def test_rows_after_the_checkpoint_of_a_resumed_run_are_void(packages, tmp_path):
    sinks.open_sinks(_config("log.tensorboard=true"), tmp_path, 300)
    assert packages.opened[0].calls == [("open", (str(tmp_path / "tensorboard"),), 301)]


def test_nothing_is_opened_that_was_not_asked_for(packages, tmp_path):
    assert sinks.open_sinks(_config(), tmp_path, 0) == [] == packages.opened


@pytest.mark.parametrize("flag, line", [
    ("log.tensorboard=true", "log.tensorboard: tensorboardX cannot be imported (import of "
     "tensorboardX halted; None in sys.modules): pip install tensorboardX"),
    ("log.wandb=mine", "log.wandb: wandb cannot be imported (import of wandb halted; None in "
     "sys.modules): pip install wandb"),
])
def test_a_missing_package_gets_one_line_with_what_to_install(
        flag, line, monkeypatch, tmp_path, capsys):
    for name in ("tensorboardX", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    assert dreamer.main(["--set", flag, "--logdir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == f"dreamer.py: {line}\n"
    assert not (tmp_path / "run").exists()


def test_a_run_has_one_identity_and_another_folder_of_its_name_another(packages, tmp_path):
    settings, identities = _config("log.wandb=dreams"), []
    for place in ("a", "a", "b"):
        folder = tmp_path / place / "run"
        folder.mkdir(parents=True, exist_ok=True)
        sinks.open_sinks(settings, folder, 0)
        identities.append(packages.asked["id"])
        assert packages.asked["name"] == "run"
    assert identities[0] == identities[1] != identities[2]


def test_who_is_not_logged_in_gets_one_line_and_no_run(packages, tmp_path, monkeypatch, capsys):
    refuse = mock.Mock(side_effect=RuntimeError("No API key configured.\nUse `wandb login`."))
    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    flags = ["--preset", "debug", "--set", "log.wandb=dreams"]
    assert dreamer.main([*flags, "--logdir", str(tmp_path / "a" / "run")]) == 2
    assert capsys.readouterr().err == "dreamer.py: log.wandb: No API key configured.\n"
    assert os.listdir(tmp_path) == []


def test_a_program_that_logs_to_neither_imports_neither(tmp_path):
    for name in ("tensorboardX", "wandb"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    done = subprocess.run([sys.executable, "-c", "import dreamer, utils.run.session, utils.watch"],
                          cwd=ROOT, env=os.environ | {"PYTHONPATH": str(tmp_path)},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
