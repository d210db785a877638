"""Dreamer 4: its equations in closed form, what sees what, and which loss teaches which network."""

import dataclasses
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dreamer4
import gymnax_wrappers
from dreamer4 import Levels
from jaxmodels_nnx import Categorical
from utils.core import config as configuration
from utils.dreamer4 import layers, optimizer, square
from utils.dreamer4.baselines import baselines
from utils.dreamer4.settings import PHASES, Config

SHIPPED = Path(__file__).parent.parent / "dreamer4.yaml"
KMAX = 8
USED = ("tokenizer.encoder=space time space", "tokenizer.decoder=time space",
        "dynamics.layers=space time space", f"dynamics.kmax={KMAX}", "tokenizer.patch=4",
        "imagination.value_warmup=2")


def settings(*sets):
    """The debug preset with changes."""
    return configuration.load(SHIPPED, Config, ["debug"], [*USED, *sets])


def normals(seed, *shape):
    """Reproducible normal numbers."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def shaken(networks, seed=0):
    """The same networks with random weights everywhere, zero layers included."""
    graph, weights = nnx.split(networks)
    random = np.random.default_rng(seed)
    return nnx.merge(graph, jax.tree.map(
        lambda x: x + jnp.asarray(random.normal(0.0, 0.2, x.shape), x.dtype), weights))


@pytest.fixture(scope="module")
def config():
    return settings()


@pytest.fixture(scope="module")
def networks(config):
    """All networks with random weights."""
    made = shaken(dreamer4.AllNetworks(config, nnx.Rngs(0)))
    return dreamer4.Networks(made.tokenizer, made.dynamics, made.policy, made.reward, made.value,
                             made.policy)


@pytest.fixture(scope="module")
def videos(config):
    """Recorded play."""
    return square.videos(jax.random.key(1), config.world, config.world.sequences)


@pytest.fixture(scope="module")
def encode(networks):
    """The tokenizer's encoder as one program: operation by operation it takes longer to compile."""
    return jax.jit(networks.tokenizer.encode)


# ---- Shortcut forcing ----------------------------------------------------------------------------


def test_equation_1_goes_from_noise_to_data():
    z, noise = normals(0, 2, 3, 4, 5), normals(1, 2, 3, 4, 5)
    tau = jnp.array([[0.0, 0.25, 1.0], [0.5, 0.75, 0.0]])
    mixed = dreamer4.corrupt(z, noise, tau)
    np.testing.assert_allclose(mixed[0, 0], noise[0, 0])
    np.testing.assert_allclose(mixed[0, 2], z[0, 2])
    np.testing.assert_allclose(mixed[0, 1], 0.75 * noise[0, 1] + 0.25 * z[0, 1], rtol=1e-6)


def test_the_velocity_of_the_true_data_is_data_minus_noise_and_one_step_of_it_arrives():
    z, noise, tau = normals(0, 2, 3, 4, 5), normals(1, 2, 3, 4, 5), jnp.full((2, 3), 0.375)
    noisy = dreamer4.corrupt(z, noise, tau)
    v = dreamer4.velocity(z, noisy, tau)
    np.testing.assert_allclose(v, z - noise, atol=1e-5)
    np.testing.assert_allclose(dreamer4.euler_step(noisy, v, 1.0 - tau), z, atol=1e-5)


def test_equation_8_is_a_tenth_for_noise_and_one_for_data():
    np.testing.assert_allclose(dreamer4.ramp(jnp.array([0.0, 0.5, 1.0])), [0.1, 0.55, 1.0])


def test_equation_4_samples_every_step_size_and_the_levels_that_it_reaches_and_never_1():
    levels = dreamer4.sample_levels(jax.random.key(0), (400, 10), 200, 1.0, KMAX)
    tau, d = np.asarray(levels.tau), np.asarray(levels.d)
    assert (d[200:] == 1).all()
    assert [*np.unique(d)] == [1, 2, 4, 8]
    for size in (1, 2, 4, 8):
        reached = tau[:200][d[:200] == size]
        assert [*np.unique(reached)] == [*range(0, KMAX, size)]
        share = np.mean(d[:200] == size)
        assert share == pytest.approx(1 / 4, abs=0.04)
    assert [*np.unique(tau[200:])] == [*range(KMAX)]
    assert (tau + d <= KMAX).all()


def test_a_power_above_1_prefers_low_signal_levels():
    means = [np.mean(dreamer4.sample_levels(jax.random.key(0), (99, 99), 0, power, 16).tau) / 16
             for power in (1.0, 3.0)]
    assert means == pytest.approx([0.5 - 1 / 32, 0.25 - 1 / 32], abs=0.015)


def test_alternated_rows_have_context_in_every_other_frame():
    levels = Levels(tau=jnp.full((500, 6), 2), d=jnp.full((500, 6), 2))
    after = dreamer4.alternated(jax.random.key(0), levels, 0.6, 7)
    context = np.asarray(after.tau) == 7
    assert (np.asarray(after.d) == np.where(context, 1, 2)).all()
    assert set(map(tuple, context.astype(int))) == {
        (0, 0, 0, 0, 0, 0), (1, 0, 1, 0, 1, 0), (0, 1, 0, 1, 0, 1)}
    assert context.any(1).mean() == pytest.approx(0.6, abs=0.07)
    for share, rows in ((0.0, 0), (1.0, 500)):
        found = dreamer4.alternated(jax.random.key(0), levels, share, 7)
        assert (np.asarray(found.tau) == 7).any(1).sum() == rows


def some_levels():
    """One frame for each step size and level: [1, 15]"""
    pairs = [(tau, d) for d in (1, 2, 4, 8) for tau in range(0, KMAX, d)]
    return Levels(*(jnp.array([numbers], jnp.int32) for numbers in zip(*pairs)))


