"""Figures of what an agent has learned and imagines, and a page with all of them.

    python -m utils.report RUN

writes RUN/report/ with PNG and GIF files and report.html.
"""

import math
import signal
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import gymnax_wrappers
from utils.agent import Agent
from utils.core import cli
from utils.core import config as configuration
from utils.core.settings import Config
from utils.pictures import figures, imagined_film, observations, page, studies
from utils.pictures import names as naming
from utils.pictures.drawings import bar_axis
from utils.pictures.page import CAPTIONS
from utils.run import curves, files
from utils.run.checkpoint import Checkpoints
from utils.run.logger import METRICS, SCORES, read_rows

FOLDER, PAGE = "report", "report.html"
WORLD_MODEL = ("open-loop", "imagined", "heads", "latents")  # figures that need no policy


class Made(NamedTuple):
    """A figure: its files, and a sentence with the measurements."""

    pictures: tuple
    found: str = ""


def main(argv=None):
    """The command: -> exit status"""
    try:
        flags = cli.run_parser("utils.report", __doc__.splitlines()[0]).parse_args(argv)
        if cli.program_of(flags.run) == cli.DREAMER4:
            from utils.dreamer4 import commands  # only where it is needed

            commands.report(flags)
            return 0
        cli.check_run(flags.run)
        return write(flags.run, env=flags.env)
    except (ValueError, OSError, jax.errors.JaxRuntimeError) as error:
        return _complain(error)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def write(run, names=None, env=None):
    """Make the named figures and the page: -> exit status

    The default is all figures, or those of the world model if no policy was trained; `env` is that
    of Agent. The status is 2 if there are no weights to load: then only the learning curves are
    plotted.

    Raises: ValueError, one line, for a folder that contains no run; OSError."""
    run, status, material, why = Path(run), 0, None, ""
    cli.check_own_code(run, env)
    config = configuration.load(run / "config.yaml", Config)
    folder = run / FOLDER
    files.refuse_links(run, [folder.name])
    folder.mkdir(exist_ok=True)
    try:
        agent = Agent(run, env=env)
    except ValueError as error:
        agent, why, status = None, str(error), _complain(error)
    no_policy = agent and not config.learning.trains_policy
    names = names or (WORLD_MODEL if no_policy else tuple(CAPTIONS))
    if agent and set(names) - {"learning"}:
        material = studies.gather(agent)
    sections = []
    for name in names:
        figure = partial(MAKERS[name], run, folder)
        sections.append(_section(name, figure, config if name == "learning" else material, why))
    _delete_others(folder, sections)
    title = f"{config.run.env}, seed {config.run.seed}"
    text = page.write(title, _facts(run, config), sections)
    files.replace(folder / PAGE, text.encode())
    print(f"report       {folder / PAGE}")
    return status


def _section(name, make, material, why):
    """The Section of a figure; if it cannot be made, the reason in one line."""
    section = page.Section(name, list(CAPTIONS).index(name) + 1, CAPTIONS[name])
    if material is None:
        return section._replace(left_out=why)
    try:
        made = make(material)
    except studies.NothingToShow as error:
        print(f"left out     {name}: {error}", file=sys.stderr)
        return section._replace(left_out=str(error))
    return section._replace(pictures=made.pictures, found=made.found)


def _delete_others(folder, sections):
    """Delete pictures of an older report that this one does not contain."""
    kept = {path.name for section in sections for path in section.pictures}
    for path in [*folder.glob("*.png"), *folder.glob("*.gif")]:
        if path.name not in kept and path.stem in CAPTIONS:
            path.unlink()


def _complain(error):
    return cli.complain(error, "utils.report")


def _facts(run, config):
    metrics = _rows(run / METRICS)
    steps = f"{metrics[-1]['step']:,} environment steps so far" if metrics else "nothing logged yet"
    scores = curves.series(metrics, "charts/score_return")[1]
    score = f", score {scores[-1]:.4g}" if scores else ""
    if not config.learning.trains_policy:
        score = ", the world model alone (its actions are random)"
    return (f"{run.resolve().name}: {steps}{score}. The figures use fresh episodes of the best "
            f"weights; in half of the environments each episode starts with up to "
            f"{studies.rollouts.RANDOM_ACTIONS} random actions, to include unusual states.")


def _rows(path):
    return read_rows(path) if path.is_file() else []


# ------------------------------------------------------------------------------------------------
# The figures: each takes the run, the report's folder and the material -> Made
# ------------------------------------------------------------------------------------------------


def _learning(run, folder, config):
    metrics, scores = _rows(run / METRICS), _rows(run / SCORES)
    if not metrics:
        raise studies.NothingToShow("nothing logged yet (metrics.jsonl has no rows)")
    path = folder / "learning.png"
    figures.save(path, partial(figures.learning, metrics=metrics, scores=scores,
                               config=config, solved=gymnax_wrappers.solved(config.run.env)))
    means = curves.series(metrics, "charts/eval_return")[1]
    if not config.learning.trains_policy:
        return Made((path,), "No policy is trained: only losses of the world model are shown.")
    return Made((path,), f"{len(scores)} training episodes"
                + (f"; first evaluation {means[0]:.4g}, last {means[-1]:.4g}, best "
                   f"{max(means):.4g}." if means else "."))


