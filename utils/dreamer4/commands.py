"""What utils.evaluate, utils.watch and utils.report do with a run of dreamer4.py."""

import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import dreamer4
from utils.core import backend, cli
from utils.core import config as configuration
from utils.dreamer4 import figures, phases, pictures, square
from utils.dreamer4.baselines import baselines
from utils.dreamer4.settings import PHASES, Config
from utils.pictures import imagined_film, page
from utils.run import files
from utils.run.logger import METRICS, read_rows

PROGRAM = Config.PROGRAM
EVALUATIONS = "evaluations.jsonl"
MARGIN = 6  # pixels around a picture of the film
STREAM = 4  # random stream of the seed: training uses 0 to 3
CAPTIONS = {
    "learning": page.Caption(
        "Learning",
        "Figures of each phase on held-out videos and fresh episodes against its updates; grey "
        "lines are known from the world and its data alone. Below: the losses.",
        "Each figure leaves its grey lines behind: images are above the best constant, dreams "
        "above a repeated last frame, and far above wrong actions; the next action comes to "
        "the lines, which no prediction can beat; returns rise from the data's to the best."),
    "dreams": page.Caption(
        "Dreams",
        "Held-out videos: the true frames; the tokenizer's; and, in red boxes, dreams after a few "
        "real frames, with the actions that were really taken.",
        "The dreamed square has the true one's size and colour, moves as it does, and does not "
        "dissolve. Where it drifts away, a wrong move was dreamed once."),
    "policy": page.Caption(
        "Policy",
        "Left: paths of the square in the real world, with the policy before and after it learned "
        "in dreams. Right: the returns of all episodes, and means of simple policies.",
        "After phase 4 the paths go straight to the middle and stay there; nearly all returns lie "
        "near the best one."),
    "film": page.Caption(
        "Film",
        "The first held-out video, true, through the tokenizer and dreamed; and one episode of "
        "each policy from the same start.",
        "Dream and truth look alike until the last frame."),
}
NEEDS = {"learning": "tokenizer", "dreams": "dynamics", "policy": "policy", "film": "policy"}


class Loaded(NamedTuple):
    """A run's numbers and weights, the last phase that has ended, and the results until then."""

    program: dreamer4.Program
    state: dreamer4.TrainState
    phase: str
    results: dict

    @property
    def config(self):
        """Every number of the run."""
        return self.program.config


def load(run, needed=PHASES[0], sets=()):
    """Load what a run has learned until the phase `needed` at least; `sets` override its numbers.

    Raises: ValueError, one line."""
    cli.check_run(run, program=PROGRAM)
    config = configuration.load(Path(run) / "config.yaml", Config, sets=sets)
    phase = phases.last(run)
    found, results = phases.load(run, max(phase, needed, key=PHASES.index))
    program, _ = dreamer4.build(config)
    backend.set_up(config)
    shapes = jax.eval_shape(partial(dreamer4.init, program), jax.random.key(0))
    try:
        state = phases.filled(shapes, found)._replace(opt_state={})
    except ValueError as error:
        raise ValueError(f"{phases.path_of(run, phase)}: {error}") from None
    return Loaded(program, state, phase, results)


def _fresh(config):
    """Videos that no training has seen, and a random key for figures."""
    key = jax.random.fold_in(jax.random.key(config.run.seed), STREAM)
    video_key, key = jax.random.split(key)
    return square.videos(video_key, config.world, config.evaluation.sequences), key


def _sets(flags, named):
    """--set strings for the flags that a run of dreamer4.py knows. Raises: ValueError."""
    for name in ("env", "limit"):
        if getattr(flags, name, None) is not None:
            raise ValueError(f"--{name}: is for runs of dreamer.py")
    return [f"{key}={value}" for name, key in named.items()
            if (value := getattr(flags, name, None)) is not None]


def evaluate(flags):
    """Measure every figure of a run anew, print the table and append it to evaluations.jsonl."""
    loaded = load(flags.run, sets=_sets(
        flags, {"seed": "run.seed", "episodes": "evaluation.episodes"}))
    (videos, key), results = _fresh(loaded.config), {}
    for phase in PHASES[:PHASES.index(loaded.phase) + 1]:
        state = _after(phase, loaded.state)
        found = dreamer4.evaluate(loaded.program, phase, state, videos, key)
        results[phase] = {"figures": figures.in_order(found),
                          "baselines": baselines(loaded.config, phase, videos, key)}
    files.refuse_links(flags.run, [EVALUATIONS])
    path = Path(flags.run) / EVALUATIONS
    row = {"seed": loaded.config.run.seed, "sequences": loaded.config.evaluation.sequences,
           "episodes": loaded.config.evaluation.episodes} | {
        phase: one["figures"] for phase, one in results.items()}
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print("\n".join(figures.table(results)))
    print(f"written      {path}")


