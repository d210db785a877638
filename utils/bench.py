"""Measures the cost of updates, environment steps and start-up on this machine.

    python -m utils.bench
    python -m utils.bench --launches h100

Each point is measured in its own process, one after the other. Times are medians ± half the
interquartile range. A unit is the time of one 2048 x 2048 x 2048 float32 matrix product, measured
in the same process, so that results of different machines can be compared. With --launches nothing
is measured: updates are compiled for a card that need not be here, and what they launch is counted.
"""

import json
import multiprocessing
import signal
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

import dreamer
import gymnax_wrappers
from utils.core import cli, devices, fast_forms, xla
from utils.core import config as configuration
from utils.core.machine import machine
from utils.core.settings import Config, rounds_per_chunk, updates_per_steps
from utils.run import files
from utils.study import charts, launches, runs

RESULTS, POINT, PICTURE, FIGURES = "bench.json", "point.json", "scaling.png", "scaling.json"
UNIT = 2 * 2048**3  # floating-point operations
SECONDS = 6.0  # minimum duration of the repetitions
LEAST = 5  # minimum number of repetitions
ACTED = 64  # steps per call when acting is measured


class Point(NamedTuple):
    """A configuration to measure: a preset (None: the defaults), settings, CartPole or images."""

    name: str
    preset: str | None
    sets: tuple = ()
    pictures: bool = False


PAPER = ("replay.batch=16", "replay.length=64", "run.envs=16", "run.prefill=2080")
# Updates per call, which allocates its memory anew: single updates cost 25% more for size1m.
ONE, FOUR, SIXTEEN = ((*PAPER, f"run.chunk={64 * many}") for many in (1, 4, 16))
POINTS = (
    Point("default", None),
    Point("size1m", "size1m", SIXTEEN),
    Point("size12m", "size12m", FOUR),
    Point("size12m, images", "size12m", ONE, pictures=True),
)
HALF = (*PAPER, "model.compute_dtype=bfloat16", "run.devices=1", "replay.capacity=20000")
# (point, number of seeds) of --launches
COUNTED = (
    (Point("default", None, HALF), 1),
    (Point("default, ten seeds", None, HALF), 10),
    (Point("size1m", "size1m", HALF), 1),
    (Point("size12m", "size12m", HALF), 1),
    (Point("size12m, images", "size12m", HALF, pictures=True), 1),
    (Point("size200m", "size200m", HALF), 1),
)
TOGETHER = 4  # updates of a call in which launches are counted
ON_A_GPU = (Point("size50m", "size50m", SIXTEEN), Point("size200m", "size200m", SIXTEEN))
# The values of --scaling, varied one at a time; and the setting behind each flag.
VARIED = {"batch": (2, 4, 8, 16), "length": (8, 16, 32, 64), "imagination": (4, 8, 16, 32),
          "envs": (4, 16, 64, 256)}
KEYS = {"batch": "replay.batch", "length": "replay.length", "imagination": "learning.imagination",
        "envs": "run.envs"}


class Camera:
    """A free Environment: images of noise, no reward, no end of the episode."""

    name, discrete, action_size = "Camera", True, 6
    is_image, x_shape = True, (64, 64, 3)

    def reset(self, key):
        """The first image: -> empty state, Step"""
        return (), self._image(key)._replace(is_first=jnp.ones((), bool))

    def step(self, key, state, action):
        """Another image, for any action: -> empty state, Step"""
        return state, self._image(key)

    def _image(self, key):
        x, no = jax.random.randint(key, self.x_shape, 0, 256, jnp.uint8), jnp.zeros((), bool)
        return gymnax_wrappers.Step(x, jnp.zeros(()), no, no, no)


def main(argv=None):
    """The command -> exit status: 0, or 2 for a wrong flag"""
    try:
        flags = _flags(argv)
        if flags.table:
            print(table(runs.shown(flags.results / RESULTS, levels=0)))
            return 0
        if flags.launches:
            return _count_launches(flags)
        points = _points(flags)
        for point in points:
            _config(point)  # check it before anything runs
        files.make(flags.results)
    except (ValueError, OSError) as error:
        return cli.complain(error, "utils.bench")
    print(COLUMNS)
    try:
        found = [_in_new_process(point, flags.scaling, f"{number} of {len(points)}")
                 for number, point in enumerate(points, 1)]
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    report = {"machine": machine() | {"device": jax.devices()[0].device_kind}, "points": found}
    if flags.scaling:
        charts.scaling(flags.results / PICTURE, _panels(found))
    name = FIGURES if flags.scaling else RESULTS if points[:1] == POINTS[:1] else POINT
    if name == RESULTS and (flags.results / name).exists():  # launches were counted elsewhere
        report = runs.read(flags.results / name) | report
    _write(flags.results / name, report)
    return 0


