"""Each equation of dreamer.py has the property, or the number by hand, that the paper gives it."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import dreamer
from jaxmodels_nnx import Categorical
from utils.core import replay
from utils.core.devices import on_one_device

BINS = jnp.array([-4.0, -1.0, 0.0, 1.0, 4.0])
HALF = np.expm1(np.linspace(0.0, 20.0, 128))
ALL_BINS = jnp.array(np.concatenate([-HALF[:0:-1], HALF]), jnp.float32)  # the 255 of Eq. 10
LEARNING = SimpleNamespace(horizon=10.0, lambda_=0.5, return_low=5.0, return_high=95.0,
                           return_rate=0.25)
KEY = jax.random.key(0)


def probabilities(*shape):
    """Random probabilities over the last axis, none of them zero."""
    return jax.nn.softmax(jax.random.normal(KEY, shape))


def n_step_mixture(r, c, values, lambda_):
    """λ-returns as they are defined: (1 - λ) Σ λⁿ⁻¹ Gⁿ, the last n-step return takes the rest."""
    returns = np.zeros(len(r) - 1)
    for t in range(len(returns)):
        earned, alive = 0.0, 1.0
        for n in range(1, len(r) - t):
            earned, alive = earned + alive * r[t + n], alive * c[t + n]
            share = lambda_ ** (n - 1) * (1.0 if t + n == len(r) - 1 else 1.0 - lambda_)
            returns[t] += share * (earned + alive * values[t + n])
    return returns


def replayed(is_last, is_terminal):
    """Four rows with rewards 0, 1, 2, 3, and the imagined returns 0, 10, 20, 30."""
    rows = SimpleNamespace(r=jnp.array([[0.0, 1.0, 2.0, 3.0]]), is_last=jnp.array([is_last]),
                           is_terminal=jnp.array([is_terminal]))
    return rows, jnp.array([[0.0, 10.0, 20.0, 30.0]])


# ---- Robust predictions (Eq. 8-11) ---------------------------------------------------------------


@pytest.mark.symlog
@pytest.mark.symexp
def test_symexp_undoes_symlog_from_the_smallest_to_the_largest():
    x = jnp.array([0.0, 1e-6, 0.1, 1.0, 50.0, 1e4, 1e8])
    x = jnp.concatenate([-x, x])
    assert_allclose(dreamer.symexp(dreamer.symlog(x)), x, rtol=1e-5)
    assert_allclose(dreamer.symlog(jnp.array([np.e - 1.0, 1.0 - np.e])), [1.0, -1.0], rtol=1e-6)


@pytest.mark.parametrize("function", [
    pytest.param(dreamer.symlog, marks=pytest.mark.symlog),
    pytest.param(dreamer.symexp, marks=pytest.mark.symexp)])
def test_symlog_and_symexp_are_odd_and_leave_small_numbers_alone(function):
    x = jnp.linspace(0.0, 9.0, 50)
    assert_array_equal(function(-x), -function(x))
    assert_allclose(jax.vmap(jax.grad(function))(jnp.array([-1e-6, 1e-6])), 1.0, rtol=1e-5)


@pytest.mark.value_bins
def test_the_bins_are_antisymmetric_to_the_bit_with_zero_in_the_middle():
    bins = np.asarray(dreamer.value_bins(255))
    assert_array_equal(bins, -bins[::-1])
    assert bins[127] == 0.0 and bins.shape == (255,) and (np.diff(bins) > 0).all()
    log = np.sign(bins) * np.log1p(np.abs(bins))
    assert_allclose(log, np.linspace(-20.0, 20.0, 255), rtol=1e-5, atol=1e-6)


@pytest.mark.twohot_mean
@pytest.mark.parametrize("compiler", [lambda function: function, jax.jit])  # jit fuses a · b + c
def test_the_mean_of_zero_logits_is_exactly_zero_and_of_one_sure_bin_that_bin(compiler):
    mean = compiler(dreamer.twohot_mean)
    assert_array_equal(mean(jnp.zeros((255, 255)), ALL_BINS), np.zeros(255))
    sure = 1e9 * jax.nn.one_hot(jnp.arange(255), 255)
    assert_array_equal(mean(sure, ALL_BINS), ALL_BINS)


@pytest.mark.twohot_mean
def test_the_two_hot_mean_is_the_expected_bin():
    p = probabilities(7, 5)
    assert_allclose(dreamer.twohot_mean(jnp.log(p), BINS), p @ BINS, rtol=1e-5, atol=1e-6)


@pytest.mark.twohot_loss
@pytest.mark.parametrize("target, weights", [
    (2.0, [0, 0, 0, 2 / 3, 1 / 3]),  # between 1 and 4, linear in raw space
    (-2.5, [0.5, 0.5, 0, 0, 0]),
    (0.25, [0, 0, 0.75, 0.25, 0]),
    (0.0, [0, 0, 1, 0, 0]),  # a bin itself
    (1.0, [0, 0, 0, 1, 0]),
    (-4.0, [1, 0, 0, 0, 0]),
    (4.0, [0, 0, 0, 0, 1]),
    (-9.0, [1, 0, 0, 0, 0]),  # beyond the ends
    (1e9, [0, 0, 0, 0, 1]),
])
def test_the_two_hot_loss_is_the_cross_entropy_with_the_two_nearest_bins(target, weights):
    logits = jnp.array([0.3, -1.0, 2.0, 0.5, -0.2])
    loss, slope = jax.value_and_grad(dreamer.twohot_loss)(logits, target, BINS)
    assert_allclose(loss, -np.dot(weights, jax.nn.log_softmax(logits)), rtol=1e-6)
    assert_allclose(slope, jax.nn.softmax(logits) - np.array(weights), atol=1e-6)
    assert_allclose(slope.sum(), 0.0, atol=1e-6)


@pytest.mark.twohot_loss
@pytest.mark.twohot_mean
def test_the_two_hot_loss_is_least_where_the_mean_equals_the_target():
    logits = jnp.log(jnp.array([1e-9, 1e-9, 1e-9, 2 / 3, 1 / 3]))
    slope = jax.grad(dreamer.twohot_loss)
    assert_allclose(dreamer.twohot_mean(logits, BINS), 2.0, rtol=1e-6)
    assert_allclose(slope(logits, 2.0, BINS), 0.0, atol=1e-6)
    assert np.abs(slope(logits, 2.1, BINS)).max() > 0.01


@pytest.mark.twohot_loss
def test_every_one_of_the_255_bins_is_found_as_itself():
    logits = jax.random.normal(KEY, (255,))
    losses = dreamer.twohot_loss(jnp.tile(logits, (255, 1)), ALL_BINS, ALL_BINS)
    assert_allclose(losses, -jax.nn.log_softmax(logits), rtol=1e-5)


@pytest.mark.unimix
@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.4, 1.0])
def test_unimix_leaves_every_class_its_share_of_the_uniform(ratio):
    mixed = dreamer.unimix(jnp.array([[1e4, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]), ratio)
    assert_allclose(mixed.sum(-1), 1.0, rtol=1e-6)
    assert_allclose(mixed[0, 1:], ratio / 4, rtol=1e-6)
    assert_allclose(mixed[0, 0], 1.0 - 0.75 * ratio, rtol=1e-6)
    assert_allclose(mixed[1], 0.25, rtol=1e-6)


@pytest.mark.sample_onehot
def test_samples_are_exactly_one_hot_and_as_frequent_as_their_probabilities():
    p = jnp.array([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]])
    draws = dreamer.sample_onehot(KEY, jnp.tile(p, (20_000, 1, 1)))
    assert set(np.unique(draws)) == {0.0, 1.0} and (draws.sum(-1) == 1.0).all()
    assert_allclose(draws.mean(0), p, atol=5 * (0.25 / 20_000) ** 0.5)  # five standard deviations
    joint = np.einsum("ni,nj->ij", *np.asarray(draws.transpose(1, 0, 2))) / 20_000
    assert_allclose(joint, np.outer(*p), atol=5 * (0.25 / 20_000) ** 0.5)  # latents independent


@pytest.mark.sample_onehot
def test_a_class_without_probability_is_never_drawn():
    p = jnp.array([0.0, 1.0, 0.0])
    draws = dreamer.sample_onehot(KEY, jnp.tile(p, (1000, 1)))
    assert_array_equal(draws.mean(0), [0.0, 1.0, 0.0])


@pytest.mark.sample_onehot
def test_the_gradient_passes_a_sample_as_if_it_were_its_probabilities():
    p, w = probabilities(6, 4), jax.random.normal(jax.random.key(1), (6, 4))
    slope = jax.grad(lambda p: jnp.sum(w * dreamer.sample_onehot(KEY, p)))(p)
    assert_array_equal(slope, w)


@pytest.mark.kl
def test_kl_is_zero_between_equals_and_has_the_known_value_and_order():
    p, q = jnp.array([0.5, 0.5]), jnp.array([0.25, 0.75])
    assert_array_equal(dreamer.kl(probabilities(3, 4), probabilities(3, 4)), np.zeros(3))
    assert_allclose(dreamer.kl(p, q), 0.5 * np.log(4 / 3), rtol=1e-6)
    assert_allclose(dreamer.kl(q, p), 0.25 * np.log(0.5) + 0.75 * np.log(1.5), rtol=1e-5)


@pytest.mark.entropy
def test_entropy_of_the_uniform_is_ln_k_and_of_halves_and_quarters_one_and_a_half_bits():
    assert_allclose(dreamer.entropy(jnp.full((2, 7), 1 / 7)), np.log(7), rtol=1e-6)
    assert_allclose(dreamer.entropy(jnp.array([0.5, 0.25, 0.25])), 1.5 * np.log(2), rtol=1e-6)


# ---- World model learning (Eq. 1-3) --------------------------------------------------------------


@pytest.mark.features
def test_features_lay_h_first_and_then_the_latents_one_after_the_other():
    latent = dreamer.Latent(jnp.array([1.0, 2.0]), jnp.array([[3.0, 4.0, 5.0], [6.0, 7.0, 8.0]]))
    assert_array_equal(dreamer.features(latent), np.arange(1.0, 9.0))


@pytest.mark.swap_time_and_batch
def test_time_first_swaps_the_first_two_axes_of_every_array():
    swapped = dreamer.swap_time_and_batch({"a": jnp.zeros((2, 3, 4)), "b": jnp.zeros((2, 5))})
    assert swapped["a"].shape == (3, 2, 4) and swapped["b"].shape == (5, 2)


@pytest.mark.decoder_loss
def test_a_vector_is_compared_in_symlog_space_and_an_image_in_parts_of_255_summed_not_averaged():
    x = jnp.array([[0.0, np.e - 1.0, 1.0 - np.e]])  # symlog: 0, 1, -1
    vector = SimpleNamespace(is_image=False, decode=lambda latent: latent)
    assert_allclose(dreamer.decoder_loss(vector, jnp.array([[2.0, 1.0, 0.0]]), x), [5.0], rtol=1e-6)
    image = SimpleNamespace(is_image=True, decode=lambda latent: latent)
    pixels = jnp.full((1, 2, 2, 1), 51, jnp.uint8)  # 0.2
    assert_allclose(dreamer.decoder_loss(image, jnp.ones((1, 2, 2, 1)), pixels), [2.56], rtol=1e-5)


@pytest.mark.continue_loss
def test_the_continue_loss_is_least_at_one_minus_one_over_the_horizon_and_zero_at_an_end():
    logits, going_on, ended = jnp.log(jnp.array([8.0, 9.0, 10.0])), jnp.zeros(3), jnp.ones(2)
    slope = jax.grad(lambda x: dreamer.continue_loss(x, going_on, 10.0).sum())(logits)
    assert slope[0] < -0.005 and slope[2] > 0.005
    assert_allclose(slope[1], 0.0, atol=1e-6)  # sigmoid(ln 9) = 0.9
    losses = dreamer.continue_loss(jnp.array([-50.0, 0.0]), ended, 10.0)
    assert_allclose(losses, [0.0, np.log(2)], rtol=1e-6, atol=1e-6)


@pytest.mark.prediction_loss
def test_the_prediction_loss_has_a_term_for_x_for_r_and_for_c():
    latent = dreamer.Latent(jnp.zeros((1, 2, 3)), jnp.zeros((1, 2, 2, 2)))
    world = SimpleNamespace(
        is_image=False, model=SimpleNamespace(bins=255), decode=lambda latent: latent.h,
        reward=lambda s: jnp.zeros((1, 2, 255)), continue_=lambda s: jnp.zeros((1, 2, 1)))
    rows = SimpleNamespace(x=jnp.full((1, 2, 3), np.e - 1.0), r=jnp.array([[0.0, -7.0]]),
                           is_terminal=jnp.array([[False, True]]))
    terms = dreamer.prediction_loss(world, latent, rows, LEARNING)
    assert_allclose(terms["decoder"], [[3.0, 3.0]], rtol=1e-6)
    assert_allclose(terms["reward"], np.full((1, 2), np.log(255)), rtol=1e-6)
    assert_allclose(terms["continue"], np.full((1, 2), np.log(2)), rtol=1e-6)
    assert len(terms) == 3


@pytest.mark.parametrize("loss, learns", [
    pytest.param(dreamer.dynamics_loss, "prior", marks=pytest.mark.dynamics_loss),
    pytest.param(dreamer.representation_loss, "posterior", marks=pytest.mark.representation_loss)])
def test_each_kl_loss_teaches_one_side_and_only_above_the_free_bits(loss, learns):
    q, p = jnp.full((2, 2), 0.5), jnp.array([[0.25, 0.75], [0.25, 0.75]])
    nats = np.log(4 / 3)  # half of it from each of the two latents
    assert_allclose(loss(q, p, 0.0), nats, rtol=1e-6)
    assert_allclose(loss(q, p, 0.7 * nats), nats, rtol=1e-6)  # the latents are summed, then cut
    assert_allclose(loss(q, p, 1.0), 1.0)
    for free_bits, taught in ((0.0, {learns}), (1.0, set())):
        slopes = jax.grad(loss, (0, 1))(q, p, free_bits)
        found = zip(("posterior", "prior"), slopes)
        assert {side for side, slope in found if slope.any()} == taught


def observe_nothing_new(world, start, batch, key):
    """Stands in for `observe`: the stored states, and a posterior of equal chances."""
    assert_array_equal(start.h, batch.h[:, 0])
    assert_array_equal(start.z, jax.nn.one_hot(batch.z[:, 0], 2))
    return dreamer.Latent(batch.h[:, 1:], jax.nn.one_hot(batch.z[:, 1:], 2)), jnp.full(
        (2, 3, 2, 2), 0.5)


@pytest.mark.world_losses
def test_the_losses_of_the_world_model_are_means_over_all_rows_but_the_first(monkeypatch):
    monkeypatch.setattr(dreamer, "observe", observe_nothing_new)
    world = SimpleNamespace(
        is_image=False, model=SimpleNamespace(bins=255, classes=2), decode=lambda latent: latent.h,
        prior_probs=lambda h: jnp.tile(jnp.array([0.25, 0.75]), (2, 3, 2, 1)),
        reward=lambda s: jnp.zeros((2, 3, 255)), continue_=lambda s: jnp.zeros((2, 3, 1)))
    x, none = jnp.zeros((2, 4, 1)).at[:, 0].set(np.nan).at[0, 1:].set(np.e - 1.0), jnp.zeros((2, 4))
    batch = dreamer.Transition(
        x=x, r=none.at[:, 0].set(np.nan), is_first=none, is_last=none, is_terminal=none, a=none,
        h=none[..., None], z=jnp.zeros((2, 4, 2), jnp.uint8))
    config = SimpleNamespace(model=world.model, learning=SimpleNamespace(horizon=9.0, free_bits=0))
    losses, latent, metrics = dreamer.world_losses(
        SimpleNamespace(world=world), batch, KEY, config)
    assert_allclose(losses.pop("prediction"), 0.5 + np.log(255) + np.log(2), rtol=1e-6)
    assert_allclose(list(losses.values()), np.log(4 / 3), rtol=1e-5)  # half of it per latent
    assert losses.keys() == {"dynamics", "representation"} and latent.h.shape == (2, 3, 1)
    assert_allclose(metrics["losses/decoder"], 0.5, rtol=1e-6)  # 1 in the first sequence, else 0
    assert_allclose(metrics["latents/posterior_entropy"], 2 * np.log(2), rtol=1e-6)
    assert_allclose(metrics["latents/prior_entropy"], 2 * 0.5623351, rtol=1e-6)


# ---- Critic learning (Eq. 4-5) -------------------------------------------------------------------


class Counter:
    """Networks whose imagined rollouts can be computed by hand."""

    def __init__(self):
        self.world = self

    def actor(self, s):
        """A policy that always chooses the number h."""
        return SimpleNamespace(sample=lambda key: s[:, :1])

    def sequence_step(self, latent, a):
        """h' = h + 10 z_0 + a."""
        return latent.h + 10.0 * latent.z[:, 0, :1] + a

    def prior_probs(self, h):
        """One latent that is sure: class 0 for even h, class 1 for odd h."""
        return jax.nn.one_hot(h.astype(jnp.int32) % 2, 2)