def _open_loop(_, folder, material):
    found, env, path = studies.open_loop(material), material.agent.env, folder / "open-loop.png"
    pictures = [path]
    if env.is_image:
        pictures.append(folder / "open-loop.gif")
        _open_loop_images(env, found, pictures)
    else:
        figures.save(path, partial(figures.vectors, names=naming.entries(env),
                                   context=found.context, true=found.true, imagined=found.imagined,
                                   curves=found.curves))
    steps = min(studies.SCORED, len(found.imagined[0]))
    error, same, mean = (found.scores[name] for name in ("imagined", "no change", "the mean"))
    return Made(tuple(pictures), (
        f"{_count(found.context, 'observed step')}, then {len(found.imagined[0])} imagined, in "
        f"{_count(found.episodes, 'episode')}. Over the first {steps}, the error is {error:.3f} "
        f"standard deviations (\u201cno change\u201d {same:.3f}, \u201cthe mean\u201d "
        f"{mean:.3f})."))


def _open_loop_images(env, found, paths):
    """A figure with strips of images, and a film of the whole window."""
    imagined = np.concatenate([found.true[: found.context], found.imagined[0]])
    pictures = (observations.coloured(env, found.true), observations.coloured(env, imagined),
                observations.differences(found.true, imagined))
    figures.save(paths[0], partial(figures.images, context=found.context, pictures=pictures,
                                   curves=found.curves))
    texts = [f"observed, step {t + 1}" if t < found.context else f"imagined, step {t + 1}"
             for t in range(len(imagined))]
    strips = [[observations.enlarged(picture, imagined_film.SIDE) for picture in part]
              for part in pictures]
    imagined_film.side_by_side(paths[1], ("true", "imagined", "error"), texts, strips)


def _count(number, word):
    return f"{number} {word}" + ("" if number == 1 else "s")


def _imagined(_, folder, material):
    panels, path = studies.imagined(material), folder / "imagined.png"
    figures.save(path, partial(figures.imagined, panels=panels))
    curves = next(iter(panels.values()))
    step = min(studies.SCORED, int(np.isfinite(curves["imagined"]).sum()))
    numbers = ", ".join(f"{name} {values[step - 1]:.2f}" for name, values in curves.items())
    return Made((path,), f"Error of the observation at step {step}: {numbers}.")


def _heads(_, folder, material):
    found, path = studies.heads(material), folder / "heads.png"
    figures.save(path, partial(figures.heads, heads=found))
    parts = [f"{name} {score:.3f}" if math.isfinite(score) else f"{name} undefined (constant)"
             for name, score in found.scores.items()]
    if "value" in found.pairs:
        parts.append(f"values against returns of which at least {100 * found.received:.0f}% was "
                     "received and the rest bootstrapped")
    return Made((path,), f"Correlations with the true values: {', '.join(parts)}; "
                f"{_count(len(found.probs[1]), 'terminal row')} among "
                f"{len(found.probs[0]) + len(found.probs[1]):,} rows.")


def _latents(_, folder, material):
    found, path = studies.latents(material), folder / "latents.png"
    figures.save(path, partial(figures.latents, planes=found.planes, colours=found.colours,
                               usage=found.usage, names=naming.actions(material.agent.env)))
    counts = found.usage[1]
    return Made((path,), "The first two principal components explain "
                f"{100 * found.shares.sum():.0f}% of the variance; a latent uses "
                f"{counts.min():.1f} to {counts.max():.1f} of {found.usage[0].shape[1]} classes.")


def _imagined_episode(_, folder, material):
    found, env, path = studies.episode(material), material.agent.env, folder / "dream.gif"
    axis = bar_axis(env, found.real)
    frames = [[observations.scene(env, x[min(t, len(x) - 1)], axis) for t in found.times]
              for x in (found.real, found.imagined)]
    imagined_film.episode(path, env.name, frames, found.curves)
    return Made((path,), f"{len(found.real) - 1} real steps, {len(found.imagined) - 1} imagined.")


def _robustness(run, folder, material):
    saved = [(one.record["step"], one.arrays) for one in Checkpoints(run).newest_first(_complain)]
    if len(saved) < 2:
        raise studies.NothingToShow(f"two checkpoints are needed, the run has {len(saved)}")
    steps, panels = [step for step, _ in reversed(saved)], studies.robustness(material, saved[::-1])
    path = folder / "robustness.png"
    figures.save(path, partial(figures.robustness, steps=steps, panels=panels))
    changes = [f"{name} {values[0]:.3f} to {values[-1]:.3f}" for curves in panels.values()
               for name, values in curves.items() if values[0] != values[-1]]
    return Made((path,), f"From step {steps[0]:,} to {steps[-1]:,}: {', '.join(changes)}.")


MAKERS = dict(zip(CAPTIONS, (_learning, _open_loop, _imagined, _heads, _latents, _imagined_episode,
                             _robustness), strict=True))

if __name__ == "__main__":
    sys.exit(main())