def _write(path, report):
    files.replace(path, (json.dumps(report, indent=1) + "\n").encode())
    print(f"written      {path}")


def _count_launches(flags):
    """Count all points for the card of the flags, beside what bench.json has: -> exit status"""
    flags.results.mkdir(parents=True, exist_ok=True)
    path = flags.results / RESULTS
    report, found = runs.read(path) if path.exists() else {}, []
    print(LAUNCH_COLUMNS)
    for point, seeds in COUNTED:
        found.append(counted(point, launches.CARDS[flags.launches], seeds))
        print(_launch_line(found[-1]), flush=True)
    counts = {"card": flags.launches, "machine": machine(), "points": found}
    _write(path, report | {"launches": counts})
    return 0


def counted(point, card, seeds):
    """What an update of a point launches on a card that need not be here -> {name: figure}

    `seeds`: of so many agents at once, as --seeds trains them."""
    program = _program(point)
    init, several = partial(dreamer.init, program), partial(_updates_on_one, program)
    keys = jax.random.key(0)
    if seeds > 1:
        init, several, keys = jax.vmap(init), jax.vmap(several), jax.random.split(keys, seeds)
    with mock.patch.object(fast_forms, "on_cpu", lambda: False):
        compiled = launches.compiled(several, jax.eval_shape(init, keys), card)
    cost = launches.count(compiled.as_text(), card).times(1 / TOGETHER)
    memory = compiled.memory_analysis()
    memory = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return {"name": point.name, "launches": round(cost.launches), "moved_gb": cost.bytes / 1e9,
            "estimate_ms": 1e3 * cost.seconds, "memory_gb": memory / 1e9}


def table(report):
    """The measurements of a report as text, with the machine above them, and the launches."""
    return "\n\n".join([_measured(report), *([_launched(report["launches"])]
                                               if "launches" in report else [])])


def _launched(counts):
    """The table of what updates launch."""
    about = counts["machine"]
    head = (f"an update of 16 x 64 rows in bfloat16, compiled for one {counts['card'].upper()}, "
            f"jax {about['versions']['jax']}, {about['date']}; nothing is measured")
    return "\n".join([head, "", LAUNCH_COLUMNS, *map(_launch_line, counts["points"])])


LAUNCH_COLUMNS = f"{'':18}{'launches':>10}{'moved, GB':>12}{'estimate, ms':>14}{'memory, GB':>12}"


def _launch_line(found):
    return (f"{found['name']:18}{found['launches']:>10,}{found['moved_gb']:12.1f}"
            f"{found['estimate_ms']:14.1f}{found['memory_gb']:12.2f}")


def _measured(report):
    about = report["machine"]
    head = (f"{about['machine']['cpus']} x {about['machine']['model']}, {about['device']}, jax "
            f"{about['versions']['jax']}, {about['date']}; a unit is "
            f"{statistics.median(point['unit_ms'] for point in report['points']):.0f} ms")
    return "\n".join([head, "", COLUMNS, *map(_line, report["points"])])


def _points(flags):
    """The points for the flags: one custom point, those of --scaling, or the standard ones.

    Raises: ValueError for flags that contradict each other."""
    own = {key: getattr(flags, key) for key in KEYS if getattr(flags, key) is not None}
    if flags.scaling and (own or flags.size):
        raise configuration.ConfigError("--scaling: cannot be used with other flags")
    if flags.scaling:
        return [Point(f"{key} {value}", None, sets=_sets({key: value}))
                for key, values in VARIED.items() for value in values]
    if own or flags.size:
        name = " ".join([flags.size or "default", *(f"{key} {own[key]}" for key in own)])
        return [Point(name, flags.size, sets=_sets(own))]
    return POINTS + (ON_A_GPU if jax.default_backend() == "gpu" else ())


def _sets(own):
    """Settings in the form of --set; the prefill grows so that sequences fit into it."""
    rows = own.get("envs", 16) * (own.get("length", 64) + 1)
    return (*(f"{KEYS[key]}={value}" for key, value in own.items()), f"run.prefill={2 * rows}")