@pytest.mark.imagine_step
def test_an_imagined_step_moves_h_by_state_and_action_and_draws_z_from_the_prior_of_the_new_h():
    latent = dreamer.Latent(jnp.array([[1.0], [6.0]]), jnp.array([[[0.0, 1.0]], [[1.0, 0.0]]]))
    after = dreamer.imagine_step(Counter(), latent, jnp.array([[2.0], [3.0]]), KEY)
    assert_array_equal(after.h, [[3.0], [19.0]])
    assert_array_equal(after.z, [[[0.0, 1.0]], [[0.0, 1.0]]])


@pytest.mark.imagine
def test_an_imagined_rollout_feeds_each_state_and_its_action_to_the_next():
    start = dreamer.Latent(jnp.array([[1.0], [6.0]]), jnp.array([[[0.0, 1.0]], [[1.0, 0.0]]]))
    found = dreamer.imagine(Counter(), start, 2, KEY)
    assert_array_equal(found.a, [[[1.0], [2.0]], [[6.0], [22.0]]])
    assert_array_equal(found.s, [[[1.0, 0.0, 1.0], [2.0, 1.0, 0.0], [14.0, 1.0, 0.0]],
                                 [[6.0, 1.0, 0.0], [22.0, 1.0, 0.0], [54.0, 1.0, 0.0]]])


