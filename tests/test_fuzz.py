"""Whatever stands in a file or on a command line, the program takes it as it is or says why not.

The status is 0 or 2. With 2 there is one line of at most 200 columns, no traceback, and no new file
or folder. With 0, the numbers of the run are those that were given. What training would do is not
asked here: a run ends where its first step would begin. The same cases are tried each time; the
slow group tries more."""

import os
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dreamer
from utils import ablations, bench, evaluate, explain, grade, handout, report, suite, watch
from utils.core import config
from utils.core.cli import WIDEST
from utils.core.settings import Config
from utils.study import runs

SHIPPED = Path(__file__).parent.parent / "dreamer.yaml"
TINY = config.dump(config.load(SHIPPED, Config, ["debug"]))  # a file that is read in 4 ms
KEYS = [f"{section}.{key}" for section, key, _, _ in config.rows(config.load(SHIPPED, Config))]

VALUES = ["0", "-1", "1e30", "nan", ".nan", "-.inf", "''", "", "text", "[1, 2]", "[]", "[nan]",
          "[[1]]", "{a: 1}", "true", "null", "2147483647", "9" * 400, "2020-01-01", "&a [*a]"]
FRAGMENTS = [
    # valid
    "run: {}", "  seed: 1", "  env_params: {gravity: 5}", "presets: {}", "presets:", "# text",
    "presets: {CartPole-v1: {run: {seed: 3}}}", "presets: {debug: {run: {envs: 0}}}", "---", "",
    # of another kind
    "run: 5", "run: [1, 2]", "- 1", "presets: 5", "presets: {5: {}}", "  seed: 2020-01-01", "5: 6",
    "  seed: 0x10", "  seed: 1e999", "  env: yes", "  env: ~", "  steps: [640]", "  seed: {a: 1}",
    # twice, by name, with tags
    "  seed: 1\n  seed: 2", "run: {}\nrun: {}", "&a [*a]", "model: &a {b: *a}", "*a", "  <<: *a",
    "  <<: {seed: 3}", "  <<: 5", "  env_params: &a [*a]", "  env_params: &a {b: *a}", "!",
    "  seed: !!python/object/apply:os.getcwd []", "  seed: !!binary aGk=", "  seed: !!int abc",
    "  seed: !!set {a}", "  seed: !!timestamp 2020-13-45", "  env: !!str 5", "  seed: !mine 5",
    "  ? [a]\n  : b", "  ? {a: b}\n  : c", "  seed: !!omap [a]", "%YAML 9.9", "%TAG ! x", "...",
    # broken or strange
    "\t", "\0", "\x1b[2J", "\x85", "\u2028", "\ufeff", "\ud800", "'", '"', "|", ">", ": ", "{", "]",
    "[" * 3000, "{a: " * 300, "x" * 5000, "9" * 5000, "x: " + "y" * 5000, "  env: " + "z" * 500,
    "  seed: " + "9" * 5000, "  env: \x07", "κ", " ", "  env: 'a\n\n  b'", "\"\\x\"", "@", "`"]
WORDS = ["", "0", "-1", "1e30", "nan", "text", "[1", "a\x1b[2J\nb", "x" * 300, "x y " * 300,
         "\udcff", "--seed", "=", "a=b", " ", "5"]
