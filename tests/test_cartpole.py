"""The main job, measured as a user meets it: ten seeds of CartPole, and what the pages say of it.

`python -m pytest -m slow tests/test_cartpole.py` measures anew and writes docs/cartpole.json and
docs/cartpole.png; `python -m tests.test_cartpole` draws the picture again and
prints the sentence for README.md, the table for docs/results.md and that for docs/stability.md.
"""

import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests import pages
from utils import suite
from utils.core.machine import machine
from utils.run.curves import seeds_curve

ROOT = Path(__file__).parent.parent
RESULTS, PICTURE = ROOT / "docs" / "cartpole.json", ROOT / "docs" / "cartpole.png"
PROPOSED = ROOT / "docs" / "proposed"  # the numbers that docs/stability.md proposes
SEEDS = range(10)
SOLVED = 475.0  # mean return of an evaluation
MOST_STEPS, MOST_SECONDS, MOST_MEGABYTES = 10_000, 60.0, 1000.0


def measure(seed, folder, flags=()):
    """One run of the command, in a process of its own: steps, seconds, peak memory, evaluations.

    Seconds count from the start of the command; a line is read at the moment it is printed.
    """
    command = [sys.executable, "dreamer.py", "--seed", str(seed), "--logdir", str(folder), *flags]
    cold = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    start = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, env=cold, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as process:
        printed = [(time.perf_counter() - start, line) for line in process.stdout]
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    assert process.returncode == 0, "".join(line for _, line in printed)
    found = evaluations(folder / "metrics.jsonl")
    last = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return {
        "seed": seed,
        "solved_steps": next((step for step, value in found if value >= SOLVED), None),
        "solved_seconds": next((round(at, 1) for at, line in printed if line.startswith("solved")),
                               None),
        "last_return": found[-1][1],  # of the agent that still learns
        "final_return": last["charts/score_return"],  # of the weights that the run keeps
        "seconds": round(seconds, 1),
        "megabytes": round(usage.ru_maxrss * 1024 / 1e6),  # Linux counts in KiB
        "evaluations": found,
    }


