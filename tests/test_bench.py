"""The benchmark measures what it reports, and a wrong flag gives one line."""

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
from tests import pages, sharing
from utils import bench
from utils.core import xla
from utils.core.config import fixed
from utils.core.settings import Config
from utils.study import launches, runs

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.mark.parametrize("flags, said", [
    (["--size", "size3m"], r"'size3m'.*size1m"),
    (["--batch", "0"], r"replay\.batch: .*0"),
    (["--imagination", "x"], r"--imagination: .*'x'"),
    (["--envs", "x"], r"--envs: .*'x'"),
    (["--scaling", "--batch", "8"], r"--scaling: .*with other flags"),
    (["--sise", "size1m"], r"--sise"),
    (["--table"], r"bench\.json: no such file"),
    (["--launches", "h1000"], r"--launches: .*'h1000'.*h100"),
])
def test_a_wrong_flag_is_one_line_and_status_2(flags, said, capsys, tmp_path):
    assert bench.main([*flags, "--results", str(tmp_path / "new")]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and re.search(said, line) and not (tmp_path / "new").exists()


SMALL = bench.Point("small", "debug", ("run.envs=4", "run.chunk=16"))


@pytest.fixture(scope="module")
def _one_program():
    with sharing.one_program():
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("_one_program")
def test_a_point_of_the_scaling_has_the_plotted_figures_and_says_what_it_measures(
        monkeypatch, capsys):
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    found = bench.measure(SMALL, briefly=True)
    assert found["update_ms"][0] > 0 and found["unit_ms"] > 0
    assert found["acting_steps_per_second"] > 0 and bench._line(found).count("-") == 6
    said = capsys.readouterr()
    assert said.out == "" and [line.split()[0] for line in said.err.splitlines()] == [
        "compiling", "repeating"]


@pytest.mark.usefixtures("_one_program")
def test_an_update_is_compared_with_the_units_measured_before_and_after_it(monkeypatch):
    units = iter([3.0, 5.0, 7.0, 5.0, 1.0, 1.0])  # seconds
    took = iter([0.1] * 5 + [8.0, 12.0, 12.0, 9.0, 2.0])  # five calls that act, five that learn
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    monkeypatch.setattr(bench, "_unit", lambda: next(units))
    monkeypatch.setattr(bench, "_seconds", lambda function: (function(), next(took)))
    found = bench.measure(SMALL, briefly=True)
    assert next(units, None) is None and found["unit_ms"] == pytest.approx(4000.0)
    # ratios of 2, 2, 2, 3 and 2; 9 seconds and 4 for a unit, the two medians, would be 2.25
    assert found["update_ms"][0] / found["update_units"][0] == pytest.approx(9000.0 / 2)


@pytest.mark.slow
def test_a_point_has_all_figures_and_they_are_consistent(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    monkeypatch.setattr(bench, "_in_new_process",
                        lambda point, briefly, place: bench.measure(point, briefly))
    assert bench.main(["--size", "debug", "--envs", "4", "--results", str(tmp_path)]) == 0
    [found] = json.loads((tmp_path / bench.POINT).read_text())["points"]
    assert found["name"] == "debug envs 4" and all(found[key] for key in found)
    reached = found["operations"] / bench.UNIT / found["update_units"][0]
    assert found["share_of_product"] == pytest.approx(reached) and reached < 1
    assert found["compile_again_s"] < found["compile_s"]
    # the training loop makes one update per eight rows, and also acts
    assert found["steps_per_second"] < found["acting_steps_per_second"]
    assert bench._line(found).startswith("debug envs 4") and "-" not in bench._line(found)


def _seven_products(program, x):
    """A stub for an update."""
    return jax.lax.scan(lambda y, _: (y @ x, None), x, length=7)[0]


def test_operations_are_counted_as_often_as_a_loop_runs(monkeypatch):
    monkeypatch.setattr(dreamer, "update", _seven_products)
    shapes = jax.ShapeDtypeStruct((32, 32), jnp.float32)
    assert bench._operations(None, shapes) == 7 * 2 * 32**3


def test_an_agent_with_an_image_encoder_can_play_the_camera():
    config = bench._config(bench.Point("pictures", "debug", ("run.envs=2",), pictures=True))
    program, _ = dreamer.build(config, bench.Camera())
    loop = dreamer.init.eval_shape(program, jax.random.key(0))
    loop, stats = dreamer.prefill.eval_shape(program, loop, 3)
    assert loop.replay.rows.x.shape[2:] == (64, 64, 3) and loop.replay.rows.a.shape[2:] == (6,)
    assert loop.replay.rows.x.dtype == jnp.uint8 and stats.episode_return.shape == (3, 2)


def test_scaling_plots_the_cost_against_the_varied_setting():
    points = [point.name for point in bench._points(bench._flags(["--scaling"]))]
    found = [{"update_ms": [10.0 + n, 0.0], "acting_steps_per_second": 1000.0}
             for n in range(len(points))]
    panels = bench._panels(found)
    assert points[:2] == ["batch 2", "batch 4"] and panels["replay.batch"][1][:2] == [10.0, 11.0]
    assert panels["run.envs"][1] == [4.0, 16.0, 64.0, 256.0]  # 1 ms for each environment's step


class Lowered:
    """A stub for a jitted function, lowered or not; returns the compiler's options."""

    def lower(self, program):
        """Itself."""
        return self

    def compile(self, options):
        """The options."""
        return options


@pytest.mark.parametrize("point, options", [
    (bench.POINTS[0], {}), (bench.POINTS[1], {} if xla._removed() else xla.THOROUGH)],
    ids=["default", "size1m"])
def test_only_large_programs_are_compiled_thoroughly(point, options):
    program = SimpleNamespace(config=bench._config(point))
    assert xla.compile_in_full(Lowered(), program) == options


def _resident():
    """Bytes of this process in memory."""
    pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what is freed")
def test_memory_that_compilation_freed_returns_to_the_system():
    blocks = [bytearray(b"x") * 2_000 for _ in range(100_000)]
    last = blocks[-1]  # above the others in memory, so that glibc keeps them
    del blocks
    before = _resident()
    xla.compile_in_full(Lowered(), SimpleNamespace(config=bench._config(bench.POINTS[0])))
    assert before - _resident() > 100e6 and len(last) == 2_000


@pytest.mark.parametrize("system, libc", [("darwin", SimpleNamespace(malloc_trim=pytest.fail)),
                                          ("linux", SimpleNamespace())],
                         ids=["another system", "another libc"])
def test_without_malloc_trim_nothing_is_called(monkeypatch, system, libc):
    monkeypatch.setattr(xla.sys, "platform", system)
    monkeypatch.setattr(xla.ctypes, "CDLL", lambda name: libc)
    xla.compile_in_full(Lowered(), SimpleNamespace(config=bench._config(bench.POINTS[0])))


# ---- Launches ------------------------------------------------------------------------------------


PROGRAM = """
%fused_slice (parameter_0.1: f32[8,4]) -> f32[4] {
  %parameter_0.1 = f32[8,4]{1,0} parameter(0)
  ROOT %slice.1 = f32[1,4]{1,0} slice(%parameter_0.1), slice={[0:1], [0:4]}
}

%body (state: (s32[], f32[16,32])) -> (s32[], f32[16,32]) {
  %state = (s32[], f32[16,32]{1,0}) parameter(0)
  %x = f32[16,32]{1,0} get-tuple-element(%state), index=1
  %w = f32[32,16]{1,0} constant({...})
  %product = (f32[16,16]{1,0}, s8[4096]{0}) custom-call(%x, %w), custom_call_target="__cublas", \
backend_config={"lhs_contracting_dimensions":["1"]}
  %copy.1 = f32[16,32]{1,0} copy(%x)
  ROOT %tuple = (s32[], f32[16,32]{1,0}) tuple(%state, %copy.1)
}

ENTRY %main (a: f32[8,4]) -> f32[1,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %while.1 = (s32[], f32[16,32]{1,0}) while(%a), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  ROOT %fusion.1 = f32[1,4]{1,0} fusion(%a), kind=kLoop, calls=%fused_slice
}
""".replace("\\\n", "")


def test_a_launch_is_a_kernel_or_copy_as_often_as_its_loop_runs():
    card = launches.Card("", launch=1.0, bandwidth=1000.0, rate=1e9)
    cost = launches.count(PROGRAM, card)
    product, copy, cut = 4 * (16 * 32 + 32 * 16 + 16 * 16), 4 * 2 * 16 * 32, 2 * 4 * 4
    assert cost.launches == 3 * 2 + 1
    assert cost.bytes == 3 * (product + copy) + cut  # scratch memory and the rest of `a` are not
    assert cost.seconds == pytest.approx(3 * (product + copy) / 1000 + 1.0)
    slow = card._replace(rate=2 * 16 * 32 * 16 / 60)  # products then take a minute
    assert launches.count(PROGRAM, slow).seconds == pytest.approx(3 * (60 + copy / 1000) + 1.0)


def test_a_small_program_is_compiled_for_a_card_that_is_not_here():
    try:
        shapes = jax.ShapeDtypeStruct((32, 32), jnp.float32)
        compiled = launches.compiled(_ten_steps, shapes, launches.H100)
    except ValueError as error:
        pytest.skip(str(error))
    cost = launches.count(compiled.as_text(), launches.H100)
    assert 20 <= cost.launches <= 50 and cost.seconds < 1e-3  # ten products, ten sines
    assert compiled.memory_analysis().argument_size_in_bytes == 32 * 32 * 4


def _ten_steps(x):
    """Ten steps of a product and a sine."""
    return jax.lax.scan(lambda x, _: (jnp.sin(x @ x), None), x, length=10)[0]


@pytest.mark.parametrize("kept", [{}, {"points": [{"name": "default"}]}])
def test_launches_are_written_beside_what_was_measured(kept, monkeypatch, tmp_path, capsys):
    found = {"launches": 3500, "moved_gb": 2.0, "estimate_ms": 7.0, "memory_gb": 0.2}
    monkeypatch.setattr(bench, "counted", lambda point, card, seeds: {"name": point.name} | found)
    if kept:
        (tmp_path / bench.RESULTS).write_text(json.dumps(kept))
    assert bench.main(["--launches", "h100", "--results", str(tmp_path)]) == 0
    report = json.loads((tmp_path / bench.RESULTS).read_text())
    assert report.keys() == kept.keys() | {"launches"} and len(report["launches"]["points"]) == 6
    assert "default" in capsys.readouterr().out and "3,500" in bench._launched(report["launches"])


def test_the_compilation_cache_can_be_disabled_on_resume():
    assert not fixed(Config, ["run.compile_cache", "log.wandb", "run.save_every"])
    assert fixed(Config, ["run.seed", "run.steps"]) == ["run.seed"]


def test_a_page_contains_the_table_of_the_bench():
    found = bench.table(runs.read(DOCS / bench.RESULTS))
    assert pages.block("bench") == f"```text\n{found}\n```", (
        "fill it by: python -m utils.bench --table")


def test_a_page_shows_the_picture_of_the_scaling():
    assert "(scaling.png)" in pages.text() and (DOCS / bench.PICTURE).exists()
    assert len(runs.read(DOCS / bench.FIGURES)["points"]) == 16
