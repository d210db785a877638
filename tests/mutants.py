"""Classic mistakes: dreamer.py with one plausible error each, and the test that finds it.

    python -m tests.mutants                       the mistakes, by name
    python -m tests.mutants NAME --steps 6000     train an agent with one, by dreamer.py's own flags
    python -m tests.mutants --check [NAME ...]    see that the test of each one fails with it
    python -m tests.mutants --page                docs/mistakes.md, the page for students
    python -m tests.mutants --curves [NAME ...]   train with each, into docs/mistakes.json and .png

A mistake is a change of the source: `old` has to stand exactly once in its function, so that one
that the code has outgrown is found at once.
"""

import ast
import contextlib
import io
import json
import re
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import NamedTuple

import pytest

from utils.core import cli
from utils.core import config as configuration
from utils.run import files
from utils.run.curves import rows as read_rows
from utils.run.curves import series
from utils.study import charts, runs

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "dreamer.py"
CURVES, PICTURE = ROOT / "docs" / "mistakes.json", ROOT / "docs" / "mistakes.png"
# In which symptoms were seen: CartPole-v1, seed 0.
RUN = ("--steps", "2400", "--episodes", "30", "--set", "run.train_ratio=32")
FLAGS = ("--check", "--curves", "--page", "--list")
WORDS = ("without a mistake", "with the mistake")  # of the picture
NONE = "full"  # the name of the agent without a mistake
LAST = ("losses/decoder", "losses/dynamics", "losses/continue", "dream/value", "dream/continue",
        "actor/entropy")  # metrics whose last value is kept
BANNER = re.compile(r"# ---- (.*?) -+$", re.MULTILINE)  # of a section of dreamer.py


class Mutant(NamedTuple):
    """A mistake: what is changed and where, in words, what one sees of it, what finds it.

    `seen` is whether that was seen in a run of CartPole-v1; else it is what to expect."""

    function: str
    old: str
    new: str
    mistake: str
    symptom: str
    killer: str  # a test, as file::name
    seen: bool = False


def mutated(mutant, text=None):
    """The text of dreamer.py with the mistake in it.

    Raises: ValueError where the function is not there, or `old` not exactly once in it."""
    text = SOURCE.read_text(encoding="utf-8") if text is None else text
    node, lines = _definition(mutant.function, text), text.splitlines(keepends=True)
    before, after = lines[: node.lineno - 1], lines[node.end_lineno :]
    body = "".join(lines[node.lineno - 1 : node.end_lineno])
    if body.count(mutant.old) != 1:
        raise ValueError(f"dreamer.py, {mutant.function}: {mutant.old!r} stands there "
                         f"{body.count(mutant.old)} times, expected once")
    return "".join([*before, body.replace(mutant.old, mutant.new), *after])


def _definition(function, text):
    """The syntax tree of a function or of a method, "Class.method"."""
    parts = ast.parse(text).body
    for name in function.split("."):
        found = [part for part in parts if getattr(part, "name", None) == name]
        if not found:
            raise ValueError(f"{function}: is not in dreamer.py")
        parts = found[0].body
    return found[0]


def install(text):
    """This text as the module `dreamer`, in place of the one that is there.

    What has imported that one, tests included, will be imported anew."""
    old = sys.modules.pop("dreamer", None)
    for name, module in list(sys.modules.items()):
        if old is not None and vars(module).get("dreamer") is old:
            del sys.modules[name]
    module = sys.modules["dreamer"] = types.ModuleType("dreamer")
    module.__file__ = str(SOURCE)
    exec(compile(text, SOURCE, "exec"), vars(module))


# ---- Do the tests find them? ---------------------------------------------------------------------