def _after(phase, state):
    """The state with the policy that a phase left: phase 4 keeps that of phase 3 as its prior."""
    if phase != "agent" or not state.step["policy"]:
        return state
    return state._replace(params=state.params | {"policy": state.params["prior"]})


class Beside(NamedTuple):
    """An episode in the world [T, H, W, 3], 0 black and 1 white, its dream, and its return."""

    real: jax.Array
    dreamed: jax.Array
    total: jax.Array


@partial(jax.jit, static_argnums=0)
def beside(program, state, key):
    """The policy plays in the world; a dream sees the first frames, then the actions alone."""
    networks = dreamer4.assemble(program, state.params)
    played = dreamer4.play(networks, program, state.scale, False, key)
    count, last = len(played.q), jnp.full((len(played.q), 1), square.UNKNOWN)
    videos = square.Videos(
        x=played.x, a=jnp.concatenate([played.a, last], 1), q=played.q,
        r=jnp.zeros(played.x.shape[:2]), labelled=jnp.ones(count, bool))
    found = dreamer4.shown_dreams(networks, program, state, videos, key)
    return Beside(real=videos.x[0] / 255.0, dreamed=found[1][0], total=played.returns[0])


def watch(flags):
    """Film an episode in the world, and beside it a dream with the same actions."""
    loaded = load(flags.run, "agent", [*_sets(flags, {"seed": "run.seed"}),
                                       "evaluation.episodes=1"])
    _, key = _fresh(loaded.config)
    found = jax.device_get(beside(loaded.program, loaded.state, key))
    context, texts = loaded.config.evaluation.context, []
    for t, (real, dreamed) in enumerate(zip(found.real, np.clip(found.dreamed, 0.0, 1.0))):
        error = -10.0 * np.log10(max(1e-10, np.mean(np.square(real - dreamed))))
        texts.append(f"frame {t}: " + ("seen" if t < context else f"dreamed, {error:.1f} dB"))
    strips = [[_framed(frame) for frame in frames] for frames in (found.real, found.dreamed)]
    path = Path(flags.run) / f"episode-{loaded.config.run.seed}.gif"
    files.refuse_links(flags.run, [path.name])
    imagined_film.side_by_side(path, ("the world", "the dream, same actions"), texts, strips)
    print(f"film         {path} (return {found.total:.1f} in the world)")


def _framed(frame):
    """A frame in a white margin, uint8 [SIDE, SIDE, 3]."""
    inside = pictures.scaled(frame, imagined_film.SIDE - 2 * MARGIN)
    return np.pad(inside, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), constant_values=255)


def report(flags):
    """Draw the pictures of a run on videos that it has not seen, and a page with all of them."""
    run, loaded = Path(flags.run), load(flags.run, sets=_sets(flags, {}))
    files.refuse_links(run, ["report"])
    folder = run / "report"
    folder.mkdir(exist_ok=True)
    videos, key = _fresh(loaded.config)
    some = jax.tree.map(lambda x: x[:pictures.SHOWN], videos)
    shown = jax.device_get(dreamer4.shown(loaded.program, loaded.state, some, key))
    first = {phase: figures.first(phase, loaded.config) for phase in PHASES}
    drawn = pictures.save_all(folder, read_rows(run / METRICS), loaded.results, first, shown)
    sections = [_section(run, number, name, drawn, loaded.results)
                for number, name in enumerate(CAPTIONS, 1)]
    facts = (f"{run.resolve().name}: {PHASES.index(loaded.phase) + 1} of {len(PHASES)} phases. "
             "Videos and episodes are fresh ones.")
    text = page.write(f"Dreamer 4 on the square, seed {loaded.config.run.seed}", facts, sections)
    files.replace(folder / "report.html", text.encode())
    print(f"report       {folder / 'report.html'}")


def _section(run, number, name, drawn, results):
    """A section of the page, with the first figure of the phase that it is about."""
    section = page.Section(name, number, CAPTIONS[name])
    if name not in drawn:
        return section._replace(left_out=f"phase {NEEDS[name]} has not ended")
    lines = "; ".join(" ".join(line.split()) for line in figures.table(results)[1:])
    return section._replace(pictures=(drawn[name],), found=lines if name == "learning" else "")
