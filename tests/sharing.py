"""Runs of dreamer.py within the process of the tests, which share what was compiled."""

import signal
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, partialmethod

import pytest

import dreamer
from utils.core import xla
from utils.run import session
from utils.run.curves import PICTURE


@contextmanager
def one_program(draws=True):
    """In this block, runs with the same numbers have the same Program, compiled once.

    Unless it `draws`, the picture at the end of a run is an empty file: a run takes no longer."""
    made, compiled = {}, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dreamer, "build", partial(_build, made, dreamer.build))
        patch.setattr(xla, "forget", lambda: None)
        patch.setattr(xla, "compile_in_full", partial(_compile, compiled, xla.compile_in_full))
        if not draws:
            patch.setattr(session, "draw_run", lambda folder, *_: (folder / PICTURE).touch())
        yield
    xla.forget()


@contextmanager
def stopped_after(chunks, number):
    """In this block, a run gets a signal of this number when it has logged so many chunks."""
    signals = iter([None] * (chunks - 1) + [number])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session.Session, "log", partialmethod(
            _log_and_stop, session.Session.log, signals))
        yield


def _log_and_stop(run, log, signals, *arguments):
    log(run, *arguments)
    if number := next(signals, None):
        signal.raise_signal(number)


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