@pytest.mark.lambda_returns
def test_the_lambda_return_of_two_steps_is_the_one_worked_out_by_hand():
    nan = np.nan  # what was predicted from the first state itself must not count
    r, c, values = jnp.array([[nan, 1.0, 2.0]]), jnp.array([[nan, 0.5, 0.5]]), jnp.array(
        [[nan, 10.0, 20.0]])
    # R_1 = 2 + 0.5 · 20 = 12, R_0 = 1 + 0.5 (0.5 · 10 + 0.5 · 12) = 6.5
    assert_allclose(dreamer.lambda_returns(r, c, values, 0.5), [[6.5, 12.0]], rtol=1e-6)


@pytest.mark.lambda_returns
@pytest.mark.parametrize("lambda_", [0.0, 0.5, 1.0])
def test_the_lambda_return_is_the_mixture_of_all_n_step_returns(lambda_):
    r, values = jax.random.normal(KEY, (2, 3, 7))
    c = jax.random.uniform(jax.random.key(1), (3, 7))
    expected = [n_step_mixture(*row, lambda_) for row in zip(*map(np.asarray, (r, c, values)))]
    assert_allclose(dreamer.lambda_returns(r, c, values, lambda_), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.trajectory_weights
def test_the_weight_of_an_imagined_state_is_the_chance_to_arrive_there_with_its_own_c():
    weights = dreamer.trajectory_weights(jnp.array([[0.5, 0.5, 1.0, 0.0, 1.0]]))
    assert_array_equal(weights, [[0.5, 0.25, 0.25, 0.0, 0.0]])


@pytest.mark.critic_loss
def test_the_critic_loss_adds_the_return_and_the_slow_critic_and_teaches_neither():
    logits = jnp.array([0.3, -1.0, 2.0, 0.5, -0.2])
    slopes = jax.grad(dreamer.critic_loss, (0, 1, 2))(logits, 2.0, -2.5, BINS, 0.5)
    towards = [0.25, 0.25, 0.0, 2 / 3, 1 / 3]  # two-hot of 2, and half of that of -2.5
    assert_allclose(slopes[0], 1.5 * jax.nn.softmax(logits) - np.array(towards), atol=1e-6)
    assert slopes[1] == slopes[2] == 0.0


@pytest.mark.replay_returns
def test_a_replayed_return_goes_on_where_no_row_ends():
    rows, bootstrap = replayed([False] * 4, [False] * 4)
    last = 3.0 + 0.9 * 30.0
    middle = 2.0 + 0.9 * (0.5 * 20.0 + 0.5 * last)
    first = 1.0 + 0.9 * (0.5 * 10.0 + 0.5 * middle)
    returns = dreamer.replay_returns(rows, bootstrap, LEARNING)
    assert_allclose(returns, [[first, middle, last]], rtol=1e-6)


@pytest.mark.replay_returns
@pytest.mark.parametrize("terminal, worth", [(False, 0.9 * 20.0), (True, 0.0)])
def test_a_replayed_return_starts_anew_at_is_last_and_only_a_termination_is_worth_nothing(
        terminal, worth):
    ends = [False, False, True, False]
    rows, bootstrap = replayed(ends, [terminal and end for end in ends])
    middle = 2.0 + worth
    first = 1.0 + 0.9 * (0.5 * 10.0 + 0.5 * middle)
    returns = dreamer.replay_returns(rows, bootstrap, LEARNING)
    assert_allclose(returns[:, :2], [[first, middle]], rtol=1e-6)


# ---- Actor learning (Eq. 6-7) --------------------------------------------------------------------


@pytest.mark.update_return_range
def test_the_return_range_moves_a_share_of_the_way_to_both_percentiles():
    returns = jax.random.permutation(KEY, jnp.arange(101.0))
    moved = dreamer.update_return_range(jnp.array([0.0, 0.0]), returns, LEARNING)
    assert_allclose(moved, [0.25 * 5.0, 0.25 * 95.0], rtol=1e-6)
    moved = dreamer.update_return_range(jnp.array([5.0, 195.0]), returns, LEARNING)
    assert_allclose(moved, [5.0, 170.0], rtol=1e-6)


@pytest.mark.advantages
@pytest.mark.parametrize("high, divisor", [(2.0, 1.0), (3.0, 1.0), (6.0, 4.0)])
def test_advantages_are_divided_by_the_range_but_never_by_less_than_the_limit(high, divisor):
    advantages = dreamer.advantages(
        jnp.array([[8.0, 1.0]]), jnp.array([[4.0, 3.0]]), jnp.array([2.0, high]), 1.0)
    assert_allclose(advantages, [[4.0 / divisor, -2.0 / divisor]])


ETA = SimpleNamespace(eta=0.5, eta_final=0.01, return_limit=2.0)


@pytest.mark.entropy_scale
@pytest.mark.parametrize("spread, done, scale", [
    (2.0, 0.0, 0.5), (9.0, 0.0, 0.5),  # no more than eta, however far returns are apart
    (9.0, 0.5, 0.05), (9.0, 1.0, 0.005),  # falls geometrically to eta_final times eta
    (0.5, 0.0, 0.125), (0.5, 0.5, 0.0125),  # and in proportion where returns differ little
    (0.0, 0.0, 0.005), (0.5, 1.0, 0.005)])  # but no further than the end of the run
def test_the_entropy_scale_falls_over_the_run_and_where_returns_differ_little(spread, done, scale):
    found = dreamer.entropy_scale(jnp.array([7.0, 7.0 + spread]), done, ETA)
    assert_allclose(found, scale, rtol=1e-5)


@pytest.mark.entropy_scale
def test_the_entropy_scale_is_constant_with_the_papers_eta_final():
    paper = SimpleNamespace(eta=3e-4, eta_final=1.0, return_limit=1.0)
    for spread, done in [(0.0, 0.0), (0.0, 1.0), (5.0, 0.5)]:
        assert_allclose(dreamer.entropy_scale(jnp.array([0.0, spread]), done, paper), 3e-4)


@pytest.mark.actor_loss
def test_the_actor_loss_makes_good_actions_likelier_and_bad_ones_rarer():
    logits, a = jnp.array([1.0, 0.0, -1.0]), jnp.array([0.0, 1.0, 0.0])
    slopes = jax.grad(lambda x, adv: dreamer.actor_loss(Categorical(x), a, adv, 0.0), (0, 1))
    for advantage in (2.0, -2.0):
        slope, taught = slopes(logits, advantage)
        assert_allclose(slope, -advantage * (a - jax.nn.softmax(logits)), rtol=1e-5)
        assert taught == 0.0  # the advantage is a number, nothing to be learned


@pytest.mark.actor_loss
def test_the_entropy_bonus_of_the_actor_loss_is_eta_times_the_entropy():
    logits, a = jnp.array([1.0, 0.0, -1.0]), jnp.array([0.0, 1.0, 0.0])
    loss = dreamer.actor_loss(Categorical(logits), a, 0.0, 0.1)
    p = jax.nn.softmax(logits)
    assert_allclose(loss, 0.1 * np.sum(p * np.log(p)), rtol=1e-6)


# ---- One gradient step, training -----------------------------------------------------------------


@pytest.mark.total_loss
def test_the_total_loss_scales_each_loss_by_its_own_beta_and_misses_none(monkeypatch):
    names = ["prediction", "dynamics", "representation", "actor", "critic", "replay_critic"]
    learning = SimpleNamespace(beta_pred=1, beta_dyn=10, beta_rep=100, beta_actor=1000,
                               beta_critic=10_000, beta_replay=100_000)
    program = SimpleNamespace(config=SimpleNamespace(learning=learning))
    losses = {name: float(i) for i, name in enumerate(names, 1)}
    monkeypatch.setattr(dreamer, "agent_losses", lambda *_: (losses, "left"))
    assert dreamer.total_loss(None, program, None, None, None) == (654321.0, "left")
    del losses["actor"]
    with pytest.raises(AssertionError):
        dreamer.total_loss(None, program, None, None, None)


def averages(share, steps, monkeypatch):
    """The averaged weight after each of so many updates; after update t the weight itself is t."""
    monkeypatch.setattr(dreamer, "total_loss", lambda params, *_: (
        -jnp.sum(params["critic"]), dreamer.Aux(None, None, {})))
    program = SimpleNamespace(optimizer=optax.sgd(1.0), config=SimpleNamespace(
        learning=SimpleNamespace(slow_rate=0.1),
        optimizer=SimpleNamespace(mean_dtype="float32", average=share)))
    params = {"critic": jnp.zeros(1)}
    state = dreamer.AgentState(
        params=params, slow_critic=params["critic"], average=params,
        opt_state=program.optimizer.init(params), return_range=None, step=0)
    one_update, found = jax.jit(on_one_device(partial(dreamer.train_step, program))), []
    for _ in range(steps):
        state, *_ = one_update(state, None, None)
        found.append(float(state.average["critic"][0]))
    assert state.params["critic"][0] == steps
    return found


@pytest.mark.train_step
def test_the_averaged_weights_are_those_of_all_updates_of_the_last_one_or_of_a_share(monkeypatch):
    assert_allclose(averages(0.0, 5, monkeypatch), [1, 2, 3, 4, 5])
    assert_allclose(averages(1.0, 5, monkeypatch), [1, 1.5, 2, 2.5, 3])  # the mean of 1 ... t
    late = averages(0.25, 200, monkeypatch)[-1]
    assert_allclose(late, 200 / (1 + 0.25), rtol=1e-2)  # the limit: as far back as it is long


def teach_nothing(program, agent, batch, key):
    """Stands in for `train_step`: one update more, and latents that can be told from the old."""
    fresh = dreamer.Latent(batch.h[:, 1:] + 10.0, jax.nn.one_hot(batch.z[:, 1:] + 1, 4))
    return agent + 1, fresh, {"first": batch.h[0, 0, 0]}


@pytest.mark.update
def test_an_update_gives_the_rows_that_it_was_trained_on_their_fresh_latents(monkeypatch):
    monkeypatch.setattr(dreamer, "train_step", teach_nothing)
    config = SimpleNamespace(replay=SimpleNamespace(batch=1, length=3, recent=0))
    rows = [dreamer.Transition(*[jnp.zeros(1)] * 6, h=jnp.full((1, 1), t),
                               z=jnp.array([[t % 2]], jnp.uint8)) for t in (0.0, 1.0, 2.0, 3.0)]
    stored = replay.create(jax.tree.map(lambda x: x[0], rows[0]), 1, 6)
    for row in rows:
        stored = replay.write(stored, row)
    state = dreamer.RunnerState(jnp.int32(7), stored, "the actor", KEY)
    after, metrics = dreamer.update(SimpleNamespace(config=config), state)
    assert (int(after.agent), after.actor, float(metrics["first"])) == (8, "the actor", 0.0)
    # of its four rows a sequence of length 3 is trained on the last three
    assert_array_equal(after.replay.rows.h[0, :4, 0], [0.0, 11.0, 12.0, 13.0])
    assert_array_equal(after.replay.rows.z[0, :4, 0], [0, 2, 1, 2])
    assert (jax.random.key_data(after.key) != jax.random.key_data(KEY)).any()


@pytest.mark.train_rounds
def test_a_chunk_plays_its_steps_and_then_makes_its_updates_in_every_round(monkeypatch):
    monkeypatch.setattr(dreamer, "rollout", lambda program, state, steps: (
        state._replace(agent=10 * state.agent + steps), state.agent))
    monkeypatch.setattr(dreamer, "update", lambda program, state: (
        state._replace(agent=10 * state.agent + 9), {"agent": state.agent}))
    config = SimpleNamespace(run=SimpleNamespace(train_ratio=32.0, envs=4, devices=1, chunk=240),
                             replay=SimpleNamespace(batch=8, length=16))  # 2 updates in 2 steps
    program = SimpleNamespace(config=config)
    after, stats, metrics = dreamer.train_rounds(
        program, dreamer.RunnerState(jnp.int32(0), (), (), ()), 2)
    assert int(after.agent) == 299_299
    assert_array_equal(stats, [0, 299])
    assert_array_equal(metrics["agent"], [[2, 29], [2992, 29_929]])
