"""What jax is told before it compiles: flags, where it keeps programs, what products multiply."""

import os
import re
from functools import partial
from pathlib import Path

import jax
import pytest

import dreamer
import gymnax_wrappers
from utils.core import backend, config, fast_forms, xla
from utils.core.settings import Config

SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


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


@pytest.mark.parametrize("on_cpu, kind", [(True, "bfloat16"), (False, "float32"),
                                          (False, "bfloat16")])
def test_only_a_gpu_multiplies_in_bfloat16_and_norms_and_losses_stay_float32(
        on_cpu, kind, monkeypatch):
    monkeypatch.setattr(fast_forms, "on_cpu", partial(bool, on_cpu))
    changed = settings(f"model.compute_dtype={kind}")
    program, _ = dreamer.build(changed, gymnax_wrappers.make("CartPole-v1"))
    loop = dreamer.init.eval_shape(program, jax.random.key(0))
    after, *_ = dreamer.train_chunk.eval_shape(program, loop, 1)
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, loop)
    text = dreamer.train_chunk.lower(program, loop, 1).as_text()
    products = re.findall(r"stablehlo\.dot_general.*", text)
    rounded = [one for one in products if one.count("xbf16>") == 3]  # both factors and the result
    everything = kind == "bfloat16" and not on_cpu
    assert len(products) > 50 and len(rounded) == (len(products) if everything else 0)
    assert ("xbf16>" in text) == everything
    for operation in ("rsqrt", "log"):  # of norms; of probabilities
        lines = re.findall(rf"stablehlo\.{operation} .*", text)
        assert lines and not any("bf16" in line for line in lines), operation


@pytest.mark.parametrize("wanted, plugins, quick", [
    ("", [], True), ("cpu", ["a GPU's"], True), ("", ["a GPU's"], False), ("cuda,cpu", [], False)])
def test_a_flag_that_a_gpus_compiler_reads_is_set_only_where_there_is_none(
        wanted, plugins, quick, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", wanted)
    monkeypatch.setenv("XLA_FLAGS", "--own")
    monkeypatch.setattr(xla.metadata, "entry_points", lambda group: plugins)
    monkeypatch.setattr(xla.util, "find_spec", lambda name: None)
    xla._set_flags()
    flags = os.environ["XLA_FLAGS"].split()
    assert (xla.QUICK in flags) == quick and flags[-1] == "--own"
    assert all("cpu" in flag or "host" in flag for flag in flags[:-1] if flag != xla.QUICK)
    xla._set_flags()  # as a program does that this one starts
    assert os.environ["XLA_FLAGS"].split() == flags


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
