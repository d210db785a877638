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
    "psnr_k": Words("dreamed frames, K = ", "dB", 2),
    "first_k": Words("the first dreamed frame, K = ", "dB", 2),
    "last_k": Words("the last dreamed frame, K = ", "dB", 2),
    "wrong_actions": Words("dreamed with wrong actions", "dB", 2),
    "ceiling": Words("the tokenizer on these frames", "dB", 2),
    "accuracy": Words("next action, guessed right", "", 3),
    "nll": Words("next action, -ln p", "nats", 3),
    "reward_error": Words("error of the reward", "px", 3),
    "return_sampled": Words("real return, sampled", "", 1),
    "return_greedy": Words("real return, greedy", "", 1),
}
WIDTH = 32  # columns of the longest of these


def first(phase, config):
    """The figure of a phase that is shown while it learns."""
    return {"tokenizer": "psnr", "dynamics": f"psnr_k{config.imagination.k}", "agent": "accuracy",
            "policy": "return_greedy"}[phase]


def words(name):
    """The Words of a figure; a number of steps at the end of its name is part of them."""
    kind = name.rstrip("0123456789")
    found = FIGURES[kind]
    return found._replace(what=found.what + name.removeprefix(kind))


def in_order(found):
    """{name: value} as floats, in the order of FIGURES and of the numbers in the names."""
    places = {name: place for place, name in enumerate(FIGURES)}
    names = {name: name.rstrip("0123456789") for name in found}
    order = sorted(found, key=lambda name: (
        places[names[name]], int(name.removeprefix(names[name]) or 0)))
    return {name: float(found[name]) for name in order}


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
    lines = [f"{'phase':13}{'figure':{WIDTH}}{'here':>8}       beside it"]
    for place, phase in enumerate(PHASES, 1):
        title = f"{place} {phase}"
        for name, value in phases.get(phase, {"figures": {}})["figures"].items():
            what, unit, _ = words(name)
            others = beside(name, phases[phase]["baselines"].get(name, {}))
            lines.append(f"{title:13}{what:{WIDTH}}{number(name, value):>8} {unit:6}{others}"
                         .rstrip())
            title = ""
    return lines
