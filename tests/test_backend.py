"""What jax is told before it compiles: where it keeps programs, and what products multiply."""

import re
from pathlib import Path

import jax
import pytest

import dreamer
import gymnax_wrappers
from utils.core import backend, config
from utils.core.settings import Config

SETTINGS = ("jax_default_matmul_precision", "jax_compilation_cache_dir",
            "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(autouse=True)
def _as_before():
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def settings(*sets):
    """Numbers of the smallest agent, with some changed."""
    return config.load("dreamer.yaml", Config, ["debug"], list(sets))


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_products_and_nothing_else_are_of_the_type_that_is_asked_for(kind):
    changed = settings(f"model.compute_dtype={kind}", "run.compile_cache=false")
    backend.set_up(changed)
    program, _ = dreamer.build(changed, gymnax_wrappers.make("CartPole-v1"))
    loop = dreamer.init.eval_shape(program, jax.random.key(0))
    text = dreamer.train_chunk.lower(program, loop, 1).as_text()
    products = re.findall(r"stablehlo\.dot_general.*", text)
    rounded = [one for one in products if "lhs_precision_type = bf16" in one
               and "rhs_precision_type = bf16" in one and "accumulation_type = f32" in one]
    assert len(products) > 50 and len(rounded) == (len(products) if kind == "bfloat16" else 0)
    assert "xbf16>" not in text  # arrays stay what they were, weights and losses among them


def test_programs_are_kept_in_the_users_cache_one_folder_for_a_processor(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = backend.cache_folder()
    monkeypatch.setattr(backend, "processor", lambda: "another")
    assert here.parent == tmp_path / "dreamer" == backend.cache_folder().parent
    assert here != backend.cache_folder()


@pytest.mark.parametrize("platform, variable, folder", [
    ("linux", "HOME", ".cache"), ("darwin", "HOME", "Library/Caches"),
    ("win32", "LOCALAPPDATA", "")])
def test_the_users_cache_is_where_the_system_has_it(monkeypatch, tmp_path, platform, variable,
                                                    folder):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setenv(variable, str(tmp_path))
    assert backend.cache_folder().parent == tmp_path / folder / "dreamer"


def test_a_cache_that_the_user_has_set_for_jax_is_left_alone_and_none_is_set_unasked(tmp_path):
    backend.set_up(settings("run.compile_cache=false"))
    assert jax.config.jax_compilation_cache_dir is None
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    backend.set_up(settings("run.compile_cache=true"))
    assert Path(jax.config.jax_compilation_cache_dir) == tmp_path
