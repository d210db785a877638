"""What the host remembers of a run between chunks: episodes, scores, speed."""

import time
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from utils.run.display import Progress
from utils.run.logger import Logger

RECENT = 20  # training episodes in the mean that is shown
# The order in which an update computes what is logged, by the beginnings of the names.
COMPUTED = ("latents/", "losses/decoder", "losses/reward", "losses/continue", "losses/prediction",
            "losses/dynamics", "losses/representation", "dream/", "losses/critic",
            "losses/replay_critic", "actor/", "losses/actor", "optimizer/")


@dataclass
class Diary:
    """Takes what each chunk leaves, writes it down and shows it.

    `began` is the clock (`time.perf_counter`) at the program's start, `solved` the return that
    counts as solved, None where there is none."""

    logger: Logger
    display: Any  # a Display, or a Member of several agents' Board
    total_steps: int
    solved: float | None
    began: float
    steps: int = 0
    updates: int = 0
    score: float | None = None  # mean return of the last evaluation
    best: float | None = None
    best_step: int | None = None  # where the best was, the last one of equals
    _recent: list = field(default_factory=list)  # returns of the last training episodes
    _new: list = field(default_factory=list)  # episodes that no row of metrics has yet
    _compiled: tuple | None = None  # (steps, updates, clock) when the first chunk was done

    def check(self, steps, metrics):
        """Is all finite that the updates of the last `steps` steps left? To ask before `episodes`.

        Raises: FloatingPointError naming the first quantity that is not, and its update."""
        metrics = {name: np.asarray(value) for name, value in metrics.items()}
        bad = {name: np.flatnonzero(~np.isfinite(value)) for name, value in metrics.items()}
        bad = {name: int(places[0]) for name, places in bad.items() if len(places)}
        if bad:
            name = min(bad, key=lambda name: (bad[name], _rank(name)))
            value = metrics[name].reshape(-1)[bad[name]]
            raise FloatingPointError(f"{name} is {value} in update {self.updates + bad[name] + 1:,}"
                                     f", before step {self.steps + steps:,}")

    def episodes(self, steps, rows):
        """`steps` environment steps were made, and these episodes ended (rows for scores.jsonl).

        Raises: FloatingPointError for a return that is not finite."""
        self.steps += steps
        if not np.isfinite([row["return"] for row in rows]).all():
            raise FloatingPointError(f"the return of an episode is not finite, before step "
                                     f"{self.steps:,}")
        self._new += rows
        self._recent = (self._recent + [row["return"] for row in rows])[-RECENT:]
        self.logger.episodes(rows)

    def chunk(self, updates, metrics):
        """`updates` updates were made, with these metrics of each; an evaluation may be among them.

        Returns: whether this was the best evaluation so far, or as good as the best."""
        self.updates += updates
        values = {name: float(np.mean(value, dtype=np.float64))
                  for name, value in sorted(metrics.items())}
        if self._new:
            values["charts/episodic_return"] = float(np.mean([r["return"] for r in self._new]))
            values["charts/episodic_length"] = float(np.mean([r["length"] for r in self._new]))
            self._new = []
        speed = self._speed()
        self._compiled = self._compiled or (self.steps, self.updates, time.perf_counter())
        times = {f"time/{name}": value for name, value in speed.items() if value is not None}
        self.logger.metrics(self.steps, values | {"charts/updates": self.updates} | times)
        evaluated = "charts/eval_return" in values
        is_best = evaluated and self._evaluated(values["charts/eval_return"])
        self.display.show(self._progress(speed))
        return is_best

    def show(self):
        """Show where the run stands before its first chunk, whose compilation takes a while."""
        self.display.show(self._progress(self._speed()))

    def remember(self):
        """What a run that goes on after this chunk has to know, for `recall`, as JSON takes it."""
        return {"steps": self.steps, "updates": self.updates, "score": self.score,
                "best": self.best, "best_step": self.best_step, "recent": self._recent,
                "elapsed": time.perf_counter() - self.began}

    def recall(self, notes):
        """Go on from what `remember` returned, the time that had passed included."""
        self.steps, self.updates = notes["steps"], notes["updates"]
        self.score, self.best, self.best_step = notes["score"], notes["best"], notes["best_step"]
        self._recent = notes["recent"]
        self.began -= notes["elapsed"]

    def end(self, metrics):
        """The kept weights, those of the best evaluation, did this over episodes of their own."""
        scores = {name: float(value) for name, value in metrics.items()}
        self.score = scores["charts/score_return"]
        times = {"time/elapsed": time.perf_counter() - self.began}
        self.logger.metrics(self.steps, scores | {"charts/score_step": self.best_step} | times)

    def summary(self, episodes, folder):
        """The last lines of a run: score, time, where the files are."""
        return (
            f"score        {self.score:.1f} over {episodes} fresh episodes, weights of step "
            f"{self.best_step:,}; {self.steps:,} steps in {time.perf_counter() - self.began:.0f} s"
            f"\nfiles        {folder}/ (learning_curve.png, metrics.jsonl, scores.jsonl, "
            "config.yaml, weights.npz)")

    def _evaluated(self, value):
        solved_before = self.best is not None and self.solved and self.best >= self.solved
        self.score, is_best = value, self.best is None or value >= self.best
        if is_best:
            self.best, self.best_step = value, self.steps
        if self.solved is not None and value >= self.solved and not solved_before:
            seconds = time.perf_counter() - self.began
            self.display.say(f"solved       evaluation {value:.1f} (threshold {self.solved:g}) "
                            f"at {self.steps:,} steps, after {seconds:.0f} s")
        return is_best

    def _speed(self):
        """Rates since the first chunk, whose own time is mostly compilation; None until then."""
        now = time.perf_counter()
        if self._compiled is None:
            return {"elapsed": now - self.began, "SPS": None, "updates_per_second": None}
        steps, updates, clock = self._compiled
        return {
            "elapsed": now - self.began,
            "SPS": (self.steps - steps) / (now - clock),
            "updates_per_second": (self.updates - updates) / (now - clock),
        }

    def _progress(self, speed):
        left = max(0, self.total_steps - self.steps)
        return Progress(
            self.steps, self.total_steps, self.updates, self.score, self.best,
            float(np.mean(self._recent)) if self._recent else None,
            speed["updates_per_second"], speed["SPS"], speed["elapsed"],
            left / speed["SPS"] if speed["SPS"] else None)


def _rank(name):
    """Where in an update a quantity is computed: what is wrong first makes the rest wrong."""
    return next((place for place, start in enumerate(COMPUTED) if name.startswith(start)), 0)


def evaluation(returns, lengths, name="eval"):
    """An evaluation as metrics: mean return, half its 95% interval, mean length

    Shapes: returns, lengths [..., episodes] -> [...] each."""
    returns, lengths = jax.device_get((returns, lengths))
    interval = 1.96 * np.std(returns, -1) / returns.shape[-1] ** 0.5
    return {f"charts/{name}_return": returns.mean(-1), f"charts/{name}_interval": interval,
            f"charts/{name}_length": lengths.mean(-1)}


def episodes(finished, before):
    """Rows for scores.jsonl of the episodes that ended in a chunk which began at step `before`

    Shapes: finished [..., E], leading axes are successive steps."""
    finished = jax.tree.map(lambda x: np.asarray(x).reshape(-1, x.shape[-1]), finished)
    envs = finished.total.shape[1]
    return [
        {"step": before + int(t + 1) * envs, "env": int(e),
         "return": float(finished.total[t, e]), "length": int(finished.length[t, e])}
        for t, e in zip(*np.nonzero(finished.is_last))
    ]
