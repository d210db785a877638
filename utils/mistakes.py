"""Trains an agent with a classic mistake in dreamer.py, or checks that a test finds it.

    python -m utils.mistakes                       list the mistakes of docs/mistakes.md
    python -m utils.mistakes NAME --steps 4800     train with one; all flags of dreamer.py work
    python -m utils.mistakes --check [NAME ...]    check that the test of each one fails
    python -m utils.mistakes --curves [NAME ...]   train with each, into docs/mistakes.json and .png
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from utils.core import cli
from utils.core.config import ConfigError, nearest
from utils.course import mistakes
from utils.run import files
from utils.run.curves import series
from utils.run.logger import read_rows
from utils.study import charts, runs

ROOT = mistakes.ROOT
CURVES, PICTURE = ROOT / "docs" / "mistakes.json", ROOT / "docs" / "mistakes.png"
RUN = ("--steps", "4800", "--episodes", "30")  # of CartPole-v1, seed 0
NONE = "full"  # the name of the agent without a mistake
WORDS = ("without a mistake", "with the mistake")  # of the picture
LAST = ("losses/decoder", "losses/dynamics", "losses/continue", "imagination/value",
        "imagination/continue", "actor/entropy")  # metrics whose last value is saved


def main(argv=None):
    """The command -> exit status: 2 for a wrong flag or name, or a mistake that does not fit"""
    try:
        known = mistakes.known()
        flags = _flags(argv, known)
        chosen = flags.check if flags.check is not None else flags.curves
        if flags.name is None and chosen is None:
            print("\n".join(f"{one.name:36} {one.function:22} {one.sentence}"
                            for one in known.values()))
            return 0
        names = [flags.name] if flags.name else chosen or list(known)
        if flags.curves == []:
            names = [one.name for one in known.values() if one.seen]
        texts = {name: mistakes.mutated(known[name]) for name in names}
        if flags.name:
            return train(known[flags.name], texts[flags.name], flags.rest)
        return check(known, texts) if flags.curves is None else curves(names)
    except (ValueError, OSError) as error:
        return cli.complain(error, "utils.mistakes")


def _flags(argv, known):
    parser = cli.Parser("python -m utils.mistakes", description=__doc__.splitlines()[0],
                        allow_abbrev=False)
    parser.add_argument("name", metavar="NAME", nargs="?", help="train with this mistake")
    parser.add_argument("rest", metavar="FLAG", nargs=argparse.REMAINDER,
                        help="flags of dreamer.py for that")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", metavar="NAME", nargs="*",
                      help="check that the test of each one fails (default: of all)")
    what.add_argument("--curves", metavar="NAME", nargs="*",
                      help="train with each, unless already done, and plot all returns "
                      "(default: those with an observed symptom)")
    flags, unknown = parser.parse_known_args(argv)
    if unknown:
        meant = nearest(unknown[0], ["--check", "--curves"])
        raise ConfigError(f"{unknown[0]}: unknown flag{meant}")
    for name in (flags.name, *(flags.check or ()), *(flags.curves or ())):
        if name is not None and name not in known:
            raise ConfigError(f"{name}: expected the name of a mistake{nearest(name, known)}")
    return flags


def train(mistake, text, flags):
    """Train an agent with a mistake and these flags of dreamer.py: -> exit status"""
    mistakes.install(text)
    print(f"mistake      {mistake.name}: {mistake.sentence}", flush=True)
    status = sys.modules["dreamer"].main(flags)
    if status > 128:
        print(f"mistake      to continue: python -m utils.mistakes {mistake.name} --resume ...")
    return status


# ---- Do the tests find them? ---------------------------------------------------------------------


class Outcomes:
    """A plugin of pytest that records passed tests and the errors of failed ones, by name."""

    def __init__(self):
        self.passed, self.failed = [], {}

    def pytest_runtest_logreport(self, report):
        """Called by pytest after each part of a test."""
        if report.when == "call" and report.passed:
            self.passed.append(report.nodeid)

    def pytest_exception_interact(self, node, call):
        """Called by pytest after an error, also of an import."""
        self.failed[node.nodeid] = f"{call.when}: {call.excinfo.type.__name__}"


def tested(tests):
    """Run tests on the installed module `dreamer`, in this process: -> Outcomes"""
    import pytest  # needed only here

    outcomes = Outcomes()
    # the disabled plugin runs the garbage collector after each run: half the time of a quick test
    flags = ["-q", "-x", "--tb=no", "-m", "", "-p", "no:cacheprovider", "-p",
             "no:unraisableexception", f"--rootdir={ROOT}"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        pytest.main([*(f"{ROOT}/{test}" for test in tests), *flags], plugins=[outcomes])
    return outcomes


def survives(mistake, text):
    """Why a mistake is not found, "" if its test fails by an assertion."""
    mistakes.install(text)
    outcomes = tested([mistake.test])
    if not outcomes.failed:
        return "it passes" if outcomes.passed else "there is no such test"
    (how,) = outcomes.failed.values()
    return "" if how == "call: AssertionError" else f"it fails otherwise ({how})"


def check(known, texts):
    """Print for each mistake, {name: text with it}, whether its test finds it: -> exit status

    One test of each file is also run without a mistake, and must pass."""
    tests = {known[name].test.partition("::")[0]: known[name].test for name in texts}
    mistakes.install(mistakes.PROGRAM.read_text(encoding="utf-8"))
    correct = tested(tests.values())
    wrong = [f"{test}: fails without a mistake ({how})" for test, how in correct.failed.items()]
    for name, text in texts.items():
        test, why = known[name].test, survives(known[name], text)
        print(f"{name:36} {'survives' if why else 'killed by'} {test}", flush=True)
        wrong += [f"{name}: survives {test}: {why}"] * bool(why)
    print("\n".join(wrong), file=sys.stderr, end="\n" * bool(wrong))
    return 1 if wrong else 0


# ---- Their symptoms ------------------------------------------------------------------------------


def curves(names):
    """Train without and with each mistake, unless already done, and plot returns: -> exit status

    A run that ends early, for example by a nan, keeps its results so far."""
    for name in (NONE, *names):
        found = runs.read(CURVES)
        if name not in found:
            with tempfile.TemporaryDirectory() as folder:
                program = ["dreamer.py"] if name == NONE else ["-m", "utils.mistakes", name]
                done = subprocess.run([sys.executable, *program, *RUN, "--logdir", f"{folder}/run"],
                                      cwd=ROOT, stdout=subprocess.DEVNULL)
                found[name] = seen_in(Path(folder) / "run") | {"status": done.returncode}
            files.replace(CURVES, (json.dumps(found, indent=1) + "\n").encode())
            print(f"{name}: ended with status {done.returncode}", flush=True)
    drawn = {name: {"seeds": [{"seed": 0, "curve": one["curve"]}]} for name, one in found.items()
             if one["curve"]}
    charts.ablations(PICTURE, {"CartPole-v1, seed 0": drawn}, WORDS)
    return 0


def seen_in(folder):
    """The saved results of a run: its evaluations, and the last value of some metrics."""
    found = read_rows(folder / "metrics.jsonl")
    last = {name: float(f"{series(found, name)[1][-1]:.4g}") for name in LAST
            if series(found, name)[1]}
    curve = [list(pair) for pair in zip(*series(found, "charts/eval_return"))]
    return {"curve": curve, "last": last}


if __name__ == "__main__":
    sys.exit(main())