def evaluations(path):
    """[step, mean return] of every evaluation in a metrics.jsonl, in order."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    name = "charts/eval_return"
    return [[row["step"], row[name]] for row in rows if name in row]


def afterwards(evaluations):
    """The mean returns of the evaluations after the first one that counts as solved."""
    values = [value for _, value in evaluations]
    first = next((n for n, value in enumerate(values) if value >= SOLVED), len(values))
    return values[first + 1:]


def kept(evaluations):
    """The share of the evaluations `afterwards` that count as solved; None if there are none."""
    after = afterwards(evaluations)
    return sum(value >= SOLVED for value in after) / len(after) if after else None


def _shown(evaluations):
    """How much is kept, and the lowest evaluation afterwards, as text."""
    after = afterwards(evaluations)
    return [f"{kept(evaluations):.0%}", f"{min(after):,.0f}"] if after else ["-", "-"]


def _markdown(rows):
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def table(results):
    """The results as markdown: one row a seed, and where they were measured."""
    where, versions = results["machine"], results["versions"]
    rows = [["seed", "solved after, steps", "solved after, s", "kept", "lowest afterwards",
             "last evaluation while learning", "score at the end", "whole run, s",
             "peak memory, MB"], ["---:"] * 9]
    keys = ("seed", "solved_steps", "solved_seconds", "last_return", "final_return", "seconds",
            "megabytes")
    for run in results["runs"]:
        shown = ["-" if run[key] is None else f"{run[key]:,}" for key in keys]
        rows.append([*shown[:3], *_shown(run["evaluations"]), *shown[3:]])
    return _markdown(rows) + (
        f"\n\nMeasured on {results['date']} with {where['cpus']} CPU cores ({where['model']}), "
        f"Python {versions['python']}, jax {versions['jax']}, flax {versions['flax']}.")


def summary(results):
    """The results in a sentence, as README.md has them."""
    steps, seconds, scores = zip(*((run["solved_steps"] or math.inf,
                                    run["solved_seconds"] or math.inf, run["final_return"])
                                   for run in results["runs"]))
    count = sum(math.isfinite(one) for one in steps)
    return (f"{count} of {len(steps)} seeds solve CartPole-v1 (mean return {SOLVED:g}) within "
            f"{max(steps):,} environment steps (median {statistics.median(steps):,.0f}) and "
            f"{min(seconds):.0f}-{max(seconds):.0f} s (median {statistics.median(seconds):.0f} s). "
            f"With the weights that a run keeps, the worst seed scores {min(scores):g} of 500.")


def proposed():
    """The seeds of CartPole with the proposed numbers as markdown, and their summary below."""
    seeds = suite.read(PROPOSED)["CartPole-v1"]["seeds"]
    rows, shares = [["seed", "solved after, steps", "kept", "lowest afterwards",
                     "last evaluation while learning", "score at the end"], ["---:"] * 6], []
    for seed in seeds:
        solved = [step for step, value in seed["curve"] if value >= SOLVED]
        rows.append([str(seed["seed"]), f"{solved[0]:,}" if solved else "-",
                     *_shown(seed["curve"]), f"{seed['last']:,.1f}", f"{seed['score']:,.1f}"])
        shares += [share] if (share := kept(seed["curve"])) is not None else []
    return _markdown(rows) + (
        f"\n\nKept: {statistics.mean(shares):.0%} on average, least {min(shares):.0%}.")


def draw(results):
    """The picture of the ten seeds."""
    curves = [(run["seed"], *zip(*run["evaluations"])) for run in results["runs"]]
    seeds_curve(PICTURE, "CartPole-v1, ten seeds", curves, SOLVED)


def shortfalls(run):
    """What one run owes to the figures that are promised, in words."""
    reached = run["solved_steps"] is not None and run["solved_steps"] <= MOST_STEPS
    in_time = run["solved_seconds"] is not None and run["solved_seconds"] <= MOST_SECONDS
    checks = {
        f"solved after {run['solved_steps']} steps, not {MOST_STEPS}": reached,
        f"solved after {run['solved_seconds']} s, not {MOST_SECONDS}": in_time,
        f"at the end {run['final_return']}, not {SOLVED}": run["final_return"] >= SOLVED,
        f"{run['megabytes']} MB, not {MOST_MEGABYTES}": run["megabytes"] <= MOST_MEGABYTES,
    }
    return [f"seed {run['seed']}: {words}" for words, holds in checks.items() if not holds]


@pytest.mark.slow
def test_ten_seeds_solve_cartpole_in_ten_thousand_steps_a_minute_and_a_gigabyte(tmp_path):
    folders = [tmp_path / str(seed) for seed in SEEDS]
    # a small process starts the runs, because Linux counts the starter's peak memory as the run's
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        results = machine() | {"runs": list(pool.map(measure, SEEDS, folders))}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    draw(results)
    missed = [words for run in results["runs"] for words in shortfalls(run)]
    assert not missed, "\n".join(missed)


def test_a_page_holds_the_measured_numbers_of_all_ten_seeds():
    if not RESULTS.exists():
        pytest.skip("docs/cartpole.json is not measured yet")
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert [run["seed"] for run in results["runs"]] == list(SEEDS)
    assert PICTURE.exists()
    assert table(results) in pages.block("results"), "fill it by: python -m tests.test_cartpole"
    assert summary(results) in " ".join(pages.block("ten seeds").split())


def test_a_page_holds_cartpole_with_the_proposed_numbers():
    found = pages.block("proposed cartpole")
    assert proposed() == found, "fill it by: python -m tests.test_cartpole"


@pytest.mark.parametrize("values, share", [
    ([9.0, 474.9], None), ([9.0, 475.0], None), ([475.0, 474.9], 0.0),
    ([9.0, 500.0, 400.0, 500.0, 475.0, 100.0], 0.5), ([480.0, 480.0], 1.0)])
def test_kept_counts_the_evaluations_after_the_first_solved_one(values, share):
    assert kept(list(enumerate(values))) == share


def test_a_run_that_misses_every_figure_is_told_of_each_and_a_good_one_of_none():
    good = {"seed": 0, "solved_steps": 10_000, "solved_seconds": 60.0, "final_return": 475.0,
            "megabytes": 1000}
    assert shortfalls(good) == []
    never = {"solved_steps": None, "solved_seconds": None, "final_return": 474.9}
    late = {"solved_steps": 10_001, "solved_seconds": 60.1, "megabytes": 1001}
    assert len(shortfalls(good | never)) == 3 and len(shortfalls(good | late)) == 3


if __name__ == "__main__":
    measured = json.loads(RESULTS.read_text(encoding="utf-8"))
    draw(measured)
    print(summary(measured), table(measured), proposed(), sep="\n\n")
