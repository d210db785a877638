"""One YAML file, presets and --set give typed, frozen numbers; invalid input is an error."""

import dataclasses
import re
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from utils.core import config
from utils.core.config import ConfigError, load
from utils.core.settings import Config, rounds_per_chunk, trained_ratio, updates_per_steps

SHIPPED = Path(__file__).parent.parent / "dreamer.yaml"

# arXiv 2301.04104v2, table of hyperparameters, and the official code's size200m.
PAPER = {
    "model": {"deter": 8192, "hidden": 1024, "latents": 32, "classes": 64, "blocks": 8,
              "units": 1024, "depth": 64, "multipliers": (2, 3, 4, 4), "kernel": 5,
              "seed_pixels": 4, "encoder_layers": 3, "decoder_layers": 3, "prior_layers": 2,
              "posterior_layers": 1, "reward_layers": 1, "continue_layers": 1, "actor_layers": 3,
              "critic_layers": 3, "bins": 255, "unimix": 0.01, "norm_eps": 1e-4,
              "actor_scale": 0.01, "min_std": 0.1, "max_std": 1, "std_bias": 2,
              "compute_dtype": "bfloat16"},
    "replay": {"capacity": 5_000_000, "batch": 16, "length": 64, "recent": 0},
    "learning": {"beta_pred": 1, "beta_dyn": 1, "beta_rep": 0.1, "beta_actor": 1,
                 "beta_critic": 1, "beta_replay": 0.3, "free_bits": 1, "imagination": 15,
                 "horizon": 333, "lambda_": 0.95, "eta": 3e-4, "eta_final": 1,
                 "slow_rate": 0.02, "slow_scale": 1, "return_rate": 0.01, "return_limit": 1,
                 "return_low": 5, "return_high": 95},
    "optimizer": {"lr": 4e-5, "warmup": 1000, "lr_final": 1, "agc": 0.3, "agc_floor": 1e-3,
                  "rms_decay": 0.999, "momentum": 0.9, "eps": 1e-20, "average": 0,
                  "mean_dtype": "float32"},
    "run": {"train_ratio": 32, "envs": 16, "prefill": 1040},
}


@pytest.fixture
def tree():
    """The shipped file, for tests to modify."""
    return yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))


def _without_presets(tree):
    return {section: keys for section, keys in tree.items() if section != "presets"}


def _write(tmp_path, tree):
    path = tmp_path / "numbers.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def test_every_field_has_its_declared_type():
    for section, key, _, value in config.rows(load(SHIPPED, Config)):
        part = {field.name: field.type for field in dataclasses.fields(Config)}[section]
        kind = {field.name: field.type for field in dataclasses.fields(part)}[key]
        assert type(value) is (tuple if key == "multipliers" else kind), f"{section}.{key}"


def test_the_last_preset_wins_and_set_overrides_all():
    assert load(SHIPPED, Config, ["size12m"]).model.deter == 2048
    assert load(SHIPPED, Config, ["size12m", "size25m"]).model.deter == 3072
    assert load(SHIPPED, Config, ["size25m", "size12m"]).model.deter == 2048
    both = load(SHIPPED, Config, ["size12m"], ["model.deter=64", "model.deter=128"])
    assert (both.model.deter, both.model.units) == (128, 256)


def test_the_preset_paper_has_the_numbers_of_the_paper():
    paper = dataclasses.asdict(load(SHIPPED, Config, ["paper"]))
    for section, numbers in PAPER.items():
        assert {key: paper[section][key] for key in numbers} == numbers, section


def test_the_preset_paper_sets_every_number_of_the_algorithm(tree):
    stated = tree["presets"]["paper"]
    for section, keys in _without_presets(tree).items():
        if section == "log":  # nothing of the algorithm
            continue
        assert stated[section].keys() == PAPER[section].keys(), section
        assert section == "run" or stated[section].keys() == keys.keys(), section