def _config(point):
    presets = [point.preset] if point.preset else []
    return configuration.load(cli.DEFAULT_CONFIG, Config, presets,
                              ["run.env=CartPole-v1", "run.steps=100000", *point.sets])


def _program(point):
    config = _config(point)
    env = Camera() if point.pictures else gymnax_wrappers.make(config.run.env)
    return dreamer.build(config, env)[0]


def _panels(found):
    """The panels for charts.scaling: the cost of an update, or of a step of all environments."""
    panels, points = {}, iter(found)
    for flag, values in VARIED.items():
        some = [next(points) for _ in values]
        costs = [point["update_ms"][0] for point in some]
        if flag == "envs":
            costs = [1e3 * n / point["acting_steps_per_second"] for n, point in zip(values, some)]
        what = "acting, ms per step" if flag == "envs" else "ms per update"
        panels[KEYS[flag]] = (values, costs, what)
    return panels


def _in_new_process(point, briefly, place):
    """Measure a point in a new process, and print its line; `place` is its "1 of 4"."""
    _say(f"measuring    {point.name} ({place}) ...")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        found = pool.submit(measure, point, briefly).result()
    print(_line(found), flush=True)
    return found


def _say(line):
    """Tell the user what is being measured; the standard output holds only the table."""
    print(line, file=sys.stderr, flush=True)