FLAGS = {
    "--env": ["Pendulum-v1", "CartPole-v2", "nowhere:Env", ":", "os:getcwd", "a b:c"],
    "--env-param": ["gravity=5", "gravity=nan", "gravity=text", "gravity=", "no=1", "gravity=[1]",
                    "force_mag=1e30", "max_steps_in_episode=-1", "max_steps_in_episode=1e30"],
    "--seed": ["3", "4294967295", "4294967296"], "--steps": ["641", "2147483647", "96"],
    "--preset": ["debug", "size400m", "paper", "world_model", "CartPole-v1", "no_latents"],
    "--set": ["run.envs=4", "run.seed=9", "model.deter=1e9", "run.env=Acrobot-v1", "model=5",
              "run.observation=image", "replay.capacity=2e9", "learning.imagination=2147483647",
              "run.env_params.gravity=5", "run.env_params={gravity: 5}", "presets.debug=1",
              "model.units=2147483647", "run.eval_episodes=2147483647", "log.wandb=mine"],
    "--config": [str(SHIPPED), ".", "nowhere.yaml"],
    "--seeds": ["2", "300", "4294967296", "9" * 400], "--resume": ["nowhere", "."],
    "--logdir": ["new", "a/b/c", ".", "a/" + "x" * 300, str(SHIPPED), f"{SHIPPED}/a"],
    "--save-replay": ["true", "false"], "--episodes": ["3"],
    "--world-model-only": [None], "--print-config": [None], "--help": [None]}


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """ask(main, *flags): a command in an empty folder, in which nothing is trained -> its output

    None where it refuses, in one line."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(dreamer, "train", lambda program, session: None)
    return partial(_ask, capsys)


def _ask(capsys, main, *flags):
    before = sorted(os.listdir())
    try:
        status = main(list(flags))
    except SystemExit as end:  # of --help and --print-config
        status = end.code
    said = capsys.readouterr()
    assert status in (0, 2), said
    if status == 0:
        assert not said.err
        return said.out
    assert (said.out, said.err[-1:], said.err.count("\n")) == ("", "\n", 1), said
    assert said.err.startswith(("dreamer.py: ", "utils.")) and len(said.err) <= WIDEST + 1
    assert sorted(os.listdir()) == before
    return None


@pytest.fixture
def tiny(tmp_path):
    """The flags that choose a small file of numbers."""
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    return ["--config", str(tmp_path / "tiny.yaml")]


def _numbers(ask, *flags):
    """The configuration that the command prints, which it reads back as the same; or None."""
    text = ask(dreamer.main, *flags, "--print-config")
    if text is not None:
        again = Path("..") / "again.yaml"
        again.write_text(text, encoding="utf-8")
        assert ask(dreamer.main, "--config", str(again), "--print-config") == text
    return text


def _start(ask, numbers, *flags):
    """Start a run, which is refused or leaves the `numbers` that were printed."""
    if ask(dreamer.main, *flags) is not None:
        found = [path.read_text(encoding="utf-8") for path in Path().rglob("config.yaml")]
        assert numbers in found, "the run has other numbers than those printed"
    _clear()


def _clear():
    """Empty the current folder."""
    for left in Path().iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def _search(check, cases, examples):
    """check(case) for so many cases, always the same ones."""
    tried = settings(max_examples=examples, derandomize=True, database=None, deadline=None,
                     suppress_health_check=list(HealthCheck))
    tried(given(case=cases)(lambda case: check(case)))()


def more(few, many):
    """Parametrises a test by the number of its cases: few for CI, many in the slow group."""
    return pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])


@more(7, len(VALUES))
@pytest.mark.parametrize("key", KEYS)
def test_a_key_takes_a_value_as_it_is_or_refuses_it(key, examples, ask, tiny):
    first = 7 * KEYS.index(key)  # of few values, each key has others than the one before
    for value in [VALUES[n % len(VALUES)] for n in range(first, first + examples)]:
        flags = [*tiny, "--set", f"{key}={value}"]
        numbers = _numbers(ask, *flags)
        if numbers is not None:
            section, name = key.split(".")
            assert _same(config.parse(numbers)[section][name], config.parse(value)), value
            _start(ask, numbers, *flags)


def _same(kept, given):
    """Whether a value is the one that was given: nothing stands for an empty mapping."""
    return kept == given or kept == float(given) if given is not None else kept == {}


@more(250, 20_000)
def test_a_file_is_read_or_its_fault_is_named(examples, ask, tmp_path):
    pieces = st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=9))
    files = st.one_of(_edited(pieces), st.lists(pieces, max_size=5))
    _search(partial(_read, ask, tmp_path / "mine.yaml"), files, examples)


def _read(ask, path, lines):
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    _numbers(ask, "--config", str(path))


def _edited(pieces):
    """The lines of the small file, of which a few have another value, or give way to a piece."""
    lines = TINY.splitlines()
    place = st.integers(0, len(lines) - 1)
    values = st.sampled_from(VALUES + ["1", "0.5", "8", "'2'", "8.0", "5e3"]).map(": ".__add__)
    others = st.sampled_from(FRAGMENTS).map(": ".__add__)
    piece = values | values | values | others | pieces
    changes = st.lists(st.tuples(place, piece), min_size=1, max_size=2)
    return changes.map(lambda chosen: [_changed(line, dict(chosen).get(n))
                                       for n, line in enumerate(lines)])


def _changed(line, piece):
    """A line; with ": value" the same key with this value, with another piece that one alone."""
    if piece is None:
        return line
    return line.partition(":")[0] + piece if piece.startswith(": ") else piece


def _flags(table):
    """Lists of flags, with one of their values, another word, or none: in two words or one."""
    flag = st.sampled_from(sorted(table)).flatmap(lambda name: st.tuples(
        st.just(name), st.sampled_from(table[name] * 4 + WORDS + [None]), st.booleans()))
    return st.lists(flag, min_size=1, max_size=4).map(lambda chosen: [
        word for name, value, joined in chosen for word in (
            [name] if value is None else [f"{name}={value}"] if joined else [name, value])])


@more(100, 5_000)
def test_flags_work_together_or_are_refused(examples, ask, tiny):
    _search(partial(_print_or_start, ask, tiny), _flags(FLAGS), examples)


def _print_or_start(ask, tiny, flags):
    flags = flags if "--config" in " ".join(flags) else [*tiny, *flags]
    if {"--help", "--print-config"} & {*flags}:
        ask(dreamer.main, *flags)
    else:
        _start(ask, _numbers(ask, *flags), *flags)


def _nothing(*_):
    """Stands for the work of a command."""


# Of each command: the name of its work, and its arguments.
COMMANDS = {
    evaluate: ("score", ["RUN"]), watch: ("watch", ["RUN"]), report: ("write", []),
    explain: ("explain", []), suite: ("_done", ["--env", "CartPole-v1"]),
    ablations: ("_done", ["--env", "CartPole-v1", "--preset", "no_agc"]),
    bench: ("_in_new_process", ["--size", "debug"]), handout: ("write", []),
    grade: ("_grade_all", ["RUN"])}


@more(12, 500)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda module: module.__name__)
def test_the_flags_of_a_command_work_together_or_are_refused(
        command, examples, ask, tmp_path, monkeypatch):
    work, needed = COMMANDS[command]
    monkeypatch.setattr(command, work, _nothing)
    monkeypatch.setattr(runs, "make", lambda *_: 0)
    monkeypatch.setattr(explain, "report", _nothing)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(TINY, encoding="utf-8")
    needed = [str(tmp_path / "run") if word == "RUN" else word for word in needed]
    flags = {"--help", *re.findall(r"--[a-z][a-z-]+", ask(command.main, "--help"))}
    call = partial(_call, partial(ask, command.main, *needed))
    _search(call, _flags(dict.fromkeys(flags, [])), examples)


def _call(command, flags):
    command(*flags)
    _clear()
