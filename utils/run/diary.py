"""The host's state of a run between chunks: episodes, scores, speed."""

import time
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from utils.run.display import Progress
from utils.run.logger import Logger

RECENT = 20  # training episodes in the displayed mean
# Prefixes of the metrics, in the order in which an update computes them.
COMPUTED = ("latents/", "losses/decoder", "losses/reward", "losses/continue", "losses/prediction",
            "losses/dynamics", "losses/representation", "imagination/", "losses/critic",
            "losses/replay_critic", "actor/", "losses/actor", "optimizer/")


@dataclass
class Diary:
    """Logs and displays the results of each chunk.

    `began` is `time.perf_counter()` at the program's start, `solved` the return that counts as
    solved, None if undefined."""

    logger: Logger
    display: Any  # a Display, or a Member of several agents' Board
    total_steps: int
    solved: float | None
    began: float
    steps: int = 0
    updates: int = 0
    score: float | None = None  # mean return of the last evaluation
    best: float | None = None
    best_step: int | None = None  # its step; of equal evaluations the last
    _recent: list = field(default_factory=list)  # returns of the latest training episodes
    _new: list = field(default_factory=list)  # episodes not yet in a row of metrics
    _compiled: tuple | None = None  # (steps, updates, clock) after the first chunk

    def check(self, steps, metrics):
        """Check that the metrics of the last `steps` steps are finite; call it before `episodes`.

        Raises: FloatingPointError naming the first non-finite quantity, and its update."""
        metrics = {name: np.asarray(value) for name, value in metrics.items()}
        bad = {name: np.flatnonzero(~np.isfinite(value)) for name, value in metrics.items()}
        bad = {name: int(places[0]) for name, places in bad.items() if len(places)}
        if bad:
            name = min(bad, key=lambda name: (bad[name], _rank(name)))
            value = metrics[name].reshape(-1)[bad[name]]
            raise FloatingPointError(f"{name} is {value} in update {self.updates + bad[name] + 1:,}"
                                     f", before step {self.steps + steps:,}")

    def episodes(self, steps, rows):
        """Record `steps` environment steps and the episodes that ended (rows for scores.jsonl).

        Raises: FloatingPointError for a return that is not finite."""
        self.steps += steps
        if not np.isfinite([row["return"] for row in rows]).all():
            raise FloatingPointError(f"the return of an episode is not finite, before step "
                                     f"{self.steps:,}")
        self._new += rows
        self._recent = (self._recent + [row["return"] for row in rows])[-RECENT:]
        self.logger.episodes(rows)

    def chunk(self, updates, metrics):
        """Record `updates` updates with the metrics of each, and an evaluation if there was one.

        Returns: whether this was the best evaluation so far, or equal to the best."""
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
        """Show the progress before the first chunk, whose compilation takes a while."""
        self.display.show(self._progress(self._speed()))

    def remember(self):
        """The state after this chunk, for `recall`, as JSON values."""
        return {"steps": self.steps, "updates": self.updates, "score": self.score,
                "best": self.best, "best_step": self.best_step, "recent": self._recent,
                "elapsed": time.perf_counter() - self.began}

    def recall(self, notes):
        """Restore the state that `remember` returned, including the elapsed time."""
        self.steps, self.updates = notes["steps"], notes["updates"]
        self.score, self.best, self.best_step = notes["score"], notes["best"], notes["best_step"]
        self._recent = notes["recent"]
        self.began -= notes["elapsed"]

    def end(self, metrics):
        """Record the score: the best weights, evaluated on fresh episodes."""
        scores = {name: float(value) for name, value in metrics.items()}
        self.score = scores["charts/score_return"]
        times = {"time/elapsed": time.perf_counter() - self.began}
        self.logger.metrics(self.steps, scores | {"charts/score_step": self.best_step} | times)

    def summary(self, episodes):
        """The score in words."""
        return (f"{self.score:.1f} over {episodes} fresh episodes, weights of step "
                f"{self.best_step:,}")

    def seconds(self):
        """Seconds since the start of the program, those before a resume included."""
        return time.perf_counter() - self.began

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
        """Rates since the first chunk (its own time is mostly compilation); None until then."""
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
        remaining = max(0, self.total_steps - self.steps)
        return Progress(
            self.steps, self.total_steps, self.updates, self.score, self.best,
            float(np.mean(self._recent)) if self._recent else None,
            speed["updates_per_second"], speed["SPS"], speed["elapsed"],
            remaining / speed["SPS"] if speed["SPS"] else None)


def _rank(name):
    """The position of a quantity in an update: the first non-finite one spoils the later ones."""
    return next((place for place, start in enumerate(COMPUTED) if name.startswith(start)), 0)


def evaluation_metrics(returns, lengths, name="eval"):
    """Metrics of an evaluation: mean return, half its 95% interval, mean length

    Shapes: returns, lengths [..., episodes] -> [...] each.

    Raises: FloatingPointError for a return that is not finite."""
    returns, lengths = jax.device_get((returns, lengths))
    if not np.isfinite(returns).all():
        wrong = returns[~np.isfinite(returns)][0]
        raise FloatingPointError(f"the return of an evaluation is {wrong}")
    interval = 1.96 * np.std(returns, -1) / returns.shape[-1] ** 0.5
    return {f"charts/{name}_return": returns.mean(-1), f"charts/{name}_interval": interval,
            f"charts/{name}_length": lengths.mean(-1)}


def episodes(stats, before):
    """Rows for scores.jsonl of the episodes that ended in a chunk starting at step `before`

    Shapes: stats [..., E], leading axes are successive steps."""
    stats = jax.tree.map(lambda x: np.asarray(x).reshape(-1, x.shape[-1]), stats)
    envs = stats.episode_return.shape[1]
    return [
        {"step": before + int(t + 1) * envs, "env": int(e),
         "return": float(stats.episode_return[t, e]), "length": int(stats.length[t, e])}
        for t, e in zip(*np.nonzero(stats.is_last))
    ]
