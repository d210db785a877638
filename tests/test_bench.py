"""What is measured is what is said, and a wrong flag is one line."""

import json
import os
import platform
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

import dreamer
from utils import bench
from utils.core import xla
from utils.core.settings import MAY_CHANGE
from utils.study import runs

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.mark.parametrize("flags, said", [
    (["--size", "size3m"], r"'size3m'.*size1m"),
    (["--batch", "0"], r"replay\.batch: .*0"),
    (["--horizon", "x"], r"--horizon: .*'x'"),
    (["--envs", "x"], r"--envs: .*'x'"),
    (["--scaling", "--batch", "8"], r"--scaling: .*without other flags"),
    (["--sise", "size1m"], r"--sise"),
    (["--table"], r"bench\.json: no such file"),
])
def test_a_wrong_flag_is_one_line_and_status_2(flags, said, capsys, tmp_path):
    assert bench.main([*flags, "--results", str(tmp_path / "new")]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and re.search(said, line) and not (tmp_path / "new").exists()


def test_a_point_of_the_scaling_has_what_is_drawn(monkeypatch):
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    found = bench.measure(bench.Point("small", "debug", ("run.envs=4",)), briefly=True)
    assert found["update_ms"][0] > 0 and found["unit_ms"] > 0
    assert found["acting_steps_per_second"] > 0 and bench._line(found).count("-") == 6


def test_an_update_is_compared_with_the_units_measured_before_and_after_it(monkeypatch):
    units = iter([3.0, 5.0, 7.0, 5.0, 1.0, 1.0])  # seconds
    took = iter([0.1] * 5 + [8.0, 12.0, 12.0, 9.0, 2.0])  # five calls that act, five that learn
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    monkeypatch.setattr(bench, "_unit", lambda: next(units))
    monkeypatch.setattr(bench, "_seconds", lambda function: (function(), next(took)))
    found = bench.measure(bench.Point("small", "debug", ("run.envs=4",)), briefly=True)
    assert next(units, None) is None and found["unit_ms"] == pytest.approx(4000.0)
    # ratios of 2, 2, 2, 3 and 2; 9 seconds and 4 for a unit, the two medians, would be 2.25
    assert found["update_ms"][0] / found["update_units"][0] == pytest.approx(9000.0 / 2)


@pytest.mark.slow
def test_a_point_has_every_figure_and_they_fit_together(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    monkeypatch.setattr(bench, "_alone", lambda point, briefly: bench.measure(point, briefly))
    assert bench.main(["--size", "debug", "--envs", "4", "--results", str(tmp_path)]) == 0
    [found] = json.loads((tmp_path / bench.POINT).read_text())["points"]
    assert found["name"] == "debug envs 4" and all(found[key] for key in found)
    reached = found["operations"] / bench.UNIT / found["update_units"][0]
    assert found["share_of_product"] == pytest.approx(reached) and reached < 1
    assert found["compile_again_s"] < found["compile_s"]
    # the whole loop makes an update for every eight rows, and acts besides
    assert found["steps_per_second"] < found["acting_steps_per_second"]
    assert bench._line(found).startswith("debug envs 4") and "-" not in bench._line(found)


def _seven_products(program, x):
    """Stands in for an update."""
    return jax.lax.scan(lambda y, _: (y @ x, None), x, length=7)[0]


def test_operations_are_counted_as_often_as_a_loop_runs(monkeypatch):
    monkeypatch.setattr(dreamer, "learn", _seven_products)
    shapes = jax.ShapeDtypeStruct((32, 32), jnp.float32)
    assert bench._operations(None, shapes) == 7 * 2 * 32**3


def test_the_camera_is_an_environment_that_an_agent_with_pictures_can_play():
    config = bench._config(bench.Point("pictures", "debug", ("run.envs=2",), pictures=True))
    program, _ = dreamer.build(config, bench.Camera())
    loop = dreamer.init.eval_shape(program, jax.random.key(0))
    loop, finished = dreamer.fill.eval_shape(program, loop, 3)
    assert loop.replay.rows.x.shape[2:] == (64, 64, 3) and loop.replay.rows.a.shape[2:] == (6,)
    assert loop.replay.rows.x.dtype == jnp.uint8 and finished.total.shape == (3, 2)


def test_scaling_puts_what_was_measured_beside_what_was_varied():
    points = [point.name for point in bench._points(bench._flags(["--scaling"]))]
    found = [{"update_ms": [10.0 + n, 0.0], "acting_steps_per_second": 1000.0}
             for n in range(len(points))]
    panels = bench._panels(found)
    assert points[:2] == ["batch 2", "batch 4"] and panels["replay.batch"][1][:2] == [10.0, 11.0]
    assert panels["run.envs"][1] == [4.0, 16.0, 64.0, 256.0]  # 1 ms for each environment's step


class Lowered:
    """Stands in for a jitted function, lowered or not; tells the compiler's options."""

    def lower(self, program):
        """Itself."""
        return self

    def compile(self, options):
        """The options."""
        return options


@pytest.mark.parametrize("point, options", [(bench.POINTS[0], {}), (bench.POINTS[1], xla.THOROUGH)],
                         ids=["default", "size1m"])
def test_only_large_programs_are_compiled_thoroughly(point, options):
    program = SimpleNamespace(config=bench._config(point))
    assert xla.compile_in_full(Lowered(), program) == options


def _resident():
    """Bytes of this process in memory."""
    pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what is freed")
def test_what_compiling_freed_goes_back_to_the_system():
    blocks = [bytearray(b"x") * 2_000 for _ in range(100_000)]
    last = blocks[-1]  # lies above the others, so that glibc keeps them
    del blocks
    before = _resident()
    xla.compile_in_full(Lowered(), SimpleNamespace(config=bench._config(bench.POINTS[0])))
    assert before - _resident() > 100e6 and len(last) == 2_000


@pytest.mark.parametrize("system, libc", [("darwin", SimpleNamespace(malloc_trim=pytest.fail)),
                                          ("linux", SimpleNamespace())],
                         ids=["another system", "another libc"])
def test_where_the_libc_keeps_nothing_nothing_is_asked_of_it(monkeypatch, system, libc):
    monkeypatch.setattr(xla.sys, "platform", system)
    monkeypatch.setattr(xla.ctypes, "CDLL", lambda name: libc)
    xla.compile_in_full(Lowered(), SimpleNamespace(config=bench._config(bench.POINTS[0])))


def test_the_cache_of_compiled_programs_may_be_turned_off_when_a_run_goes_on():
    assert "run.compile_cache" in MAY_CHANGE


def test_the_readme_holds_the_table_of_the_bench():
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    found = bench.table(runs.read(DOCS / bench.RESULTS))
    assert f"<!-- bench -->\n\n```text\n{found}\n```\n" in readme, (
        "fill it by: python -m utils.bench --table")


def test_the_readme_shows_the_picture_of_the_scaling():
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert "(docs/scaling.png)" in readme and (DOCS / bench.PICTURE).exists()
    assert len(runs.read(DOCS / bench.FIGURES)["points"]) == 16
