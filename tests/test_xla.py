"""XLA accepts the options of utils/core/xla.py with the installed jax, and does what they say."""

import jax
import jax.numpy as jnp
import pytest

import dreamer  # noqa: F401  # sets the flags before jax computes anything
from utils.core import xla

OLDER, NEWER = b"elemental_kernel_emitter", b"loop_fusion_kernel_emitter"
ONE = "--xla_force_host_platform_device_count=1"
OWN = f"--{xla.EXTRA}=xla_cpu_fast=1"


def _step(x, _):
    return jnp.exp(jnp.sin(x) + 1), x.sum()


def _loop(x):
    return jax.lax.scan(_step, x, length=3)


def _code(options):
    """What XLA has made of a small loop; it names the code generators that it used."""
    compiled = jax.jit(_loop).lower(jnp.ones((64, 64))).compile(options)
    return compiled.runtime_executable().serialize()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a choice of the CPU's compiler")
def test_small_programs_get_the_older_code_generator_and_large_ones_the_newer():
    small, large = _code({}), _code(xla.thorough())
    assert OLDER in small and NEWER not in small
    assert NEWER in large


@pytest.mark.parametrize("version, flag, options", [
    ("0.10.2", xla.LEAN, xla.THOROUGH), ("0.11.0", xla.LEAN_LATER, xla.THOROUGH_LATER)])
def test_each_jax_gets_the_name_that_it_knows(monkeypatch, version, flag, options):
    monkeypatch.setattr(xla.metadata, "version", lambda name: version)
    monkeypatch.setenv("XLA_FLAGS", ONE)
    xla._set_flags()
    found = xla.os.environ["XLA_FLAGS"].split()
    assert [name for name in found if name in (xla.LEAN, xla.LEAN_LATER)] == [flag]
    assert found[-1] == ONE  # the last one wins
    assert xla.thorough() == options


def test_extra_options_of_the_user_are_left_alone(monkeypatch):
    monkeypatch.setattr(xla.metadata, "version", lambda name: "0.11.0")
    monkeypatch.setenv("XLA_FLAGS", OWN)
    xla._set_flags()
    assert xla.LEAN_LATER not in xla.os.environ["XLA_FLAGS"] and xla.thorough() == {}