def odd_model(noisy, levels):
    """Some function of everything that a model is told."""
    tau, d = (part[..., None, None] / KMAX for part in levels)
    return jnp.sin(3.0 * noisy + tau) * (1.0 + d) + 0.3 * tau - 0.7 * d


def test_equation_7_learns_towards_the_mean_velocity_of_two_half_steps():
    levels, noisy = some_levels(), normals(0, 1, 15, 2, 3)
    target = dreamer4.bootstrap_target(odd_model, noisy, levels, KMAX)
    for n, (tau, d) in enumerate(zip(levels.tau[0].tolist(), levels.d[0].tolist())):
        if d > 1:
            z1, here = normals(n, 1, 1, 2, 3), slice(n, n + 1)
            ours = dreamer4.shortcut_loss(z1, target[:, here], jnp.array([[tau / KMAX]]))
            weight = 0.9 * tau / KMAX + 0.1
            np.testing.assert_allclose(
                ours[0, 0], weight * by_the_paper(z1, noisy[:, here], tau, d), rtol=1e-4)


def by_the_paper(z1, z, tau, d):
    """The second case of Eq. 7 for one frame, in units of 1/KMAX."""
    half, tau_ = d // 2, tau / KMAX
    later = tau_ + half / KMAX
    b1 = (told(z, tau, half) - z) / (1 - tau_)
    between = z + b1 * half / KMAX
    b2 = (told(between, tau + half, half) - between) / (1 - later)
    return (1 - tau_) ** 2 * jnp.square((z1 - z) / (1 - tau_) - (b1 + b2) / 2).mean()


def told(z, tau, d):
    """`odd_model` for one frame."""
    return odd_model(z, Levels(jnp.array([[tau]]), jnp.array([[d]])))


def test_no_gradient_flows_through_the_bootstrap_target():
    noisy, levels = normals(0, 1, 15, 2, 3), some_levels()
    slope = jax.grad(lambda scale: dreamer4.bootstrap_target(
        lambda *inputs: scale * odd_model(*inputs), noisy, levels, KMAX).sum())
    assert slope(1.3) == 0.0


SPREAD = 0.6  # of data that are normal: then the flow of Eq. 1 is known


def spread(tau):
    """The standard deviation of such data, corrupted."""
    return jnp.sqrt(jnp.square(1.0 - tau) + jnp.square(tau * SPREAD))


def exact_model(noisy, levels):
    """The exact shortcut model of normal data: a step of size d leads where the flow leads

    The flow keeps x / σ_τ, with σ_τ² = (1 - τ)² + τ² SPREAD²."""
    tau, d = (part[..., None, None] / KMAX for part in levels)
    there = noisy * spread(tau + d) / spread(tau)
    return noisy + (there - noisy) / d * (1.0 - tau)


def test_where_the_model_is_exact_two_half_steps_lead_where_one_leads():
    levels, noisy = some_levels(), normals(0, 1, 15, 2, 3)
    target = dreamer4.bootstrap_target(exact_model, noisy, levels, KMAX)
    larger = np.asarray(levels.d[0]) > 1
    np.testing.assert_allclose(target[:, larger], exact_model(noisy, levels)[:, larger], atol=1e-5)


class Fake:
    """Something like a dynamics whose prediction is a known function."""

    shape, z_shape = SimpleNamespace(kmax=KMAX, context_noise=2), (2, 3)

    def __init__(self, model, temperature=1.0):
        self.model, self.temperature = model, temperature

    def __call__(self, noisy, levels, a, q=None, apart=None, pasts=None):
        return dreamer4.Pass(z1=self.model(noisy, levels), h=noisy[..., 0, :], pasts=pasts)


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_the_sampler_tells_the_level_before_each_step_and_its_size_and_then_is_exact(k):
    memory, a = dreamer4.Memory(pasts=[], h=None), jnp.zeros(5, jnp.int32)
    key = jax.random.key(3)
    z = dreamer4.dream_frame(Fake(exact_model), memory, a, None, k, key)
    noise = jax.random.normal(key, (5, 1, 2, 3))[:, 0]
    np.testing.assert_allclose(z, SPREAD * noise, atol=1e-5)
    if k > 1:  # a level after the step would be another number: the test sees the difference
        late = Fake(lambda noisy, levels: exact_model(
            noisy, Levels(jnp.minimum(levels.tau + levels.d, KMAX - levels.d), levels.d)))
        wrong = dreamer4.dream_frame(late, memory, a, None, k, key)
        assert np.abs(wrong - SPREAD * noise).max() > 0.05


@pytest.mark.parametrize("temperature", [0.0, 0.4])
def test_the_temperature_scales_the_noise_that_a_dreamed_frame_begins_with(temperature):
    memory, a, key = dreamer4.Memory(pasts=[], h=None), jnp.zeros(5, jnp.int32), jax.random.key(3)
    usual, scaled = (dreamer4.dream_frame(Fake(exact_model, scale), memory, a, None, 4, key)
                     for scale in (1.0, temperature))
    np.testing.assert_allclose(scaled, temperature * usual, atol=1e-5)


def test_past_frames_are_corrupted_to_the_level_of_the_context():
    told = []
    fake = Fake(lambda noisy, levels: told.append(levels) or noisy)
    z, key = normals(0, 4, 3, 2, 3), jax.random.key(1)
    _, h = dreamer4.remember(fake, dreamer4.Memory([], None), z, jnp.zeros((4, 3), int), None, key)
    noise = jax.random.normal(key, z.shape)
    np.testing.assert_allclose(h, (0.75 * z + 0.25 * noise)[..., 0, :], rtol=1e-5)
    assert (told[0].tau == KMAX - 2).all() and (told[0].d == 1).all()


# ---- The transformer -----------------------------------------------------------------------------