def test_overlays_change_neither_what_was_given_nor_what_was_loaded_before():
    presets, sets = ["size12m", "debug"], ["model.deter=64"]
    before = load(SHIPPED, Config)
    kept = dataclasses.asdict(before)
    load(SHIPPED, Config, presets, sets)
    assert (presets, sets) == (["size12m", "debug"], ["model.deter=64"])
    assert dataclasses.asdict(before) == kept and load(SHIPPED, Config) == before


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "0.0003", "'3e-4'"])
def test_a_float_may_be_written_in_a_form_that_pyyaml_reads_as_text(text):
    assert load(SHIPPED, Config, sets=[f"optimizer.lr={text}"]).optimizer.lr == 3e-4


def test_the_file_itself_may_use_that_form_of_a_float(tmp_path):
    text = SHIPPED.read_text(encoding="utf-8").replace("eta: 0.01", "eta: 1e-2", 1)
    assert yaml.safe_load(text)["learning"]["eta"] == "1e-2"  # text: the trap that is tested
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    assert load(tmp_path / "mine.yaml", Config) == load(SHIPPED, Config)


def test_a_whole_float_is_accepted_as_an_integer_and_an_integer_as_a_float():
    loaded = load(SHIPPED, Config, sets=["run.steps=1e4", "run.train_ratio=64"])
    assert (loaded.run.steps, loaded.run.train_ratio) == (10_000, 64.0)
    assert (type(loaded.run.steps), type(loaded.run.train_ratio)) == (int, float)


def test_the_dumped_configuration_loads_back_equal(tmp_path):
    resolved = load(SHIPPED, Config, ["debug"], ["optimizer.eps=1e-19", "run.seed=7"])
    path = tmp_path / "config.yaml"
    path.write_text(config.dump(resolved), encoding="utf-8")
    assert load(path, Config) == resolved


