"""Shapes for any image, blocks that are blocks, initial weights of the right size."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.scipy.linalg import block_diag
from numpy.testing import assert_allclose, assert_array_equal

import dreamer
import jaxmodels_nnx as models
from utils.core import config
from utils.core.settings import Config

MODEL = config.load("dreamer.yaml", Config, ["debug"]).model
KEY = jax.random.key(0)


def rngs():
    """Fresh randomness for initial weights, always the same."""
    return nnx.Rngs(0)


def round_trip(x):
    """Tokens of an image, and an image made from a state, by freshly made networks."""
    encoder, tokens = models.make_encoder(MODEL, x.shape[2:], True, rngs())
    decoder = models.make_decoder(MODEL, x.shape[2:], True, rngs())
    h, z = jnp.ones((*x.shape[:2], MODEL.deter)), jnp.ones((*x.shape[:2], 16))
    return encoder(x / 255.0 - 0.5), jnp.zeros(tokens), decoder(h, z)


@pytest.mark.parametrize("shape, smallest, channels", [
    ((10, 10, 4), (5, 5), 2),
    ((64, 64, 3), (4, 4), 4),
    ((7, 9, 2), (4, 5), 2),
    ((30, 40, 3), (4, 5), 4),
    ((3, 2, 1), (2, 1), 2),
])
def test_every_image_size_comes_back_and_has_the_tokens_that_were_announced(
        shape, smallest, channels):
    pixels = jax.ShapeDtypeStruct((2, 3, *shape), jnp.uint8)
    seen, announced, image = jax.eval_shape(round_trip, pixels)
    assert image.shape == (2, 3, *shape)
    assert seen.shape == (2, 3, *announced.shape)
    assert announced.shape == (smallest[0] * smallest[1] * channels * MODEL.depth,)


def test_images_are_halved_while_they_stay_at_least_as_large_as_the_seed():
    sizes = [models.image_sizes(shape, (2, 3, 4, 4), 4) for shape in ((64, 64), (7, 9), (8, 99))]
    assert sizes[0] == [(64, 64), (32, 32), (16, 16), (8, 8), (4, 4)]
    assert sizes[1] == [(7, 9), (4, 5)]
    assert sizes[2] == [(8, 99), (4, 50)]
    assert len(models.image_sizes((999, 999), (2, 3, 4, 4), 4)) == 5  # at most four halvings


def test_upsampling_undoes_the_pooling_of_an_odd_size_where_pixels_are_equal():
    x = jnp.arange(6.0).reshape(1, 2, 3, 1).repeat(2, 1).repeat(2, 2)[:, :3, :5]
    assert models.max_pool(x).shape == (1, 2, 3, 1)
    assert_array_equal(models.upsample(models.max_pool(x), 3, 5), x)


def test_a_block_linear_layer_is_a_dense_one_with_a_block_diagonal_matrix():
    layer, x = models.BlockLinear(12, 8, 4, rngs()), jax.random.normal(KEY, (2, 3, 12))
    layer.bias[...] = jnp.arange(8.0)
    dense = x @ block_diag(*layer.kernel[...]) + jnp.arange(8.0)
    assert_allclose(layer(x), dense, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_blocks_of_the_gru_meet_only_in_the_shared_embedding_of_the_state(shared):
    gru = models.BlockGRU((8, 3, 2), 5, 4, 1e-4, rngs())
    gru.norm.eps, gru.norm.scale[...] = 1e12, jnp.full(8, 1e6)  # the norm, which couples all, off
    if not shared:
        gru.embed_h.linear.kernel[...] = jnp.zeros((8, 5))
    h, z, a = (jax.random.normal(KEY, (1, size)) for size in (8, 3, 2))
    jacobian = jax.jit(jax.jacobian(gru))(h, z, a)[0, :, 0].reshape(4, 2, 4, 2)
    reached = np.abs(jacobian).max((1, 3)) > 1e-6
    assert_array_equal(reached, np.ones((4, 4)) if shared else np.eye(4))


def test_every_block_of_the_gru_meets_the_latents_and_the_action():
    gru = models.BlockGRU((8, 3, 2), 5, 4, 1e-4, rngs())
    h, z, a = (jax.random.normal(KEY, (1, size)) for size in (8, 3, 2))
    for jacobian in jax.jit(jax.jacobian(gru, (1, 2)))(h, z, a):
        assert (jacobian != 0).all()


def test_initial_weights_are_normal_cut_at_two_sigmas_with_a_deviation_of_one_over_root_fan_in():
    weights = np.asarray(models.truncated_normal(KEY, (400, 300), 0.5)) * 400**0.5
    assert_allclose([weights.mean(), weights.std()], [0.0, 0.5], atol=0.005)
    assert_allclose(np.abs(weights).max(), 0.5 * 2.0 / 0.87962566, rtol=0.01)


@pytest.mark.parametrize("layer, fan_in", [
    (partial(models.Linear, 256, 100), 256),
    (partial(models.Conv, 8, 100, 5), 200),
    (partial(models.BlockLinear, 512, 512, 8), 512),  # its whole input, not its block's 64
])
def test_each_layer_takes_its_weights_from_its_whole_input_and_starts_without_bias(layer, fan_in):
    layer = layer(rngs())
    assert_allclose(np.std(layer.kernel[...]), fan_in**-0.5, rtol=0.03)
    assert not layer.bias[...].any()


@jax.jit
def first_predictions(s):
    """Reward, value and policy of a whole agent that has learned nothing."""
    env = SimpleNamespace(x_shape=(4,), is_image=False, action_size=3, discrete=True)
    networks, bins = dreamer.Networks(MODEL, env, rngs()), dreamer.value_bins(MODEL.bins)
    heads = (networks.world.reward, networks.critic)
    return *(dreamer.twohot_mean(head(s), bins) for head in heads), networks.actor(s).logits


def test_reward_and_critic_predict_exactly_0_at_first_and_the_actor_is_nearly_uniform():
    reward, value, logits = first_predictions(jax.random.normal(KEY, (5, MODEL.deter + 16)))
    assert_array_equal([reward, value], np.zeros((2, 5)))
    assert_allclose(jax.nn.softmax(logits), 1 / 3, atol=0.02)
    assert logits.any()


def test_a_bounded_normal_keeps_its_mean_and_deviation_in_their_bounds():
    model = SimpleNamespace(min_std=0.1, max_std=1.0, std_bias=2.0)
    policy = models.bounded_normal(*jnp.array([[-99.0, 0.0, 99.0]] * 2), model)
    assert_array_equal(policy.mean, [-1.0, 0.0, 1.0])
    assert_allclose(policy.std, [0.1, 0.1 + 0.9 / (1.0 + np.exp(-2.0)), 1.0], rtol=1e-6)


def test_samples_are_spread_as_the_log_probability_says():
    logits = jnp.log(jnp.array([0.6, 0.3, 0.1]))
    policy = models.Categorical(jnp.tile(logits, (20_000, 1)))
    assert_allclose(policy.sample(KEY).mean(0), jnp.exp(logits), atol=0.02)
    assert_allclose(models.Categorical(logits).log_prob(jnp.eye(3)), logits, rtol=1e-6)
    normal = models.BoundedNormal(jnp.full((20_000, 1), 0.5), jnp.full((20_000, 1), 0.2))
    draws = normal.sample(KEY)
    # the mean of -ln π over samples is the entropy
    assert_allclose(-normal.log_prob(draws).mean(), normal.entropy()[0], atol=0.03)
    assert_allclose([draws.mean(), draws.std()], [0.5, 0.2], atol=0.01)
