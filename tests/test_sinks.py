"""TensorBoard and Weights & Biases: asked for in the YAML, imported only then."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import dreamer
from utils import config, sinks
from utils.logger import Logger
from utils.settings import Config

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
    bias.init = lambda project, name, id, dir, resume, config: (
        asked.update(project=project, name=name, id=id, resume=resume, config=config)
        or opened.append(Recorder(dir)) or opened[-1])
    monkeypatch.setitem(sys.modules, "tensorboardX", board)
    monkeypatch.setitem(sys.modules, "wandb", bias)
    return SimpleNamespace(opened=opened, asked=asked)


def test_both_get_every_row_under_cleanrls_names_and_are_closed(packages, tmp_path):
    settings = _config("log.tensorboard=true", "log.wandb=dreams")
    with Logger(tmp_path, 40) as logger:
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
    ("log.tensorboard=true", "log.tensorboard: tensorboardX is not installed: "
                             "pip install tensorboardX"),
    ("log.wandb=mine", "log.wandb: wandb is not installed: pip install wandb"),
])
def test_a_missing_package_gets_one_line_with_what_to_install(
        flag, line, monkeypatch, tmp_path, capsys):
    for name in ("tensorboardX", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    assert dreamer.main(["--set", flag, "--logdir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == f"dreamer.py: {line}\n"
    assert not (tmp_path / "run").exists()


def test_a_program_that_logs_to_neither_imports_neither():
    loaded = "import sys, dreamer; print({'tensorboardX', 'wandb'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