def turned_product(s, t):
    """q·k at the times s and t, and without RoPE."""
    q, k = normals(0, 1, 1, 1, 1, 8), normals(1, 1, 1, 1, 1, 8)
    return float(jnp.sum(layers.rotate(q, jnp.array([s]), 100.0)
                         * layers.rotate(k, jnp.array([t]), 100.0))), float(jnp.sum(q * k))


def test_rope_leaves_products_that_depend_on_the_distance_in_time_alone():
    assert turned_product(5, 2)[0] == pytest.approx(turned_product(13, 10)[0], abs=1e-5)
    assert turned_product(5, 2)[0] != pytest.approx(turned_product(5, 3)[0], abs=1e-3)
    assert turned_product(0, 0) == pytest.approx(turned_product(0, 0)[::-1], abs=1e-5)


def test_the_soft_cap_bounds_logits_and_leaves_small_ones():
    capped = layers.soft_cap(jnp.array([-1e6, -0.1, 0.0, 0.1, 1e6]), 50.0)
    np.testing.assert_allclose(capped, [-50.0, -0.1, 0.0, 0.1, 50.0], atol=1e-5)


def shape_of(*sets):
    """A transformer's section of the configuration, with changes."""
    return settings(*(f"dynamics.{text}" for text in sets)).dynamics