class Outcomes:
    """A plugin of pytest: how each test that was called ended, by its name."""

    def __init__(self):
        self.passed, self.failed = [], {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        """Called by pytest after each part of a test."""
        report = yield
        if report.failed:
            self.failed[item.nodeid] = f"{call.when}: {call.excinfo.type.__name__}"
        elif call.when == "call" and report.passed:
            self.passed.append(item.nodeid)
        return report


def tested(killers):
    """Run tests on the module `dreamer` that is installed, in this process: -> Outcomes"""
    outcomes, tests = Outcomes(), [f"{ROOT}/tests/{killer}" for killer in killers]
    # the plugin left out collects all garbage after each run: half of the time of a quick test
    flags = ["-q", "-x", "--tb=no", "-m", "", "-p", "no:cacheprovider", "-p",
             "no:unraisableexception", f"--rootdir={ROOT}"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        pytest.main([*tests, *flags], plugins=[outcomes])
    return outcomes


def survives(mutant):
    """Why a mistake does not count as found: its test did not fail by an assertion. "" if it did"""
    install(mutated(mutant))
    outcomes = tested([mutant.killer])
    if not outcomes.failed:
        return "it passes" if outcomes.passed else "there is no such test"
    (how,) = outcomes.failed.values()
    return "" if how == "call: AssertionError" else f"it ends otherwise ({how})"


def check(names):
    """Print for each mistake which test finds it, or why not: -> exit status

    Without a mistake, one test of each file is run in the same way and has to pass; that all of
    them do is what the suite itself says."""
    killers = {killer.partition("::")[0]: killer for killer in
               (MUTANTS[name].killer for name in names)}
    install(SOURCE.read_text(encoding="utf-8"))
    correct = tested(killers.values())
    wrong = [f"{test}: fails without a mistake ({how})" for test, how in correct.failed.items()]
    for name in names:
        mutant, why = MUTANTS[name], survives(MUTANTS[name])
        print(f"{name:36} {'survives' if why else 'killed by'} {mutant.killer}", flush=True)
        wrong += [f"{name}: survives {mutant.killer}: {why}"] * bool(why)
    print("\n".join(wrong), file=sys.stderr, end="\n" * bool(wrong))
    return 1 if wrong else 0


# ---- What one sees of them -----------------------------------------------------------------------


def curves(names):
    """Train without a mistake and with each of these, if that was not done, and draw all curves.

    -> exit status. A run that ends early, by a nan say, leaves what it had."""
    for name in (NONE, *names):
        found = runs.read(CURVES)
        if name not in found:
            with tempfile.TemporaryDirectory() as folder:
                program = ["dreamer.py"] if name == NONE else ["-m", "tests.mutants", name]
                done = subprocess.run([sys.executable, *program, *RUN, "--logdir", f"{folder}/run"],
                                      cwd=ROOT, stdout=subprocess.DEVNULL)
                found[name] = seen_in(Path(folder) / "run") | {"status": done.returncode}
            files.replace(CURVES, (json.dumps(found, indent=1) + "\n").encode())
            print(f"{name}: ended with status {done.returncode}", flush=True)
    drawn = {name: {"seeds": [{"seed": 0, "curve": one["curve"]}]} for name, one in found.items()
             if one["curve"]}
    charts.ablations(PICTURE, {"CartPole-v1, seed 0": drawn}, WORDS)
    return 0


def seen_in(folder):
    """What is kept of a run: its evaluations, and the last value of some metrics."""
    rows = read_rows(folder / "metrics.jsonl")
    last = {name: float(f"{series(rows, name)[1][-1]:.4g}") for name in LAST
            if series(rows, name)[1]}
    curve = [list(pair) for pair in zip(*series(rows, "charts/eval_return"))]
    return {"curve": curve, "last": last}


# ---- The page ------------------------------------------------------------------------------------


def page():
    """docs/mistakes.md: every mistake in the order of dreamer.py."""
    text = SOURCE.read_text(encoding="utf-8")
    banners = [(match.start(), match[1]) for match in BANNER.finditer(text)]
    starts = [text.index("\n", start) for start, _ in banners]
    sections = {title: [] for _, title in banners}
    offsets = [0]
    for line in text.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    for name, mutant in MUTANTS.items():
        place = offsets[_definition(mutant.function, text).lineno - 1]
        title = [title for start, (_, title) in zip(starts, banners) if start < place][-1]
        sections[title].append(_entry(name, mutant, text))
    parts = [f"## {title}\n\n" + "\n\n".join(entries)
             for title, entries in sections.items() if entries]
    return "\n\n".join([HEAD.strip(), *parts]) + "\n"


def _entry(name, mutant, text):
    """One mistake: its name, its words, its change, what one sees, the test that finds it."""
    change = _difference(text, mutated(mutant, text))
    sees = "Seen" if mutant.seen else "To expect"
    test = mutant.killer.split("::")[1]
    return (f"### {name}\n\n`{mutant.function}`: {mutant.mistake}\n\n```diff\n{change}\n```\n\n"
            f"*{sees}:* {mutant.symptom}\n\n*Found by* `{test}`")


def _difference(text, other):
    """The lines that differ, without what is said behind them."""
    old, new = ([re.sub(r"  #.*", "", line) for line in part.splitlines()]
                for part in (text, other))
    same = next(i for i, (one, two) in enumerate(zip(old, new)) if one != two)
    end = next(i for i, (one, two) in enumerate(zip(old[::-1], new[::-1])) if one != two)
    lines = ([f"-{line[4:]}" for line in old[same : len(old) - end]]
             + [f"+{line[4:]}" for line in new[same : len(new) - end]])
    return "\n".join(lines)


HEAD = f"""
# Classic mistakes

Ways to get DreamerV3 nearly right. Each entry is one change of `dreamer.py`, in its order, with
what it does to the curves and the test that finds it. Few of them crash, and many of them learn
something. That is what makes them expensive: first look for the symptom, then for the line.

Where it says *Seen*, an agent was trained with the mistake (CartPole-v1, seed 0, as below) and what
stands there was seen in its `metrics.jsonl`; where it says *To expect*, it is reasoned. See for
yourself, beside an agent without it:

```sh
python -m tests.mutants no-bootstrap {" ".join(RUN)}
python dreamer.py {" ".join(RUN)}
```

The flags are those of `dreamer.py`. The tests of this project find each mistake: `python -m
tests.mutants --check` tries them one by one. Names of curves are explained in the
[README](../README.md#metrics). This page is written by `python -m tests.mutants --page` from the
list in `tests/mutants.py`.

![Returns of agents with a mistake, each beside those of the agent without one](mistakes.png)

One seed says little about small differences: two runs of one agent differ as much as some of these.
"""


MUTANTS = {
    "symlog-without-sign": Mutant(
        "symlog", "jnp.sign(x) * jnp.log1p", "jnp.log1p",
        "the sign is forgotten.",
        "A pole that leans to the left looks like one that leans to the right. The decoder aims "
        "at the same function and does not mind: all losses fall, and the return stays that of "
        "an agent that cannot tell the sides apart.",
        "test_equations.py::test_symexp_undoes_symlog_from_the_smallest_to_the_largest"),
    "symlog-of-zero": Mutant(
        "symlog", "jnp.log1p(", "jnp.log(",
        "ln |x| without the + 1.",
        "The first entry of an observation that is exactly 0 gives nan, and the run ends. Until "
        "then small numbers are blown up: 0.01 becomes -4.6, and its decoder loss with it.",
        "test_equations.py::test_symexp_undoes_symlog_from_the_smallest_to_the_largest"),
    "symexp-without-minus-one": Mutant(
        "symexp", "jnp.expm1(", "jnp.exp(",
        "exp |x| without the - 1: 0 has no neighbours, the smallest bins are -1.17 and 1.17.",
        "Small rewards and values cannot be told from 0 but by a mixture of far bins: they are "
        "learned slowly and jump; large ones hardly suffer.",
        "test_equations.py::test_symexp_undoes_symlog_from_the_smallest_to_the_largest"),
    "symexp-without-sign": Mutant(
        "symexp", "jnp.sign(x) * jnp.expm1", "jnp.expm1",
        "the sign is forgotten.",
        "The bins fall from 4.9e8 to 0 and on to -4.9e8, so no target finds its two neighbours: "
        "the losses of reward and critic stay where they began, at ln 255 = 5.5, or become nan.",
        "test_equations.py::test_symexp_undoes_symlog_from_the_smallest_to_the_largest"),
    "linear-bins": Mutant(
        "value_bins",
        "symexp(jnp.linspace(-20.0, 0.0, n // 2 + 1))",
        "jnp.linspace(-20.0, 0.0, n // 2 + 1)",
        "the bins are -20 ... 20 themselves.",
        "`dream/value` creeps to 19 and stays (109 without the mistake): no bin lies further "
        "out. With CartPole's rewards of 1 that is enough to come to 500; with larger rewards it "
        "is not.",
        "test_equations.py::test_the_bins_are_antisymmetric_to_the_bit_with_zero_in_the_middle",
        seen=True),
    "bins-too-near": Mutant(
        "value_bins", "jnp.linspace(-20.0,", "jnp.linspace(-10.0,",
        "the bins reach from symexp(-10) to symexp(10).",
        "Nothing in CartPole, whose values end at 333: the bins are even denser. Returns beyond "
        "22,025, as in some games, are all the same to the critic.",
        "test_golden.py::test_the_bins_are_official"),
    "mean-before-symexp": Mutant(
        "twohot_mean",
        "jnp.sum(surplus * bins[middle + 1 :], -1)",
        "symexp(jnp.sum(surplus * symlog(bins[middle + 1 :]), -1))",
        "the mean is taken in symlog space and spread out afterwards.",
        "Wherever the outcome is uncertain, values are nearer to 0 than they should be (the mean "
        "of logarithms is not the logarithm of the mean): large rewards do not tempt and large "
        "losses do not deter; where all is certain, nothing is to be seen.",
        "test_equations.py::test_the_two_hot_mean_is_the_expected_bin"),
    "most-likely-bin": Mutant(
        "twohot_mean",
        "jax.nn.softmax(logits)",
        "jax.nn.one_hot(jnp.argmax(logits, -1), logits.shape[-1])",
        "the most likely bin for the mean of all.",
        "Values move in steps of a bin, 17% of themselves; rare rewards are never expected at "
        "all, and advantages are noise until a step is crossed.",
        "test_equations.py::test_the_two_hot_mean_is_the_expected_bin"),
    "symlog-twice": Mutant(
        "twohot_loss", "jnp.clip(target,", "jnp.clip(symlog(target),",
        "the target goes through symlog, though the bins stand in raw space.",
        "All losses fall as they should, and `dream/value` stops at 1.44 (109 without the "
        "mistake): a value v that is made of r + v' under symlog cannot rise further. The score "
        "is as restless as without the mistake (477, then 172, then 363), so the curve of "
        "returns does not tell; that of values does.",
        "test_equations.py::test_the_two_hot_loss_is_the_cross_entropy_with_the_two_nearest_bins",
        seen=True),
    "nearest-bin": Mutant(
        "twohot_loss",
        "(target - bins[below]) / (bins[below + 1] - bins[below])",
        "jnp.round((target - bins[below]) / (bins[below + 1] - bins[below]))",
        "the target is rounded to its nearest bin.",
        "Rewards and values are off by up to 8%: where small differences decide, the score stays"
        " below that of others; elsewhere nothing is to be seen.",
        "test_equations.py::test_the_two_hot_loss_is_the_cross_entropy_with_the_two_nearest_bins"),
    "shares-swapped": Mutant(
        "twohot_loss",
        "(1.0 - share) * two[..., 0] + share * two[..., 1]",
        "share * two[..., 0] + (1.0 - share) * two[..., 1]",
        "each of the two bins gets the share of the other.",
        "A target near a bin is learned as its neighbour: values drift upwards and downwards "
        "with no cause that the episodes would show.",
        "test_equations.py::test_the_two_hot_loss_is_the_cross_entropy_with_the_two_nearest_bins"),
    "no-log-softmax": Mutant(
        "twohot_loss", "jax.nn.logsumexp(logits, -1) - picked", "-picked",
        "logits for log-probabilities: the log-sum-exp is missing.",
        "The losses of reward and critic fall below 0 and go on falling; the gradient norm grows"
        " until something is not finite.",
        "test_equations.py::test_the_two_hot_loss_is_the_cross_entropy_with_the_two_nearest_bins"),
    "unimix-forgotten": Mutant(
        "unimix",
        "(1.0 - ratio) * jax.nn.softmax(logits) + ratio / logits.shape[-1]",
        "jax.nn.softmax(logits)",
        "the 1% of the uniform is missing.",
        "Nothing: 500 at the end, all losses as ever. It is an insurance: what it prevents, a "
        "prior that is sure and wrong, comes in longer runs and larger models.",
        "test_equations.py::test_unimix_leaves_every_class_its_share_of_the_uniform",
        seen=True),
    "uniform-not-divided": Mutant(
        "unimix", "ratio / logits.shape[-1]", "ratio",
        "every class gets the whole ratio: the probabilities add up to more than 1.",
        "The KL is a little too large, entropies are wrong, and the last classes are drawn more "
        "rarely than they should be: what does not fit below 1 is never drawn.",
        "test_equations.py::test_unimix_leaves_every_class_its_share_of_the_uniform"),
    "no-straight-through": Mutant(
        "sample_onehot", "onehot + (probs - jax.lax.stop_gradient(probs))", "onehot",
        "a sample without the gradient of its probabilities.",
        "The decoder, reward and continue losses teach encoder and posterior nothing any more, "
        "so the latents hold nothing: the dynamics loss lies at the free bits, 0.1. The "
        "decoder loss stays at 0.06 (0.024 without the mistake), the score at 43 or less.",
        "test_equations.py::test_the_gradient_passes_a_sample_as_if_it_were_its_probabilities",
        seen=True),
    "mode-for-sample": Mutant(
        "sample_onehot", "jnp.sum(uniform[..., None] >= bounds, -1)", "jnp.argmax(probs, -1)",
        "the most likely class for a sample.",
        "Dreams from one state are all alike: what is uncertain is always dreamed as its "
        "likeliest outcome, rare ends of the world do not occur, and values are too high where "
        "they threaten.",
        "test_equations.py::"
        "test_samples_are_exactly_one_hot_and_as_frequent_as_their_probabilities"),
    "one-draw-for-all": Mutant(
        "sample_onehot", "uniform[..., None]", "uniform[..., :1, None]",
        "one random number for all latents.",
        "Each latent by itself looks right, but they are drawn together: combinations that never"
        " occur in the data occur in dreams, and the decoder blurs them.",
        "test_equations.py::"
        "test_samples_are_exactly_one_hot_and_as_frequent_as_their_probabilities"),
    "kl-mean-over-classes": Mutant(
        "kl", "jnp.sum(", "jnp.mean(",
        "the mean over the classes for the sum.",
        "Both KL losses are K times too small: the prior learns slowly, and the latents fall "
        "below the free bits.",
        "test_equations.py::test_kl_is_zero_between_equals_and_has_the_known_value_and_order"),
    "kl-turned-round": Mutant(
        "kl", "p * (jnp.log(p) - jnp.log(q))", "q * (jnp.log(q) - jnp.log(p))",
        "KL(q ‖ p) for KL(p ‖ q).",
        "The prior covers only a part of what the posterior says: dreams look sharp and leave "
        "out rarer outcomes.",
        "test_equations.py::test_kl_is_zero_between_equals_and_has_the_known_value_and_order"),
    "entropy-sign": Mutant(
        "entropy", "-jnp.sum(", "jnp.sum(",
        "the minus is forgotten.",
        "`latents/posterior_entropy` is negative; nothing is trained by it, so nothing else is "
        "to be seen.",
        "test_equations.py::"
        "test_entropy_of_the_uniform_is_ln_k_and_of_halves_and_quarters_one_and_a_half_bits"),
    "reward-head-not-zero": Mutant(
        "WorldModel.__init__", "rngs, outscale=0.0)", "rngs)",
        "the reward head starts at random weights.",
        "The bins reach to 4.9e8: before anything is learned, rewards of many millions are "
        "dreamed; the first losses are large and the return range takes long to forget them.",
        "test_wiring.py::test_an_agent_that_has_learned_nothing_expects_no_reward_and_no_value"),
    "critic-not-zero": Mutant(
        "Networks.__init__", "rngs, outscale=0.0)", "rngs)",
        "the critic starts at random weights.",
        "The same for values: the return range starts at millions, advantages are nothing beside"
        " it, and the policy stays where it was until the range has decayed.",
        "test_wiring.py::test_an_agent_that_has_learned_nothing_expects_no_reward_and_no_value"),
    "no-symlog-of-x": Mutant(
        "WorldModel.encode", "symlog(x)", "x",
        "the encoder sees the raw vector.",
        "Nothing where observations are small, as in CartPole; where they are in hundreds, the "
        "first layer saturates and the decoder loss stays high.",
        "test_golden.py::test_the_vector_encoder_is_official"),
    "pixels-not-centred": Mutant(
        "WorldModel.encode", "x / 255.0 - 0.5", "x / 255.0",
        "pixels in 0 ... 1 for -0.5 ... 0.5.",
        "Learning from images is slower at the start; the final score may be the same.",
        "test_golden.py::test_the_image_encoder_is_official"),
    "large-actions": Mutant(
        "WorldModel.recur", "a / jax.lax.stop_gradient(jnp.maximum(1.0, jnp.abs(a)))", "a",
        "continuous actions beyond ±1 reach the model as they are.",
        "In Pendulum-v1 the model tells 1.5 from 1, the environment does not: the dynamics loss "
        "of saturated actions stays higher, and dreams promise more than large actions can do.",
        "test_golden.py::test_the_recurrent_step_and_its_gradients_are_official"),
    "action-forgotten": Mutant(
        "WorldModel.recur", "reshape(len(latent.z), -1), a)",
        "reshape(len(latent.z), -1), jnp.zeros_like(a))",
        "the sequence model never learns which action was taken.",
        "What an action does is a surprise each time: the dynamics loss stays high, all dreams of "
        "a state are alike whatever is done in them, advantages are noise, and so is the policy.",
        "test_golden.py::test_the_recurrent_step_and_its_gradients_are_official"),
    "posterior-without-observation": Mutant(
        "WorldModel.posterior_probs", "[h, tokens]", "[h, jnp.zeros_like(tokens)]",
        "the posterior sees h alone.",
        "It is a second prior: the dynamics loss falls to the free bits at once, and no "
        "observation reaches the state. The decoder loss stays that of the mean, the score that "
        "of chance.",
        "test_golden.py::test_the_posterior_is_official"),
    "tokens-first": Mutant(
        "WorldModel.posterior_probs", "[h, tokens]", "[tokens, h]",
        "the posterior's inputs stand in another order.",
        "Nothing: whoever trains from the start never knows. But weights that were trained "
        "elsewhere give nonsense.",
        "test_golden.py::test_the_posterior_is_official"),
    "prior-on-stopped-state": Mutant(
        "WorldModel.prior_probs", "self.prior(h)", "self.prior(jax.lax.stop_gradient(h))",
        "the dynamics loss teaches the prior, and no longer the recurrent state.",
        "h learns what rebuilds the present and not what foretells the future: the dynamics loss "
        "stays higher, dreams drift off sooner.",
        "test_gradient_flow.py::"
        "test_every_loss_teaches_exactly_the_networks_that_the_table_of_the_readme_says"),
    "prior-without-unimix": Mutant(
        "WorldModel.prior_probs", "self._probs(self.prior(h))",
        "jax.nn.softmax(self.prior(h).reshape("
        "*h.shape[:-1], self.model.latents, self.model.classes))",
        "the prior has no share of the uniform.",
        "For long nothing. A prior that is sure and wrong then pays without limit: single batches "
        "with a dynamics loss of hundreds, and a gradient norm to match.",
        "test_golden.py::test_the_prior_is_official"),
    "one-softmax-for-all-latents": Mutant(
        "WorldModel._probs",
        "unimix(logits.reshape(shape), self.model.unimix)",
        "unimix(logits, self.model.unimix).reshape(shape)",
        "one softmax over all S · K logits.",
        "Each latent has a probability of 1 in S altogether: the last class takes what is "
        "missing, all latents sit there, and the decoder loss stays that of the mean.",
        "test_golden.py::test_the_prior_is_official"),
    "past-not-forgotten": Mutant(
        "observe_step", "1.0 - is_first.astype(jnp.float32)", "jnp.ones(is_first.shape)",
        "is_first resets nothing in the model.",
        "The score does not suffer (500), but the dynamics loss stays at twice what it should "
        "be, 1.0 for 0.49: where episodes begin, nothing foretells the next state. In games of "
        "short episodes that is most of the time.",
        "test_golden.py::"
        "test_a_step_on_real_data_is_official_and_forgets_the_past_where_an_episode_begins",
        seen=True),
    "last-action-not-forgotten": Mutant(
        "observe_step", "a * keep[:, None]", "a",
        "the last action of an episode reaches the first row of the next one.",
        "The first state of an episode depends on an action that was never carried out in it: a "
        "little more dynamics loss at every start, and nothing else to be seen.",
        "test_golden.py::"
        "test_a_step_on_real_data_is_official_and_forgets_the_past_where_an_episode_begins"),
    "action-of-the-same-row": Mutant(
        "observe", "batch.a[:, :-1]", "batch.a[:, 1:]",
        "row t meets a_t, which was chosen after x_t was seen.",
        "The posterior copes and the score rises, but to 267 at most where the agent without the"
        " mistake comes to 500: in a dream a_t hardly tells s_{t+1}. The dynamics loss stays at "
        "0.77 (0.49 without), the decoder loss at 0.04 (0.024).",
        "test_timeline.py::"
        "test_the_action_of_row_t_changes_h_from_row_t_plus_1_on_unless_an_episode_ends_there",
        seen=True),
    "observation-one-row-late": Mutant(
        "observe", "batch.x[:, 1:]", "batch.x[:, :-1]",
        "the state of row t is made from x_{t-1}.",
        "The model has to foresee what it should have seen: decoder and dynamics losses stay "
        "higher, and acting, which does see x_t, meets states that training never made.",
        "test_timeline.py::test_nothing_before_a_first_row_reaches_it_or_what_follows"),
    "decoder-mean-over-x": Mutant(
        "decoder_loss",
        "jnp.sum(jnp.square(world.decode(latent) - symlog(x)), -1)",
        "jnp.mean(jnp.square(world.decode(latent) - symlog(x)), -1)",
        "the mean over the entries of x for the sum.",
        "The decoder loss is X times smaller, and weighs that much less against the KL: small "
        "details of large observations are left out of the latents.",
        "test_golden.py::test_the_losses_of_vectors_and_images_are_official"),
    "decoder-target-without-symlog": Mutant(
        "decoder_loss", "symlog(x)", "x",
        "the decoder aims at the raw vector.",
        "Nothing where observations are small; large entries dominate the decoder loss and the "
        "small ones are never learned.",
        "test_golden.py::test_the_losses_of_vectors_and_images_are_official"),
    "pixels-not-divided": Mutant(
        "decoder_loss", "x / 255.0", "x",
        "the decoder, whose sigmoid ends at 1, aims at 0 ... 255.",
        "The decoder loss is in the ten thousands and stays there: every pixel that is not black"
        " is predicted as white.",
        "test_golden.py::test_the_losses_of_vectors_and_images_are_official"),
    "discount-forgotten": Mutant(
        "continue_loss", "(1.0 - is_terminal) * (1.0 - 1.0 / horizon)", "1.0 - is_terminal",
        "the target of a row that goes on is 1.",
        "Hardly anything in so short a run: 464 at the end, and `dream/value` 121 (109 without the "
        "mistake). The continue loss is lower, 0.033 for 0.054, for a target of 1 has no entropy. "
        "Of a task without end, values would rise for ever.",
        "test_equations.py::"
        "test_the_continue_loss_is_least_at_one_minus_one_over_the_horizon_and_zero_at_an_end",
        seen=True),
    "end-for-going-on": Mutant(
        "continue_loss", "(1.0 - is_terminal) *", "is_terminal *",
        "the target is 1 where the world ends and 0 where it goes on.",
        "`dream/continue` is near 0: every dream is over at its first step, the trajectory weights "
        "with it, and the actor learns from one step or none.",
        "test_equations.py::"
        "test_the_continue_loss_is_least_at_one_minus_one_over_the_horizon_and_zero_at_an_end"),
    "time-limit-as-end": Mutant(
        "prediction_loss", "rows.is_terminal", "rows.is_last",
        "the last row of every episode is taken for an end of the world.",
        "The same numbers as without the mistake to the last digit, until the first episode of "
        "training lives to the time limit: no test on short episodes would tell. From then on "
        "states near the limit are taught to be worth nothing.",
        "test_golden.py::test_the_three_prediction_terms_are_official_when_heads_and_targets_are",
        seen=True),
    "reward-of-the-next-row": Mutant(
        "prediction_loss", "rows.r,", "jnp.roll(rows.r, -1),",
        "s_t has to predict r_{t+1}, the reward of an action that it does not know yet.",
        "Nothing where every reward is the same, as in CartPole; elsewhere the reward loss stays"
        " at that of a guess, and the agent learns one step too late.",
        "test_golden.py::test_the_three_prediction_terms_are_official_when_heads_and_targets_are"),
    "heads-on-stopped-features": Mutant(
        "prediction_loss", "features(latent)", "features(jax.lax.stop_gradient(latent))",
        "reward and continue no longer teach the features.",
        "What matters for the reward but is small in the observation is not in the latents: in "
        "games of few pixels the reward loss stays high though the picture is sharp.",
        "test_gradient_flow.py::"
        "test_every_loss_teaches_exactly_the_networks_that_the_table_of_the_readme_says"),
    "kl-without-stop-gradient": Mutant(
        "dynamics_loss", "jax.lax.stop_gradient(posterior)", "posterior",
        "L_dyn moves the posterior too, with ten times the scale that L_rep gives it.",
        "The posterior gives way to the prior: the dynamics loss falls fast, the decoder loss "
        "stays high, the latents hold little.",
        "test_equations.py::test_each_kl_loss_teaches_one_side_and_only_above_the_free_bits"),
    "stop-gradient-on-the-prior": Mutant(
        "dynamics_loss",
        "kl(jax.lax.stop_gradient(posterior), prior)",
        "kl(posterior, jax.lax.stop_gradient(prior))",
        "L_dyn teaches the posterior, and nothing ever teaches the prior.",
        "The prior learns nothing, so the posterior gives way instead and says less: the dynamics "
        "loss is 0.32 (0.49 without the mistake). The score rises late, to 240 where the other "
        "comes to 500, and `dream/value` is 55 (109).",
        "test_equations.py::test_each_kl_loss_teaches_one_side_and_only_above_the_free_bits",
        seen=True),
    "free-bits-per-latent": Mutant(
        "dynamics_loss", "prior).sum(-1))", "prior)).sum(-1)",
        "the maximum is taken for each latent, then summed.",
        "The dynamics loss never falls below S times the free bits, and no latent is pushed "
        "before it is over them by itself: the prior stays vague.",
        "test_equations.py::test_each_kl_loss_teaches_one_side_and_only_above_the_free_bits"),
    "minimum-for-maximum": Mutant(
        "dynamics_loss", "jnp.maximum(", "jnp.minimum(",
        "the minimum for the maximum: the KL is pushed below the free bits and nowhere else.",
        "The dynamics loss reads exactly the free bits and does not move, while prior and "
        "posterior part from each other.",
        "test_equations.py::test_each_kl_loss_teaches_one_side_and_only_above_the_free_bits"),
    "representation-without-stop-gradient": Mutant(
        "representation_loss", "jax.lax.stop_gradient(prior)", "prior",
        "L_rep moves the prior too.",
        "Nothing to be seen: the prior learns at 1.1 times the rate. Only a look at the "
        "gradients tells.",
        "test_equations.py::test_each_kl_loss_teaches_one_side_and_only_above_the_free_bits"),
    "kl-mean-over-latents": Mutant(
        "representation_loss", ".sum(-1)", ".mean(-1)",
        "the mean over the latents for the sum.",
        "The KL is S times smaller, falls below the free bits and is not pushed any more: "
        "latents become hard to foresee.",
        "test_equations.py::test_each_kl_loss_teaches_one_side_and_only_above_the_free_bits"),
    "prior-of-the-old-h": Mutant(
        "dream", "world.prior_probs(h)", "world.prior_probs(latent.h)",
        "ẑ_{t+1} is drawn from h_t.",
        "Every dream lags one step behind in half of its state: action effects come late, and "
        "rewards of the next step are those of this one.",
        "test_equations.py::test_a_dream_feeds_each_state_and_the_action_chosen_there_to_the_next"),
    "dream-starts-its-states-late": Mutant(
        "dream", "features(last)[None]])", "features(last)[None]])[::-1]",
        "the states of a dream stand in the opposite order to its actions.",
        "Actions are credited with what came before them: the actor loss is noise and the policy"
        " random.",
        "test_equations.py::test_a_dream_feeds_each_state_and_the_action_chosen_there_to_the_next"),
    "bootstrap-with-v-t": Mutant(
        "lambda_returns",
        "tuple(x[:, 1:] for x in (r, c, values, lambda_))",
        "(r[:, 1:], c[:, 1:], values[:, :-1], lambda_[:, 1:])",
        "v_t for v_{t+1}.",
        "Values run in a circle, each into itself: they are learned more slowly, and what an "
        "action changes shows less in its return. The score rises late.",
        "test_equations.py::test_the_lambda_return_of_two_steps_is_the_one_worked_out_by_hand"),
    "reward-of-the-wrong-step": Mutant(
        "lambda_returns",
        "tuple(x[:, 1:] for x in (r, c, values, lambda_))",
        "(r[:, :-1], c[:, 1:], values[:, 1:], lambda_[:, 1:])",
        "r_t for r_{t+1}.",
        "Nothing where every reward is the same, as in CartPole; elsewhere an action is praised "
        "for the reward that came before it.",
        "test_equations.py::test_the_lambda_return_of_two_steps_is_the_one_worked_out_by_hand"),
    "continue-of-the-wrong-step": Mutant(
        "lambda_returns",
        "tuple(x[:, 1:] for x in (r, c, values, lambda_))",
        "(r[:, 1:], c[:, :-1], values[:, 1:], lambda_[:, 1:])",
        "c_t for c_{t+1}.",
        "The state in which the world ended is still bootstrapped from: deadly steps cost one "
        "step less than they should.",
        "test_equations.py::test_the_lambda_return_of_two_steps_is_the_one_worked_out_by_hand"),
    "lambda-swapped": Mutant(
        "lambda_returns",
        "(1.0 - lambda_next) * v_next + lambda_next * following",
        "lambda_next * v_next + (1.0 - lambda_next) * following",
        "λ and 1 - λ stand in each other's place.",
        "Returns look one step ahead and rest on the critic alone: its early errors are learned "
        "from for long, and the score rises late.",
        "test_equations.py::test_the_lambda_return_is_the_mixture_of_all_n_step_returns"),
    "reward-discounted-too": Mutant(
        "lambda_returns",
        "r_next + c_next * ((1.0 - lambda_next)",
        "c_next * (r_next + (1.0 - lambda_next)",
        "r_{t+1} is multiplied by c_{t+1} too.",
        "The reward that comes with the end of the world counts for nothing: nothing to be seen "
        "in CartPole but a 1, and everything in games that are won at their end (Catch, "
        "FourRooms).",
        "test_equations.py::test_the_lambda_return_of_two_steps_is_the_one_worked_out_by_hand"),
    "no-bootstrap": Mutant(
        "lambda_returns", "values[:, -1], inputs", "jnp.zeros_like(values[:, -1]), inputs",
        "a dream is worth nothing beyond its last step.",
        "No return is more than the rewards of one dream, and `dream/value` stops at 9.2 (109 "
        "without the mistake). In CartPole that is no catastrophe, for a dream is long enough to "
        "see a pole fall: the score comes to 450.",
        "test_equations.py::test_the_lambda_return_of_two_steps_is_the_one_worked_out_by_hand",
        seen=True),
    "no-trajectory-weights": Mutant(
        "trajectory_weights", "jnp.cumprod(c, 1)", "jnp.ones_like(c)",
        "all dreamed states count the same, also those after the end of the world.",
        "Half of what actor and critic learn from are states that nobody will ever be in, while "
        "the agent still fails often: it is slower at first, and alike later.",
        "test_equations.py::"
        "test_the_weight_of_a_dreamed_state_is_the_chance_to_arrive_there_with_its_own_c"),
    "weights-not-multiplied": Mutant(
        "trajectory_weights", "jnp.cumprod(c, 1)", "c",
        "c_t for the product of all up to t.",
        "The step at the end of the world is left out, those after it count in full: hardly "
        "anything to be seen but a critic loss that is higher.",
        "test_equations.py::"
        "test_the_weight_of_a_dreamed_state_is_the_chance_to_arrive_there_with_its_own_c"),
    "returns-taught": Mutant(
        "critic_loss", "jax.lax.stop_gradient(returns)", "returns",
        "the target of the critic may move towards it.",
        "Here, nothing to be seen: returns come from networks without gradient. In a copy "
        "without that second guard, rewards and values would bend to each other.",
        "test_equations.py::"
        "test_the_critic_loss_adds_the_return_and_the_slow_critic_and_teaches_neither"),
    "slow-critic-forgotten": Mutant(
        "critic_loss", "to_returns + slow_scale * to_slow", "to_returns",
        "nothing holds the critic near its slow copy.",
        "The critic is faster and less steady; with a small learning rate nothing is to be seen.",
        "test_equations.py::"
        "test_the_critic_loss_adds_the_return_and_the_slow_critic_and_teaches_neither"),
    "slow-critic-only": Mutant(
        "critic_loss", "to_returns + slow_scale * to_slow", "slow_scale * to_slow",
        "the critic follows its own slow copy, and no return.",
        "The critic loss falls to its floor at once and `dream/value` stays 0: the actor learns "
        "from 15 rewards and no more.",
        "test_equations.py::"
        "test_the_critic_loss_adds_the_return_and_the_slow_critic_and_teaches_neither"),
    "replay-time-limit-as-end": Mutant(
        "replay_returns", "(1.0 - rows.is_terminal)", "(1.0 - rows.is_last)",
        "a time limit is taken for an end of the world in replayed returns.",
        "Values near the limit sink once the agent lives so long; dreams, which know no limit, "
        "pull them up again: a critic loss that does not fall.",
        "test_equations.py::"
        "test_a_replayed_return_starts_anew_at_is_last_and_only_a_termination_is_worth_nothing"),
    "replay-across-episodes": Mutant(
        "replay_returns", "(1.0 - rows.is_last) * learning.lambda_", "learning.lambda_",
        "the λ-return runs on from the last row of an episode into the first of the next.",
        "The last states of a bad episode are worth what the next one brings: failing seems to "
        "cost less than it does.",
        "test_equations.py::"
        "test_a_replayed_return_starts_anew_at_is_last_and_only_a_termination_is_worth_nothing"),
    "replay-without-discount": Mutant(
        "replay_returns",
        "(1.0 - rows.is_terminal) * (1.0 - 1.0 / learning.horizon)",
        "1.0 - rows.is_terminal",
        "the discount is missing in replayed returns, though it is in dreams.",
        "The two critic losses pull at one value from two sides: neither falls to its floor, and"
        " values lie between.",
        "test_equations.py::test_a_replayed_return_goes_on_where_no_row_ends"),
    "range-not-averaged": Mutant(
        "update_return_range",
        "(1.0 - learning.return_rate) * return_range + learning.return_rate * new",
        "new",
        "the percentiles of this batch alone.",
        "The scale of the advantages jumps from update to update: `actor/return_high` is rugged,"
        " the policy's entropy rises and falls.",
        "test_equations.py::test_the_return_range_moves_a_share_of_the_way_to_both_percentiles"),
    "range-rate-swapped": Mutant(
        "update_return_range",
        "(1.0 - learning.return_rate) * return_range + learning.return_rate * new",
        "learning.return_rate * return_range + (1.0 - learning.return_rate) * new",
        "99% of the new range for 1%.",
        "As without an average: `actor/return_high` is rugged from the first update.",
        "test_equations.py::test_the_return_range_moves_a_share_of_the_way_to_both_percentiles"),
    "least-and-most": Mutant(
        "update_return_range",
        "jnp.percentile(returns, levels)",
        "jnp.stack([returns.min(), returns.max()])",
        "the least and the most return for the two percentiles.",
        "One dreamed outlier shrinks all advantages for a hundred updates: progress stops now "
        "and then without a cause in the episodes.",
        "test_equations.py::test_the_return_range_moves_a_share_of_the_way_to_both_percentiles"),
    "no-limit": Mutant(
        "advantages",
        "jnp.maximum(limit, return_range[1] - return_range[0])",
        "(return_range[1] - return_range[0])",
        "the divisor has no least value.",
        "All returns are 0 before the first update and the range with them: 0 / 0. The run ends "
        "with `actor/advantage_std is nan in update 1`.",
        "test_equations.py::"
        "test_advantages_are_divided_by_the_range_but_never_by_less_than_the_limit",
        seen=True),
    "limit-as-ceiling": Mutant(
        "advantages", "jnp.maximum(", "jnp.minimum(",
        "the divisor is at most L for at least L.",
        "Small ranges are blown up, large ones not divided: with returns of 100 the policy is "
        "settled within a few updates, whatever it was doing.",
        "test_equations.py::"
        "test_advantages_are_divided_by_the_range_but_never_by_less_than_the_limit"),
    "no-baseline": Mutant(
        "advantages", "(returns - values)", "returns",
        "the return itself for the advantage.",
        "Every action is praised where all rewards are positive: the policy settles early on "
        "what it happened to do (`actor/entropy` 0.19, 0.31 without the mistake), and the score "
        "stays below 190.",
        "test_equations.py::"
        "test_advantages_are_divided_by_the_range_but_never_by_less_than_the_limit",
        seen=True),
    "baseline-first": Mutant(
        "advantages", "(returns - values)", "(values - returns)",
        "v - R for R - v.",
        "What turned out better than expected is made rarer: the score falls below that of a "
        "random policy.",
        "test_equations.py::"
        "test_advantages_are_divided_by_the_range_but_never_by_less_than_the_limit"),
    "actor-sign": Mutant(
        "actor_loss", "-(reinforce + eta * policy.entropy())", "reinforce - eta * policy.entropy()",
        "the loss is minus what it should be.",
        "The score falls to 9, below the 20 of a random policy: the shortest episodes that there"
        " are. `actor/entropy` goes to 0.02, `dream/continue` to 0.3: the agent dreams of "
        "falling, and does.",
        "test_equations.py::test_the_actor_loss_makes_good_actions_likelier_and_bad_ones_rarer",
        seen=True),
    "entropy-punished": Mutant(
        "actor_loss", "reinforce + eta", "reinforce - eta",
        "η is subtracted: a sure policy is rewarded for being sure.",
        "`actor/entropy` falls to 0.04 (0.31 without the mistake), and the score stays below "
        "180: what the agent does by then is what it will always do.",
        "test_equations.py::test_the_entropy_bonus_of_the_actor_loss_is_eta_times_the_entropy",
        seen=True),
    "advantage-taught": Mutant(
        "actor_loss", "jax.lax.stop_gradient(advantage)", "advantage",
        "the advantage is a function for the gradient too.",
        "Here, nothing to be seen: returns and values carry no gradient in. In a copy without "
        "that second guard, the actor would move the critic to flatter itself.",
        "test_equations.py::test_the_actor_loss_makes_good_actions_likelier_and_bad_ones_rarer"),
    "stored-state-ignored": Mutant(
        "world_losses", "Latent(batch.h[:, 0],", "Latent(jnp.zeros_like(batch.h[:, 0]),",
        "every replayed sequence starts from h = 0.",
        "The first rows of each sequence are learned without a memory: tasks that need one "
        "suffer, and CartPole does not.",
        "test_wiring.py::test_a_replayed_sequence_goes_on_from_the_state_that_was_stored"),
    "targets-one-row-early": Mutant(
        "world_losses", "lambda x: x[:, 1:]", "lambda x: x[:, :-1]",
        "s_t has to predict x_{t-1}, r_{t-1} and c_{t-1}.",
        "The continue loss is suspiciously low, 0.02 (0.054 without the mistake), and "
        "`dream/continue` 0.997: the row after an end is the first of the next episode, which "
        "has forgotten everything, so nobody ever sees an end coming. The decoder loss is twice "
        "as high, the score stays below 150.",
        "test_wiring.py::test_a_state_is_to_predict_its_own_row_and_row_0_is_none",
        seen=True),
    "slow-critic-as-bootstrap": Mutant(
        "dream_losses",
        "lambda_returns(r, c, values,",
        "lambda_returns(r, c, twohot_mean(fixed.slow_critic(dreamed.s), bins),",
        "λ-returns rest on the slow critic, as targets of DQN do.",
        "Values rise later, by about the time that the slow copy lags behind; with `slow_rate` "
        "0.2 that is little.",
        "test_golden.py::test_returns_and_the_return_range_on_dreams_are_official"),
    "log-prob-of-the-next-state": Mutant(
        "dream_losses", "time_first(networks.actor(s))", "networks.actor(dreamed.s[:, 1:])",
        "ln π(a_t | s_{t+1}).",
        "The policy learns to repeat in s_{t+1} what was good in s_t: where neighbours are "
        "alike, as in CartPole, it learns all the same, only worse.",
        "test_golden.py::test_both_losses_on_dreams_are_official"),
    "range-before-its-update": Mutant(
        "dream_losses",
        "return_range = update_return_range(return_range, returns, learning)\n"
        "    advantage = advantages(returns, values[:, :-1], return_range,",
        "before = return_range\n"
        "    return_range = update_return_range(before, returns, learning)\n"
        "    advantage = advantages(returns, values[:, :-1], before,",
        "the advantages are divided by the range of the update before.",
        "Nothing but the first updates, in which the range is still 0 and the limit divides: a "
        "difference that only a comparison of numbers finds.",
        "test_golden.py::test_both_losses_on_dreams_are_official"),
    "baseline-of-the-next-state": Mutant(
        "dream_losses", "values[:, :-1], return_range", "values[:, 1:], return_range",
        "v_{t+1} for v_t.",
        "What an action changes is taken out of its own advantage: the signal is small, and "
        "learning slow.",
        "test_golden.py::test_both_losses_on_dreams_are_official"),
    "weights-one-step-late": Mutant(
        "dream_losses", "trajectory_weights(c)[:, :-1]", "trajectory_weights(c)[:, 1:]",
        "each step weighs as much as the next one.",
        "The step that leads to the end of the world counts for nothing: the agent never learns "
        "from its last mistake.",
        "test_golden.py::test_both_losses_on_dreams_are_official"),
    "actor-not-weighted": Mutant(
        "dream_losses", "(weight * actor).mean()", "actor.mean()",
        "the actor's loss counts dreams beyond their end.",
        "The policy also learns for states after the end: slower at first, alike later.",
        "test_golden.py::test_both_losses_on_dreams_are_official"),
    "last-rows-count": Mutant(
        "replay_critic_loss", "(1.0 - rows.is_last[:, :-1]) * loss", "loss",
        "rows that end an episode have a replayed return too.",
        "Their return is made of the next episode's first row: the values of last states are too"
        " high after a fall, and too low at a time limit.",
        "test_golden.py::test_the_replay_critic_loss_and_its_gradient_are_official"),
    "replay-critic-on-stopped-features": Mutant(
        "replay_critic_loss", "features(latent)", "features(jax.lax.stop_gradient(latent))",
        "the replayed critic loss no longer teaches the world model.",
        "What matters for values and is not in the observation's error is learned later; in "
        "CartPole hardly to be seen.",
        "test_golden.py::test_the_replay_critic_loss_and_its_gradient_are_official"),
    "dream-teaches-the-world": Mutant(
        "agent_losses", "jax.lax.stop_gradient(params)", "params",
        "the dream's networks are those that learn.",
        "Actor and critic losses reach reward, continue and prior heads: the world model dreams "
        "what flatters the policy, and the dynamics and continue losses rise.",
        "test_gradient_flow.py::"
        "test_every_loss_teaches_exactly_the_networks_that_the_table_of_the_readme_says"),
    "dream-starts-not-stopped": Mutant(
        "agent_losses", "x.shape[2:]), jax.lax.stop_gradient(latent))", "x.shape[2:]), latent)",
        "the states from which dreams start carry a gradient back.",
        "Actor and critic losses on dreams teach the encoder: the features drift with the "
        "policy, and the losses of the world model become restless.",
        "test_gradient_flow.py::"
        "test_every_loss_teaches_exactly_the_networks_that_the_table_of_the_readme_says"),
    "bootstrap-with-the-last-return": Mutant(
        "agent_losses", "returns[:, 0]", "returns[:, -1]",
        "replayed returns go on from the last dreamed return, 15 steps later.",
        "Replayed and dreamed returns of one state differ by 15 rewards: the two critic losses "
        "do not fall together.",
        "test_wiring.py::"
        "test_the_critic_goes_on_in_the_replay_from_the_return_dreamed_at_each_rows_own_state"),
    "kl-scales-swapped": Mutant(
        "total_loss", "\"dynamics\": learning.beta_dyn", "\"dynamics\": learning.beta_rep",
        "β_rep stands where β_dyn belongs.",
        "The prior learns at a tenth of its rate: the dynamics loss falls slowly, dreams are "
        "vague for long.",
        "test_equations.py::test_the_total_loss_scales_each_loss_by_its_own_beta_and_misses_none"),
    "scales-forgotten": Mutant(
        "total_loss", "scales[name] * losses[name]", "losses[name]",
        "all losses count alike.",
        "Representation and dynamics pull at the latents with equal force, so these give way to "
        "the prior: the decoder loss falls more slowly, and no number of the YAML changes that.",
        "test_equations.py::test_the_total_loss_scales_each_loss_by_its_own_beta_and_misses_none"),
    "slow-critic-turned-round": Mutant(
        "train_step",
        "params[\"critic\"], state.slow_critic",
        "state.slow_critic, params[\"critic\"]",
        "the critic's share in the slow critic is 1 - `slow_rate`.",
        "The slow critic is hardly slower than the critic and holds nothing: as without it.",
        "test_golden.py::"
        "test_the_slow_critic_follows_the_critic_after_each_update_as_the_official_one"),
    "slow-critic-before-the-update": Mutant(
        "train_step",
        "optax.incremental_update(params[\"critic\"]",
        "optax.incremental_update(state.params[\"critic\"]",
        "the slow critic follows the weights of before the update.",
        "It lags one update more: not to be seen in any curve.",
        "test_golden.py::"
        "test_the_slow_critic_follows_the_critic_after_each_update_as_the_official_one"),
    "acting-never-forgets": Mutant(
        "act", "now.is_first)", "jnp.zeros_like(now.is_first))",
        "while acting, the model is not told that an episode begins.",
        "The first actions of each episode are chosen with the memory of the last one; training,"
        " which is told, sees other states than acting did.",
        "test_timeline.py::test_a_row_stores_the_state_from_which_replay_goes_on_as_acting_did"),
    "returns-run-on": Mutant(
        "play", "total * going_on", "total",
        "the sum of rewards is not set back where an episode ends.",
        "`charts/episodic_return` grows without end while evaluations, which count first "
        "episodes, stay as they are.",
        "test_timeline.py::"
        "test_an_episode_scores_the_sum_of_its_rewards_and_its_number_of_actions"),
    "one-key-for-all-steps": Mutant(
        "collect", "jax.random.split(play_key, steps)", "jnp.repeat(play_key[None], steps)",
        "every step of a round uses the same random key.",
        "Within a round an agent draws the same number at each step: it explores in long runs of"
        " one action, and environments repeat themselves.",
        "test_wiring.py::test_each_step_of_playing_has_randomness_of_its_own"),
    "latents-one-row-early": Mutant(
        "learn", "index.place[:, 1:]", "index.place[:, :-1]",
        "the fresh state of row t is written to row t - 1.",
        "Stored states know what comes next: the first rows of sequences are explained too well,"
        " and acting, which cannot know it, is worse than the losses promise.",
        "test_wiring.py::test_the_fresh_state_of_a_row_is_written_to_that_row"),
    "latents-never-refreshed": Mutant(
        "learn", "index._replace(place=index.place[:, 1:]), fresh)",
        "index._replace(place=index.place[:, 1:]), {})",
        "stored states stay those of the weights that played.",
        "Sequences start from states that the model no longer understands; with short sequences "
        "the decoder loss of old episodes rises.",
        "test_wiring.py::test_the_fresh_state_of_a_row_is_written_to_that_row"),
}


# ---- The command ---------------------------------------------------------------------------------


def main(argv=None):
    """The command -> exit status, 2 for a wrong name or a dreamer.py that has another text"""
    first, *rest = (sys.argv[1:] if argv is None else argv) or ["--list"]
    if first in ("-h", "--help"):
        print(__doc__)
        return 0
    try:
        if first == "--list" and not rest:
            print("\n".join(f"{name:38} {mutant.function:22} {mutant.mistake}"
                            for name, mutant in MUTANTS.items()))
            return 0
        if first == "--page" and not rest:
            print(page(), end="")
            return 0
        seen = [name for name, mutant in MUTANTS.items() if mutant.seen]
        names = {"--check": rest or list(MUTANTS), "--curves": rest or seen}.get(first, [first])
        for name in names:
            mutated(known(name))  # it still fits dreamer.py
        if first == "--curves":
            return curves(names)
    except (ValueError, OSError) as error:
        return cli.complain(error, "tests.mutants")
    return check(names) if first == "--check" else train(first, rest)


def known(name):
    """The mistake of this name. ValueError, one line, if there is none."""
    if name not in MUTANTS:
        raise ValueError(f"{name}: expected the name of a mistake, --check, --curves or --page"
                         f"{configuration.nearest(name, [*MUTANTS, *FLAGS])}")
    return MUTANTS[name]


def train(name, flags):
    """Train an agent with a mistake, by these flags of dreamer.py: -> exit status"""
    install(mutated(MUTANTS[name]))
    print(f"mistake      {name}: {MUTANTS[name].mistake}", flush=True)
    status = sys.modules["dreamer"].main(flags)
    if status > 128:  # stopped
        print(f"mistake      to go on with it, python -m tests.mutants {name} --resume ...")
    return status


if __name__ == "__main__":
    sys.exit(main())
