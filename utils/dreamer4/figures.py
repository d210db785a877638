"""The figures of the four phases in words: names, units, and the table at the end of a run."""

from typing import NamedTuple

from utils.dreamer4.settings import PHASES


class Words(NamedTuple):
    """What a figure is, its unit, and the digits behind the point."""

    what: str
    unit: str
    digits: int


FIGURES = {
    "psnr": Words("held-out images", "dB", 2),
    "psnr_masked": Words("the same with masked patches", "dB", 2),
    "psnr_k1": Words("dreamed frames, K = 1", "dB", 2),
    "psnr_k4": Words("dreamed frames, K = 4", "dB", 2),
    "psnr_k16": Words("dreamed frames, K = 16", "dB", 2),
    "first_k4": Words("the first dreamed frame, K = 4", "dB", 2),
    "last_k4": Words("the last dreamed frame, K = 4", "dB", 2),
    "ceiling": Words("the tokenizer on these frames", "dB", 2),
    "wrong_actions": Words("dreamed with wrong actions", "dB", 2),
    "nll": Words("next action, -ln p", "nats", 3),
    "accuracy": Words("next action, guessed right", "", 3),
    "reward_error": Words("error of the reward", "px", 3),
    "return_sampled": Words("real return, sampled", "", 1),
    "return_greedy": Words("real return, greedy", "", 1),
}
# The figure of each phase that is shown while it learns.
FIRST = {"tokenizer": "psnr", "dynamics": "psnr_k4", "agent": "accuracy",
         "policy": "return_greedy"}
WIDTH = 30  # columns of the longest of these


def words(name):
    """The Words of a figure; one without an entry is called by its name."""
    return FIGURES.get(name, Words(name.replace("_", " "), "", 2))


def number(name, value):
    """A figure's value in its digits: 28.65."""
    return f"{value:.{words(name).digits}f}"


def said(name, value):
    """A figure in words, with its unit: held-out images 28.65 dB."""
    return f"{words(name).what} {number(name, value)} {words(name).unit}".rstrip()


def beside(name, baselines):
    """The baselines of a figure in words: background only 12.35 · best constant 12.94."""
    return " · ".join(f"{what} {number(name, value)}" for what, value in baselines.items())


def table(phases):
    """The lines of the table at the end: each phase's figures, the baselines beside the first one.

    `phases` is {phase: {"figures": {name: value}, "baselines": {name: {what: value}}}}."""
    lines = [f"{'phase':13}{'figure':{WIDTH + 2}}{'here':>8}       beside it"]
    for place, phase in enumerate(PHASES, 1):
        title = f"{place} {phase}"
        for name, value in phases.get(phase, {"figures": {}})["figures"].items():
            what, unit, _ = words(name)
            others = beside(name, phases[phase]["baselines"].get(name, {}))
            lines.append(f"{title:13}{what:{WIDTH + 2}}{number(name, value):>8} {unit:6}{others}"
                         .rstrip())
            title = ""
    return lines
