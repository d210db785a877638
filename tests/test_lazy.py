"""What gymnax imports for its own drawings costs nothing until it is used."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from utils.core.lazy import import_when_used

ROOT = Path(__file__).parent.parent


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module that says in a file that it was imported."""
    (tmp_path / "late.py").write_text(
        f"open({str(tmp_path / 'seen')!r}, 'a').write('x')\nvalue = 3\n_hidden = 4\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "late"
    sys.modules.pop("late", None)


def test_a_module_is_imported_once_and_when_something_of_it_is_used(module, tmp_path):
    import_when_used(module)
    late = importlib.import_module(module)
    assert not hasattr(late, "__file__") and not (tmp_path / "seen").exists()
    assert late.value == 3 and late._hidden == 4 and late.value == 3
    assert (tmp_path / "seen").read_text() == "x"
    assert importlib.import_module(module) is not late  # the module itself, from now on
    assert (tmp_path / "seen").read_text() == "x"


def test_a_module_that_is_there_already_stays(module):
    late = importlib.import_module(module)
    import_when_used(module)
    assert sys.modules[module] is late


def test_a_missing_module_is_missing_when_it_is_used(tmp_path):
    import_when_used("no_such_module")
    with pytest.raises(ModuleNotFoundError):
        assert sys.modules["no_such_module"].value


def test_the_program_starts_without_pandas_and_gymnax_can_draw_all_the_same():
    code = """
import sys, dreamer, gymnax, jax
assert not {"pandas", "scipy.stats"} & set(sys.modules)
env, params = gymnax.make("Pong-misc")
_, state = env.reset(jax.random.key(0), params)
import matplotlib
matplotlib.use("Agg")
env.render(state, params)
assert "matplotlib.pyplot" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