def measure(point, briefly):
    """Measure one point -> {name: figure}; `briefly`: only updates and acting."""
    _say("             compiling acting and updates")
    program = _program(point)
    config = program.config
    envs, (updates, k) = config.run.envs, updates_per_steps(config)
    rounds = rounds_per_chunk(config)
    many = max(1, rounds * updates)
    state = dreamer.init(program, jax.random.key(0))
    state, _ = dreamer.prefill(program, state, config.run.prefill // envs)
    shapes = jax.eval_shape(lambda: state)
    act = xla.compile_in_full(dreamer.prefill, program, shapes, ACTED)
    learn = xla.compile_in_full(_updates, program, shapes, many)
    units = []
    _say("             repeating acting and updates")
    state, acting = _repeat(act, state, ACTED * envs)
    state, update = _repeat(learn, state, many, lambda: units.append(_unit()))
    ratios = [seconds / statistics.mean(two) for seconds, two in zip(update, pairwise(units))]
    found = {
        "name": point.name, "unit_ms": 1e3 * statistics.median(units),
        "update_ms": _spread(update, 1e3), "update_units": _spread(ratios),
        "acting_steps_per_second": 1 / statistics.median(acting),
    }
    if briefly:
        return found
    _say("             compiling a chunk of training, without and with the cache")
    chunk, cold, warm = _compiled_twice(dreamer.train_chunk, program, shapes, rounds)
    _say("             repeating a chunk of training")
    state, step = _repeat(chunk, state, rounds * k * envs)
    found["steps_per_second"] = 1 / statistics.median(step)
    found["memory_mb"] = _peak()
    _say("             counting the operations of an update")
    operations = _operations(program, shapes)
    share = operations / UNIT / statistics.median(ratios)
    return found | {"compile_s": cold, "compile_again_s": warm, "operations": operations,
                    "share_of_product": share}


def _compiled_twice(function, *arguments):
    """Compile a function -> it, and the seconds without and with the cache on disk."""
    with tempfile.TemporaryDirectory() as folder:
        compilation_cache.reset_cache()
        jax.config.update("jax_compilation_cache_dir", folder)
        compiled, cold = _seconds(lambda: xla.compile_in_full(function, *arguments))
        jax.clear_caches()
        _, warm = _seconds(lambda: xla.compile_in_full(function, *arguments))
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    return compiled, cold, warm


@partial(jax.jit, static_argnums=(0, 2), donate_argnums=1)
def _updates(program, state, many):
    """`many` updates as in a training chunk: -> RunnerState, a dummy, metrics"""
    return dreamer.on_all_devices(_updates_on_one, program, state, many)


def _updates_on_one(program, state, many=TOGETHER):
    def one(state, _):
        return dreamer.update(program, state)

    state, metrics = jax.lax.scan(one, state, length=many)
    return state, state.actor.episode_return[None, None], metrics


def _seconds(function):
    """Call a function -> its result and the seconds it took."""
    began = time.perf_counter()
    return function(), time.perf_counter() - began


def _repeat(function, state, many, between=lambda: None):
    """Call a compiled function repeatedly on its own result: -> RunnerState, [seconds / many]

    `between` is called before, between and after these calls."""
    state, *_ = jax.block_until_ready(function(state))  # warm-up: the first call touches new memory
    times = []
    between()
    while len(times) < LEAST or sum(times) < SECONDS:
        (state, *_), seconds = _seconds(lambda s=state: jax.block_until_ready(function(s)))
        times.append(seconds)
        between()
    return state, [seconds / many for seconds in times]


@jax.jit
def _product(square):
    return jnp.matmul(square, square, precision="highest")


def _unit():
    """Seconds per product of 2048 x 2048 matrices, float32 in full precision: median of five."""
    square = jax.random.normal(jax.random.key(0), (2048, 2048))
    jax.block_until_ready(_product(square))
    return statistics.median(
        _seconds(lambda: jax.block_until_ready(_product(square)))[1] for _ in range(5))


def _operations(program, shapes):
    """Floating-point operations of one update, counted by XLA

    without loops (XLA counts a loop's body once) and on all images at once (otherwise some are
    computed twice)."""
    with mock.patch.object(fast_forms, "PIXELS", sys.maxsize):
        return jax.jit(partial(_unrolled, program)).lower(shapes).cost_analysis()["flops"]


def _unrolled(program, state):
    with jax.disable_jit():
        return devices.on_one_device(partial(dreamer.update, program))(state)


def _spread(figures, scale=1):
    """[median, half the interquartile range], times `scale`."""
    low, middle, high = statistics.quantiles(figures, n=4)
    return [scale * middle, scale * (high - low) / 2]


def _peak():
    """Peak memory of the accelerator or of this process in MB; None where it is unknown."""
    stats = jax.devices()[0].memory_stats()
    if stats:
        return stats["peak_bytes_in_use"] / 1e6
    if sys.platform == "win32":
        return None
    import resource  # does not exist on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)  # bytes on macOS, else kilobytes


COLUMNS = (
    f"{'':18}{'update':>15}{'':>13}{'training':>12}{'acting':>12}{'compiling':>10}{'again':>7}"
    f"{'work':>9}{'of the':>9}{'memory':>8}\n"
    f"{'':18}{'ms':>15}{'units':>13}{'steps/s':>12}{'steps/s':>12}{'s':>10}{'s':>7}{'GFLOP':>9}"
    f"{'product':>9}{'MB':>8}")


def _line(found):
    """The figures of a point under COLUMNS; a dash for missing ones."""
    (update, spread), (units, off) = found["update_ms"], found["update_units"]
    return (f"{found['name']:18}{update:9.1f} ±{spread:4.1f}{units:8.2f} ±{off:3.2f}"
            + _show(found, "steps_per_second", ">12,.0f")
            + _show(found, "acting_steps_per_second", ">12,.0f")
            + _show(found, "compile_s", ">10.1f") + _show(found, "compile_again_s", ">7.1f")
            + _show(found, "operations", ">9.1f", 1e9) + _show(found, "share_of_product", ">9.0%")
            + _show(found, "memory_mb", ">8.0f"))


def _show(found, name, form, unit=1):
    figure = found.get(name)
    if figure is None:
        return format("-", form.split(".")[0].rstrip(","))
    return format(figure / unit, form)


def _flags(argv):
    parser = cli.Parser("python -m utils.bench", description=__doc__.splitlines()[0],
                        allow_abbrev=False)
    parser.add_argument("--size", metavar="PRESET", help="one point: a preset of dreamer.yaml")
    for flag, key in KEYS.items():
        parser.add_argument(f"--{flag}", metavar="N", type=int, help=f"one point, with this {key}")
    parser.add_argument("--scaling", action="store_true",
                        help=f"measure how the cost grows, and plot {PICTURE}")
    parser.add_argument("--launches", choices=launches.CARDS, metavar="CARD",
                        help="count what updates launch on a card: h100")
    parser.add_argument("--table", action="store_true", help=f"print {RESULTS} and exit")
    parser.add_argument("--results", metavar="DIR", type=Path, default=Path("docs"),
                        help=f"folder of the results (default: docs; {RESULTS})")
    flags, unknown = parser.parse_known_args(argv)
    if unknown:
        new = " (it is --imagination now)" if unknown[0].startswith("--horizon") else ""
        parser.error(f"{unknown[0]}: unknown flag{new}")
    return flags


if __name__ == "__main__":
    sys.exit(main())
