"""Runs of dreamer.py within the process of the tests, which share what was compiled."""

from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest

import dreamer
from utils.core import xla


@contextmanager
def one_program():
    """In this block, runs with the same numbers have the same Program, compiled once."""
    made, compiled = {}, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dreamer, "build", partial(_build, made, dreamer.build))
        patch.setattr(xla, "forget", lambda: None)
        patch.setattr(xla, "compile_in_full", partial(_compile, compiled, xla.compile_in_full))
        yield


def _build(made, build, config, env):
    # nothing that is compiled reads these
    run = replace(config.run, seed=0, eval_every=1, save_every=1, save_replay=True)
    key = repr(replace(config, run=run)), env.name
    if key not in made:
        made[key] = build(config, env)
    return made[key]


def _compile(compiled, compile_in_full, function, program, *arguments):
    key = id(function), id(program), arguments[1:]  # without the shapes
    if key not in compiled:
        compiled[key] = compile_in_full(function, program, *arguments), function, program
    return compiled[key][0]