def test_attention_is_the_weighted_mean_of_the_values_of_its_group_of_queries():
    shape = shape_of("width=8", "heads=4", "kv_heads=2")
    attention = shaken(layers.SpaceAttention(shape, 1.0, nnx.Rngs(0)))
    x = normals(0, 1, 1, 3, 8)
    seen = jnp.array([[True, False, True], [True, True, True], [False, True, False]])
    found = jax.jit(attention)(x, x, seen)
    q, k, v = (np.asarray(part(x[0, 0])) for part in (
        attention.query, attention.key, attention.value))
    heads = []
    for head in range(4):
        mine, theirs = slice(2 * head, 2 * head + 2), slice(head // 2 * 2, head // 2 * 2 + 2)
        logits = np.array([[attention.query_norm(q[i, mine])
                            @ attention.key_norm(k[j, theirs]) / 2**0.5
                            for j in range(3)] for i in range(3)])
        weights = np.exp(shape.cap * np.tanh(logits / shape.cap)) * np.asarray(seen)
        heads.append(weights / weights.sum(1, keepdims=True) @ v[:, theirs])
    np.testing.assert_allclose(found[0, 0], attention.out(np.concatenate(heads, 1)), atol=1e-5)


def test_with_qk_norm_the_scale_of_queries_and_keys_does_not_matter():
    attention = shaken(layers.SpaceAttention(shape_of("norm_eps=1e-12"), 1.0, nnx.Rngs(0)))
    x, seen = normals(0, 1, 1, 3, attention.shape.width), jnp.ones((3, 3), bool)
    before = attention(x, x, seen)
    attention.query.matrix[...] *= 30.0
    attention.key.matrix[...] *= 0.2
    np.testing.assert_allclose(attention(x, x, seen), before, atol=1e-5)


def changed(function, x, place):
    """Which outputs [B, T, ...] of a function change when x changes at a place: bool [B, T]"""
    difference = np.abs(function(x) - function(x.at[place].add(1.0)))
    return difference.reshape(*difference.shape[:2], -1).max(-1) > 1e-6


def test_a_time_layer_sees_the_steps_of_its_window_and_nothing_later():
    shape = shape_of("window=3")
    attention = shaken(layers.TimeAttention(shape, 1.0, nnx.Rngs(0)))
    x = normals(0, 1, 7, 2, shape.width)
    reached = changed(jax.jit(lambda x: attention(x)[0]), x, (0, 2))
    assert reached[0].tolist() == [False, False, True, True, True, False, False]


def test_a_token_of_a_time_layer_sees_itself_alone():
    attention = shaken(layers.TimeAttention(shape_of(), 1.0, nnx.Rngs(0)))
    x = normals(0, 1, 3, 2, attention.shape.width)
    attend = jax.jit(lambda x: attention(x)[0])
    after = attend(x.at[:, :, 0].add(1.0)) - attend(x)
    assert np.abs(after[:, :, 0]).max() > 1e-3 and np.abs(after[:, :, 1]).max() == 0.0


# ---- Dynamics ------------------------------------------------------------------------------------


class Inputs(dict):
    """Inputs of the dynamics for 2 sequences of 6 frames."""

    def __init__(self, config):
        random = np.random.default_rng(0)
        shape, kmax = (2, 6), config.dynamics.kmax
        super().__init__(
            noisy=normals(0, *shape, config.tokenizer.latents, config.tokenizer.channels),
            levels=Levels(jnp.asarray(random.integers(0, kmax, shape)),
                          jnp.asarray(2 ** random.integers(0, 2, shape))),
            a=jnp.asarray(random.integers(0, 4, shape)), q=jnp.array([0, 1]))


@pytest.fixture(scope="module")
def two_tasks():
    """A pass of a dynamics with two tasks and a window of 3, one program for each kind of inputs;
    the dynamics; and inputs."""
    config = settings("world.tasks=2", "dynamics.window=3")
    dynamics = shaken(dreamer4.Dynamics(config, nnx.Rngs(0)))
    graph, weights = nnx.split(dynamics)
    compiled = jax.jit(lambda weights, inputs: nnx.merge(graph, weights)(**inputs))
    return lambda x, weights=weights: compiled(weights, dict(x)), dynamics, Inputs(config)


def test_the_dynamics_are_causal_and_see_the_past(two_tasks):
    run, _, inputs = two_tasks
    for name in ("noisy", "a"):
        kind = inputs[name].dtype
        reached = changed(
            lambda x, name=name, kind=kind: run(inputs | {name: x.astype(kind)}).z1,
            inputs[name].astype(jnp.float32), (0, 2))
        assert not reached[0, :2].any() and reached[0, 2:5].all() and not reached[1].any(), name


def test_single_images_see_no_other_frame(two_tasks):
    run, _, inputs = two_tasks
    apart = jnp.array([True, False])
    for row, expected in ((0, [0, 0, 1, 0, 0, 0]), (1, [0, 0, 1, 1, 1, 0])):
        reached = changed(lambda x: run(inputs | {"noisy": x, "apart": apart}).z1,
                          inputs["noisy"], (row, 2))
        assert reached[row].astype(int).tolist() == expected


def test_the_agents_token_reads_all_and_is_read_by_nobody(two_tasks):
    run, _, inputs = two_tasks
    one = run(inputs)
    other = run(inputs | {"q": jnp.array([1, 1])})
    none = run(inputs | {"q": None})
    np.testing.assert_array_equal(one.z1, other.z1)
    np.testing.assert_allclose(one.z1, none.z1, atol=1e-5)
    assert none.h is None
    assert np.abs(one.h - other.h)[0].min(1).max() > 0 and np.abs(one.h - other.h)[1].max() == 0
    for name in ("noisy", "a"):
        after = run(inputs | {name: inputs[name].at[0, 2].set(0)})
        assert np.abs(after.h - one.h)[0, 2].max() > 1e-4, name


def test_levels_and_step_sizes_are_told_apart(two_tasks):
    run, _, inputs = two_tasks
    one, levels = run(inputs).z1, inputs["levels"]
    for other in (Levels(levels.tau.at[0, 0].add(1) % KMAX, levels.d),
                  Levels(levels.tau, levels.d.at[0, 0].set(4))):
        assert np.abs(run(inputs | {"levels": other}).z1 - one)[0, 0].max() > 1e-4


def test_an_unknown_action_is_the_learned_embedding_alone(two_tasks):
    run, dynamics, inputs = two_tasks
    unknown = jnp.full_like(inputs["a"], square.UNKNOWN)
    found = run(inputs | {"a": unknown}).z1
    graph, weights = nnx.split(dynamics)
    bare = nnx.merge(graph, jax.tree.map(jnp.copy, weights))
    bare.action[...] *= 0.0
    without = run(inputs, nnx.state(bare))
    np.testing.assert_allclose(found, without.z1, atol=1e-6)
    assert np.abs(found - run(inputs).z1).max() > 1e-3


def test_the_cache_gives_what_the_whole_sequence_gives(two_tasks):
    run, dynamics, inputs = two_tasks
    whole = run(inputs)
    pasts, steps = dreamer4.start_memory(dynamics, 2).pasts, []
    for t in range(6):
        now = jax.tree.map(lambda x, t=t: x[:, t : t + 1],
                           {name: inputs[name] for name in ("noisy", "levels", "a")})
        steps.append(run(now | {"q": inputs["q"], "pasts": pasts}))
        pasts = steps[-1].pasts
    for name in ("z1", "h"):
        found = jnp.concatenate([getattr(step, name) for step in steps], 1)
        np.testing.assert_allclose(found, getattr(whole, name), atol=1e-5)


def test_the_tokenizer_encodes_frame_by_frame_what_it_encodes_at_once(config, encode, videos):
    x = videos.x[:2, :4]
    whole, _ = encode(x)
    shape = config.tokenizer
    pasts, steps = layers.no_past(shape, shape.encoder.split(), 2, shape.latents), []
    for t in range(4):
        z, pasts = encode(x[:, t : t + 1], pasts=pasts)
        steps.append(z)
    np.testing.assert_allclose(jnp.concatenate(steps, 1), whole, atol=1e-5)


# ---- Tokenizer -----------------------------------------------------------------------------------


def test_patches_are_squares_of_the_image_in_rows_and_come_back():
    x = jnp.arange(2 * 8 * 8 * 3).reshape(2, 8, 8, 3)
    patches = layers.patchify(x, 4)
    assert patches.shape == (2, 4, 48)
    np.testing.assert_array_equal(patches[1, 1].reshape(4, 4, 3), x[1, :4, 4:])
    np.testing.assert_array_equal(layers.unpatchify(patches, 4, 8), x)


def test_the_share_of_masked_patches_is_uniform_and_zero_below_zero():
    share = dreamer4.masked_patches(jax.random.key(0), (40, 50, 400), -0.5, 0.5).mean(-1)
    assert np.mean(share == 0) == pytest.approx(0.5, abs=0.05)
    share = dreamer4.masked_patches(jax.random.key(0), (40, 50, 400), 0.0, 0.9).mean(-1)
    assert np.mean(share) == pytest.approx(0.45, abs=0.02)
    assert np.quantile(share, [0.1, 0.9]) == pytest.approx([0.09, 0.81], abs=0.04)


def test_a_masked_patch_is_not_seen(config, encode, videos):
    x = videos.x[:1, :2]
    hidden = jnp.zeros((1, 2, (config.world.size // config.tokenizer.patch) ** 2), bool)
    other = x.at[:, :, 0, 0].add(100)  # in the first patch
    assert np.abs(encode(x, hidden)[0] - encode(other, hidden)[0]).max() > 1e-4
    hidden = hidden.at[:, :, 0].set(True)
    np.testing.assert_array_equal(encode(x, hidden)[0], encode(other, hidden)[0])


def test_latents_are_within_1_and_causal(config, networks, encode, videos):
    x = videos.x[:2, :4]
    z, _ = encode(x)
    assert z.shape == (2, 4, config.tokenizer.latents, config.tokenizer.channels)
    assert np.abs(z).max() < 1.0
    encoded = changed(lambda x: encode(x.astype(jnp.uint8))[0], 1.0 * x, (0, 2))
    assert encoded[0, 2] and not encoded[0, :2].any()
    decoded = changed(jax.jit(networks.tokenizer.decode), z, (0, 2))[0]
    assert decoded[2] and not decoded[:2].any()


def test_the_gradient_difference_sees_edges_and_no_shift_of_brightness():
    flat, x = jnp.zeros((1, 8, 8, 3)), np.zeros((1, 8, 8, 3), np.float32)
    assert dreamer4.gradient_difference(flat + 0.5, flat) == 0.0
    x[:] = np.arange(8)[:, None, None]  # rises by 1 a pixel along y: by 1, 2, 4 at the scales
    assert dreamer4.gradient_difference(x, flat) == pytest.approx((1 + 4 + 16) / 6)


def test_a_constant_loss_is_normalised_to_1_and_its_scale_does_not_matter():
    rms = {"one": jnp.ones(()), "other": jnp.ones(())}
    for _ in range(2000):
        parts, rms = dreamer4.normalised({"one": jnp.float32(20.0)}, rms, 0.01)
    assert float(parts["one"]) == pytest.approx(1.0, abs=1e-3) and rms["other"] == 1.0
    first, _ = dreamer4.normalised({"one": jnp.float32(1.0)}, {"one": jnp.ones(())}, 0.01)
    assert first["one"] == 1.0  # mean squares that began at 0 would make it 10
    slope = jax.grad(lambda x: dreamer4.normalised({"one": x}, rms, 0.01)[0]["one"])(20.0)
    assert slope == pytest.approx(1 / 20, rel=1e-3)


# ---- Behaviour, rewards, policy ------------------------------------------------------------------


def test_each_frame_predicts_the_next_ones():
    x = jnp.arange(10)[None]
    np.testing.assert_array_equal(dreamer4.ahead_of(x, 3)[0, :2], [[0, 1, 2], [1, 2, 3]])
    assert dreamer4.ahead_of(x, 3).shape == (1, 8, 3)


def test_equation_9_sums_over_what_lies_ahead_and_leaves_out_unknown_actions():
    logits, a = normals(0, 1, 1, 3, 4), jnp.array([[[2, square.UNKNOWN, 0]]])
    log_probs = np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))[0, 0]
    found = dreamer4.behaviour_loss(logits, a)
    np.testing.assert_allclose(found, [[-log_probs[0, 2] - log_probs[2, 0]]], rtol=1e-5)
    bins = jnp.array([-1.0, 0.0, 1.0])
    rewards = dreamer4.reward_loss(jnp.zeros((1, 1, 2, 3)), jnp.array([[[0.3, -1.0]]]), bins)
    np.testing.assert_allclose(rewards, [[2 * np.log(3)]], rtol=1e-6)


def test_equation_11_by_hand():
    log_prob = jnp.log(jnp.array([[0.5, 0.2], [0.1, 0.7]]))
    advantage = jnp.array([[1.0, -5.0], [0.0, 0.01]])
    divergence = jnp.array([[0.1, 0.2], [0.3, 0.4]])
    found = dreamer4.pmpo_loss(log_prob, advantage, divergence, 0.4, 0.3)
    good, bad = np.log([0.5, 0.1, 0.7]).mean(), np.log(0.2)
    assert found == pytest.approx(0.6 * bad - 0.4 * good + 0.3 * 0.25, rel=1e-5)
    assert found == dreamer4.pmpo_loss(log_prob, 10.0 * advantage, divergence, 0.4, 0.3)


def test_the_divergence_is_that_of_the_policy_from_the_prior_and_finite_where_one_never_acts():
    policy, prior = (Categorical(jnp.log(jnp.array(p))) for p in ([0.5, 0.5], [0.1, 0.9]))
    expected = 0.5 * np.log(0.5 / 0.1) + 0.5 * np.log(0.5 / 0.9)
    assert dreamer4.reverse_kl(policy, prior) == pytest.approx(expected, rel=1e-5)
    assert dreamer4.reverse_kl(policy, policy) == pytest.approx(0.0, abs=1e-6)
    never = Categorical(jnp.array([0.0, -500.0]))
    assert dreamer4.reverse_kl(never, prior) == pytest.approx(-np.log(0.1), rel=1e-5)


@pytest.mark.parametrize("sign, expected", [(1.0, -0.5 * np.log(0.3)), (-1.0, 0.5 * np.log(0.3))])
def test_equation_11_where_one_of_the_sets_is_empty(sign, expected):
    log_prob = jnp.full((2, 3), np.log(0.3))
    loss = partial(dreamer4.pmpo_loss, advantage=jnp.full((2, 3), sign),
                   divergence=jnp.zeros((2, 3)), alpha=0.5, beta=0.3)
    assert loss(log_prob) == pytest.approx(expected, rel=1e-5)
    assert np.isfinite(jax.grad(loss)(log_prob)).all()


def test_returns_of_a_constant_reward_are_a_geometric_sum():
    r, values = jnp.full((1, 6), -2.0), jnp.full((1, 6), -20.0)  # -2 / (1 - 0.9)
    found = dreamer4.lambda_returns(r, jnp.full((1, 6), 0.9), values, 0.95)
    np.testing.assert_allclose(found, np.full((1, 5), -20.0), rtol=1e-5)


# ---- The world -----------------------------------------------------------------------------------


def a_square(y, x, side=3, q=0):
    """A square of world.size 8 at a place."""
    return square.Square(place=jnp.array([y, x]), side=jnp.array(side), q=jnp.array(q),
                         colour=jnp.array([200, 150, 100], jnp.uint8),
                         background=jnp.zeros(3, jnp.uint8))


@pytest.mark.parametrize("place, a, after", [
    ((2, 2), 0, (2, 1)), ((2, 2), 1, (2, 3)), ((2, 2), 2, (1, 2)), ((2, 2), 3, (3, 2)),
    ((2, 0), 0, (2, 1)), ((2, 5), 1, (2, 4)), ((0, 2), 2, (1, 2)), ((5, 2), 3, (4, 2))])
def test_an_action_moves_the_square_and_borders_reflect_it(config, place, a, after):
    moved = square.move(a_square(*place), jnp.array(a), config.world)
    assert tuple(moved.place.tolist()) == after


def test_the_image_shows_the_square_and_the_reward_is_minus_its_distance(config):
    x = np.asarray(square.image(a_square(1, 4), config.world))
    assert (x[1:4, 4:7] == [200, 150, 100]).all() and x.sum() == 9 * 450
    found = [float(square.reward(a_square(1, 4, q=q), config.world)) for q in range(5)]
    centre = np.array([2.5, 5.5])
    points = np.array([[4, 4], [0, 0], [8, 8], [0, 8], [8, 0]])
    assert found == pytest.approx([-np.linalg.norm(centre - point) for point in points])


def test_the_nearest_action_goes_to_the_point(config):
    for place, expected in (((2, 4), 0), ((2, 1), 1), ((4, 2), 2), ((1, 2), 3)):
        assert square.nearest_action(a_square(*place), config.world) == expected


def test_the_recorded_player_holds_each_direction_for_as_long_as_the_settings_say(config):
    world = dataclasses.replace(config.world, hold_low=2, hold_high=4, length=60)
    a = np.asarray(square.videos(jax.random.key(0), world, 200).a)
    held = [len(run) for row in a for run in np.split(row, np.flatnonzero(np.diff(row)) + 1)[1:-1]]
    lengths, counts = np.unique(held, return_counts=True)
    assert lengths.tolist() == [2, 3, 4]
    assert counts / counts.sum() == pytest.approx([1 / 3] * 3, abs=0.03)
    first = np.argmax(np.diff(a, axis=1) != 0, axis=1)  # a recording begins within a hold
    assert np.bincount(first) / len(first) == pytest.approx([3 / 9, 3 / 9, 2 / 9, 1 / 9], abs=0.1)


def test_videos_are_the_world_played(config):
    world = dataclasses.replace(config.world, unlabelled=0.5)
    videos = square.videos(jax.random.key(0), world, 64)
    assert videos.x.shape == (64, world.length, 8, 8, 3) and videos.x.dtype == jnp.uint8
    assert 0.3 < np.mean(videos.labelled) < 0.7
    is_square = np.asarray(videos.x).any(-1)
    rows, columns = is_square.any(3), is_square.any(2)
    centre = [line.argmax(-1) + line.sum(-1) / 2 for line in (rows, columns)]
    away = np.hypot(centre[0] - 4.0, centre[1] - 4.0)
    np.testing.assert_allclose(videos.r, -away, atol=1e-5)


def test_dreamerv3_can_play_the_square():
    env = gymnax_wrappers.make("utils.dreamer4.square_env:make", changes={"size": 8, "largest": 4})
    assert env.is_image and env.x_shape == (8, 8, 3) and env.action_size == 4
    assert env.time_limit == 32


# ---- Updates -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 24, 40), (2, 40, 24), (1, 32, 32)])
def test_newton_schulz_brings_singular_values_near_1_and_keeps_the_singular_vectors(shape):
    x = normals(0, *shape)
    y = np.asarray(optimizer.orthogonal(x, 5))
    assert y.shape == shape
    for before, after in zip(np.asarray(x), y):
        values = np.linalg.svd(after, compute_uv=False)
        assert 0.3 < values.min() and values.max() < 1.3, values
        u, _, v = np.linalg.svd(before, full_matrices=False)
        rest = u.T @ after @ v.T
        assert np.abs(rest - np.diag(np.diag(rest))).max() < 1e-3


def test_muon_steps_every_matrix_alone_whatever_is_stacked_with_it():
    tree = {"a": normals(0, 8, 24), "b": normals(1, 24, 8), "c": normals(2, 8, 24)}
    step = optimizer.muon(0.9, 5)
    together, _ = step.update(tree, step.init(tree), tree)
    for name, x in tree.items():
        alone = optimizer.orthogonal(1.9 * x[None], 5)[0] * max(1, x.shape[1] / x.shape[0]) ** 0.5
        np.testing.assert_allclose(together[name], alone, atol=2e-3)


def test_muon_has_the_matrices_of_the_blocks_and_adam_all_else(config):
    _, shapes = dreamer4.build(config)
    kinds = optimizer.kinds({"dynamics": shapes["dynamics"]})
    found = {jax.tree_util.keystr(path): kind
             for path, kind in jax.tree_util.tree_leaves_with_path(kinds)}
    muon = [name for name, kind in found.items() if kind == "muon"]
    blocks = len(config.dynamics.layers.split())
    assert len(muon) == 6 * blocks and all("'blocks'" in name for name in muon)
    assert len(found) > len(muon)


def test_the_learning_rate_rises_stays_and_falls():
    numbers = dataclasses.replace(settings().optimizer, warmup=10, constant=0.5, final=0.02)
    rate = optimizer.schedule(3.0, 100, numbers)
    found = [float(rate(step)) for step in (0, 5, 10, 50, 75, 100)]
    assert found == pytest.approx([0.0, 1.5, 3.0, 3.0, 3.0 * 0.51, 0.06])


def on_host(state):
    """What the next update will overwrite."""
    return jax.device_get(state._replace(key=None))


@pytest.fixture(scope="module")
def trained(videos):
    """{phase: (state before, after 2, after 3 updates, metrics)}, one phase after the other.

    A layer of each kind in each network: that of another one would only take longer to compile."""
    config = settings("tokenizer.encoder=space time", "dynamics.layers=space time")
    program, _ = dreamer4.build(config)
    state = dreamer4.init.__wrapped__(program, jax.random.key(0))  # compiled, it takes longer
    random = np.random.default_rng(0)
    state = state._replace(params=jax.tree.map(  # no layer of zeros, which would hide a gradient
        lambda x: x + jnp.asarray(random.normal(0, 0.05, x.shape), x.dtype), state.params))
    found = {}
    for phase in PHASES:
        state, data = dreamer4.begin(program, phase, state, videos)
        states = [on_host(state)]
        for _ in range(3):  # the first has a learning rate of 0
            state, metrics = dreamer4.train_chunk(program, phase, 1, state, data)
            states.append(on_host(state))
        found[phase] = states[0], states[2], states[3], metrics
    return found


TAUGHT = {"tokenizer": {"tokenizer"}, "dynamics": {"dynamics"},
          "agent": {"dynamics", "policy", "reward"}, "policy": {"policy", "value"}}


def learned(before, after):
    """The networks whose weights differ."""
    return {name for name in before.params if any(
        (a != b).any() for a, b in zip(*(jax.tree.leaves(state.params[name])
                                         for state in (before, after))))}


def test_the_value_learns_alone_at_first(trained, config):
    before, middle, after, _ = trained["policy"]
    assert config.imagination.value_warmup == 2
    assert learned(before, middle) == {"value"}
    assert learned(middle, after) == {"value", "policy"}


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_changes_its_networks_and_no_other(trained, phase):
    before, _, after, metrics = trained[phase]
    assert learned(before, after) == TAUGHT[phase]
    assert before.step[phase] == 0 and after.step[phase] == 3
    assert all(np.isfinite(metric).all() for metric in metrics.values())


def test_every_weight_of_a_network_that_learns_changes(trained):
    for phase, names in TAUGHT.items():
        old, new = ({name: state.params[name] for name in names} for state in trained[phase][:3:2])
        same = jax.tree.map(lambda a, b: bool((a == b).all()), old, new)
        found = {jax.tree_util.keystr(path)
                 for path, is_same in jax.tree_util.tree_leaves_with_path(same) if is_same}
        idle = {"['dynamics']['task'].value"} if phase == "dynamics" else set()  # no agent yet
        assert found == idle, phase


def test_phase_2_measures_the_scale_and_phase_4_keeps_the_policy_as_prior(trained):
    before, _, after, _ = trained["dynamics"]
    assert before.scale == after.scale != 1.0
    before, _, after, _ = trained["policy"]
    for prior, policy in zip(jax.tree.leaves(after.params["prior"]),
                             jax.tree.leaves(before.params["policy"])):
        np.testing.assert_array_equal(prior, policy)


def test_every_third_batch_is_long_and_so_are_the_last():
    config = settings("dynamics.long_every=3", "dynamics.long_length=8", "dynamics.long_final=0.25")
    found = [bool(dreamer4.is_long(config, step)) for step in range(config.run.dynamics)]
    assert found == [False, False, True, False, False, True, True, True]


def test_a_long_batch_has_as_many_frames_as_a_short_one(config, networks, monkeypatch):
    program, _ = dreamer4.build(settings("dynamics.long_every=2", "dynamics.long_length=8"))
    state = dreamer4.init.eval_shape(program, jax.random.key(0))
    videos = jax.eval_shape(lambda key: square.videos(key, config.world, 8), jax.random.key(1))
    record, shapes = dreamer4.encoded.eval_shape(program, state.params, videos), []
    pieces = dreamer4.pieces
    monkeypatch.setattr(dreamer4, "pieces", lambda key, rows, batch, length: (
        shapes.append((batch, length)) or pieces(key, rows, batch, length)))
    jax.eval_shape(partial(dreamer4.dynamics_losses, networks, program), state, record,
                   jax.random.key(2))
    assert shapes == [(2, 8), (4, 4)]


# ---- Playing and dreaming ------------------------------------------------------------------------


def test_the_policy_plays_the_world_and_greedy_play_takes_the_likeliest_action(config, networks):
    program, _ = dreamer4.build(config)
    policy = networks.policy
    play = jax.jit(lambda bias, key: dreamer4.play(networks._replace(
        policy=lambda h: 0.0 * policy(h) + bias), program, 1.0, True, key))
    always_right = jnp.tile(jnp.array([0.0, 9.0, 0.0, 0.0]), config.agent.ahead)
    played = jax.device_get(play(always_right, jax.random.key(0)))
    steps, n = config.evaluation.steps, config.evaluation.episodes
    assert played.x.shape == (n, steps + 1, 8, 8, 3) and (played.a == 1).all()
    columns = played.x.any(-1).any(2)
    centre = columns.argmax(-1) + columns.sum(-1) / 2
    bounced = 1 * (np.abs(np.diff(centre, axis=1)) == 1)
    assert bounced.all()
    rows = played.x.any(-1).any(3)
    away = np.hypot(centre - 4.0, rows.argmax(-1) + rows.sum(-1) / 2 - 4.0)
    np.testing.assert_allclose(played.returns, -away[:, 1:].sum(1), rtol=1e-4)


def test_a_dream_is_made_of_steps_from_the_real_frames_on(config, networks):
    dynamics, key = networks.dynamics, jax.random.key(5)
    shape = (2, 3, config.tokenizer.latents, config.tokenizer.channels)
    before = jnp.array([[0, 1, 2], [3, 2, 1]])
    context = dreamer4.Record(z=normals(0, *shape), before=before, a=None, r=None,
                              q=jnp.zeros(2, int), apart=None)
    actions = jnp.array([[1, 2], [0, 3]])
    dream, dream_step = (jax.jit(partial(function, dynamics, k=2))
                         for function in (dreamer4.dream, dreamer4.dream_step))
    remember = jax.jit(partial(dreamer4.remember, dynamics))
    found = dream(context, actions, key=key)
    context_key, key = jax.random.split(key)
    memory, _ = remember(dreamer4.start_memory(dynamics, 2), context.z, context.before, context.q,
                         context_key)
    for t, step_key in enumerate(jax.random.split(key, 2)):
        memory, z = dream_step(memory, actions[:, t], context.q, key=step_key)
        np.testing.assert_allclose(found[:, t], z, atol=1e-5)


# ---- The numbers ---------------------------------------------------------------------------------

PAPER = {
    "tokenizer": {"patch": 16, "latents": 512, "channels": 16, "mask_low": 0.0, "mask_high": 0.9,
                  "noise": 0.0, "perceptual": 0.2, "length": 64},
    "dynamics": {"spatial": 256, "window": 192, "kmax": 64, "power": 1.0, "alternate": 0.0,
                 "bootstrap": 1.0, "images": 0.3, "scaled": False, "length": 64,
                 "long_length": 256},
    "agent": {"ahead": 8, "power": 1.0, "alternate": 0.0, "bootstrap_scale": 1.0},
    "imagination": {"k": 4, "gamma": 0.997, "alpha": 0.5, "beta": 0.3, "value_warmup": 0},
}


def test_the_preset_paper_has_the_numbers_of_the_paper():
    """Its sizes are those that the program prints: tests/test_dreamer4_command.py."""
    paper = configuration.load(SHIPPED, Config, ["paper"])
    for section, numbers in PAPER.items():
        found = dataclasses.asdict(getattr(paper, section))
        assert {key: found[key] for key in numbers} == numbers, section
    assert paper.dynamics.context_noise / paper.dynamics.kmax == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("preset", ["colours", "peer"])
def test_the_other_presets_are_valid(preset):
    assert configuration.load(SHIPPED, Config, [preset])


@pytest.mark.parametrize("sets, message", [
    (["world.size=10"], "world.size: expected a multiple of tokenizer.patch = 4, found 10"),
    (["world.largest=8"], "world.largest: expected at most world.size - world.step = 7, found 8"),
    (["world.hold_low=7"], "world.hold_high: expected at least world.hold_low = 7, found 6"),
    (["tokenizer.width=18"], "tokenizer.width: expected a multiple of 2 × tokenizer.heads = 4"),
    (["dynamics.kv_heads=3"], "dynamics.heads: expected a multiple of dynamics.kv_heads = 3"),
    (["dynamics.layers=space tim"], "dynamics.layers: expected words, each space or time"),
    (["tokenizer.decoder=x space"], "tokenizer.decoder: expected words, each space or time"),
    (["dynamics.spatial=3"], "dynamics.spatial: expected a divisor of tokenizer.latents × "),
    (["dynamics.kmax=12"], "dynamics.kmax: expected a power of 2, found 12"),
    (["imagination.k=16"], "imagination.k: expected a power of 2 up to dynamics.kmax = 8"),
    (["dynamics.context_noise=8"], "dynamics.context_noise: expected less than dynamics.kmax = 8"),
    (["agent.bins=8"], "agent.bins: expected an odd number, found 8"),
    (["agent.length=12"], "world.length: expected at least agent.length + agent.ahead - 1 = 13"),
    (["dynamics.long_every=2", "dynamics.long_length=99"],
     "world.length: expected at least dynamics.long_length = 99, found 12"),
    (["tokenizer.mask_low=0.6"], "tokenizer.mask_high: expected at least tokenizer.mask_low = 0.6"),
    (["tokenizer.perceptual=0.2", "world.size=6", "tokenizer.patch=3"],
     "world.size: expected a multiple of the perceptual loss's scale = 4, found 6"),
])
def test_numbers_that_do_not_fit_are_refused_with_what_would(sets, message):
    with pytest.raises(configuration.ConfigError) as told:
        settings(*sets)
    assert message in str(told.value) and "\n" not in str(told.value)


# ---- A tiny world --------------------------------------------------------------------------------

# One white pixel on 4 x 4 black ones, whose optimum is known: each phase can be learned in seconds.
TINY = """world.size=4 world.smallest=1 world.largest=1 world.colour_low=255 world.sequences=256
world.length=16 world.hold_high=2 evaluation.sequences=64 evaluation.episodes=64 evaluation.steps=8
tokenizer.patch=2 tokenizer.width=32 tokenizer.hidden=32 tokenizer.batch=32
tokenizer.length=1 dynamics.width=48 dynamics.hidden=96 dynamics.batch=16 dynamics.length=8
agent.units=32 agent.bins=41 agent.batch=16 agent.length=8 imagination.dreams=32
imagination.horizon=4 imagination.value_warmup=30 imagination.adam=0.005 optimizer.warmup=10
run.tokenizer=600 run.dynamics=1500 run.agent=1000 run.policy=300""".split()


@pytest.mark.slow
def test_all_phases_learn_a_tiny_world():
    config = settings(*TINY, "tokenizer.encoder=space", "tokenizer.decoder=space")
    program, _ = dreamer4.build(config)
    state = dreamer4.init(program, jax.random.key(0))
    videos, fresh = (square.videos(jax.random.key(seed), config.world, number)
                     for seed, number in ((1, 256), (2, 64)))
    figures = {}
    for phase in PHASES:
        state, data = dreamer4.begin(program, phase, state, videos)
        state, _ = dreamer4.train_chunk(program, phase, getattr(config.run, phase), state, data)
        figures[phase] = jax.device_get(
            dreamer4.evaluate(program, phase, state, fresh, jax.random.key(3)))
    yardsticks = baselines(config, "policy", fresh, jax.random.key(3))["return_sampled"]
    assert figures["tokenizer"]["psnr"] > 35.0
    assert figures["dynamics"]["first_k2"] > 20.0, figures  # 9.0 for the last frame repeated
    assert figures["dynamics"]["psnr_k2"] > figures["dynamics"]["psnr_k1"] - 2.0, figures
    assert figures["dynamics"]["wrong_actions"] < 13.0, figures
    assert figures["agent"]["reward_error"] < 0.1, figures
    assert figures["policy"]["return_sampled"] > 0.7 * yardsticks["best"] + 0.3 * yardsticks[
        "random"], (figures, yardsticks)