def test_a_configuration_is_immutable():
    loaded = load(SHIPPED, Config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.model.deter = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.model = None


def test_yaml_that_would_construct_an_object_is_refused_and_runs_nothing(tmp_path):
    trap, path = tmp_path / "trap", tmp_path / "evil.yaml"
    path.write_text(f"run: !!python/object/apply:os.mkdir ['{trap}']\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load(path, Config)
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load(SHIPPED, Config, sets=[f"run.env=!!python/object/apply:os.mkdir ['{trap}']"])
    assert not trap.exists()


def test_every_key_of_the_shipped_file_must_be_there(tree, monkeypatch):
    tree = _without_presets(tree)
    monkeypatch.setattr(config, "read", lambda path: dict(tree))
    for section, keys in tree.items():
        for key in keys:
            tree[section] = {name: value for name, value in keys.items() if name != key}
            with pytest.raises(ConfigError, match=rf"{section}\.{key}: is missing"):
                load(SHIPPED, Config)
        tree[section] = keys
    load(SHIPPED, Config)


@pytest.mark.parametrize(
    "value", [True, None, [1], {"a": 1}, "many", ".nan", ".inf", 2.5, "2.5", 10**400])
def test_other_values_are_refused_for_a_whole_number(tmp_path, tree, value):
    tree["replay"]["batch"] = yaml.safe_load(value) if str(value).startswith(".") else value
    with pytest.raises(ConfigError, match="replay.batch: expected a whole number at least 1"):
        load(_write(tmp_path, tree), Config)


@pytest.mark.parametrize("value", ["true", "", "[1]", "{a: 1}", "fast", ".nan", "-.inf", "1e999"])
def test_other_values_are_refused_for_a_number(value):
    with pytest.raises(ConfigError, match="optimizer.lr: expected a number more than 0, found"):
        load(SHIPPED, Config, sets=[f"optimizer.lr={value}"])


@pytest.mark.parametrize("value", ["5", "true", "", "[a]", "2020-01-01"])
def test_other_values_are_refused_for_a_text(value):
    with pytest.raises(ConfigError, match="run.env: expected text, found"):
        load(SHIPPED, Config, sets=[f"run.env={value}"])


def test_a_large_whole_number_keeps_every_digit_up_to_32_bits():
    steps = 2**31 - 1  # float32 would lose the last
    assert load(SHIPPED, Config, sets=[f"run.steps={steps}"]).run.steps == steps
    with pytest.raises(ConfigError, match="at most 2147483647, found 2147483648"):
        load(SHIPPED, Config, sets=[f"run.steps={steps + 1}"])


@pytest.mark.parametrize("text", ["010", "0x10", "1:30", "1_000", "0b11", "0o17"])
def test_a_number_is_decimal_or_refused(text, tmp_path):
    lines = SHIPPED.read_text(encoding="utf-8").replace("  seed: 0 ", f"  seed: {text} ", 1)
    (tmp_path / "mine.yaml").write_text(lines, encoding="utf-8")
    for path, sets in ((SHIPPED, [f"run.seed={text}"]), (tmp_path / "mine.yaml", [])):
        if text == "010":
            assert load(path, Config, sets=sets).run.seed == 10
        else:
            with pytest.raises(ConfigError, match="run.seed: expected a whole number"):
                load(path, Config, sets=sets)


def test_a_preset_is_checked_even_if_it_is_not_used(tmp_path, tree):
    tree["presets"]["mine"] = {"model": {"detre": 64}}
    with pytest.raises(ConfigError, match=r"preset mine: model.detre: unknown key.*'deter'"):
        load(_write(tmp_path, tree), Config)


def test_a_duplicate_key_is_an_error_with_its_line(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("run:\n  seed: 1\n  seed: 2\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 3, column 3.*'seed' occurs twice"):
        load(path, Config)


@pytest.mark.parametrize("ratio, envs, rows, expected", [
    ("32", 4, (8, 32), (1, 2)),
    ("32", 16, (16, 64), (1, 2)),
    ("128", 4, (8, 32), (2, 1)),
    ("32", 4, (8, 16), (2, 2)),  # never (1, 1), for which the compiled loop copies the replay
    ("48", 4, (8, 32), (3, 4)),
    ("0.1", 4, (8, 32), (1, 640)),
    ("512", 16, (16, 64), (8, 1)),
])
def test_updates_per_steps_are_the_smallest_whole_numbers_with_the_train_ratio(
        ratio, envs, rows, expected):
    settings = SimpleNamespace(run=SimpleNamespace(train_ratio=float(ratio), envs=envs, chunk=2560),
                               replay=SimpleNamespace(batch=rows[0], length=rows[1]))
    updates, steps = updates_per_steps(settings)
    assert (updates, steps) == expected
    assert Fraction(updates * rows[0] * rows[1], steps * envs) == Fraction(ratio)


@pytest.mark.parametrize("ratio", [16.333, 7.943282, 31.4159])
def test_a_round_is_never_longer_than_a_chunk(ratio):
    settings = load(SHIPPED, Config, sets=[f"run.train_ratio={ratio}"])
    updates, steps = updates_per_steps(settings)
    assert steps * settings.run.envs <= settings.run.chunk
    assert trained_ratio(settings) == pytest.approx(ratio, rel=0.02)
    planned = rounds_per_chunk(settings) * steps * settings.run.envs
    assert planned <= settings.run.chunk


def test_a_train_ratio_that_no_chunk_reaches_is_refused():
    with pytest.raises(ConfigError, match="run.train_ratio: expected at least one update") as told:
        load(SHIPPED, Config, sets=["run.train_ratio=0.001"])
    least = re.search(r"which is ([\d.]+)", str(told.value))[1]
    assert updates_per_steps(load(SHIPPED, Config, sets=[f"run.train_ratio={least}"]))[0] == 1
    with pytest.raises(ConfigError, match="run.train_ratio"):
        load(SHIPPED, Config, sets=[f"run.train_ratio={0.99 * float(least)}"])


def test_the_shipped_train_ratios_are_kept_exactly():
    tree = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    for name in tree["presets"]:
        settings = load(SHIPPED, Config, [name])
        assert trained_ratio(settings) == settings.run.train_ratio, name


@pytest.mark.parametrize("case", ["4_imag_loss_case0", "4_imag_loss_case1"])
def test_the_constants_of_the_papers_preset_are_official(case):
    learning = load(SHIPPED, Config, ["paper"]).learning
    with np.load(Path(__file__).parent / "golden" / f"{case}.npz") as data:
        for ours, official in (("horizon", "horizon"), ("lambda_", "lam"), ("eta", "actent"),
                               ("slow_scale", "slowreg")):
            assert getattr(learning, ours) == pytest.approx(float(data[official]))
        assert data["contdisc"]  # the discount lives in the continue target
