"""The agent computes what the official DreamerV3 computes: values and gradients it recorded.

tests/golden/README.md says where the numbers come from. Each test gives the recorded inputs to the
project's own functions and modules; where a function takes networks and only their outputs were
recorded, stand-ins read these outputs out of the features.
"""

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from numpy.testing import assert_array_equal

import dreamer
import jaxmodels_nnx as models
from dreamer import Latent
from utils.core import fast_forms
from utils.core.config import load
from utils.core.devices import on_one_device
from utils.run.arrays import flatten, unflatten

FOLDER = Path(__file__).parent / "golden"
PAPER = load(FOLDER.parent.parent / "dreamer.yaml", dreamer.Config, ["paper"])
MODEL = replace(PAPER.model, deter=32, latents=4, classes=4, hidden=16, units=16, blocks=4, depth=2)
KEY = jax.random.key(0)
# The gradient by the logits is p - w, w the share of one bin in the target. A rounding of the
# target (1e-7 of it) moves w by more where bins are narrow: the middle ones are 0.17 wide.
ROUNDED_TARGET = 3e-4

# Compiled as a whole: operation by operation, their compilation would take most of the time.
twohot_mean, twohot_loss = jax.jit(dreamer.twohot_mean), jax.jit(dreamer.twohot_loss)
critic_loss = jax.jit(dreamer.critic_loss)

# Where the stand-ins for networks find their outputs in the features s.
CRITIC, SLOW, REWARD = slice(0, 255), slice(255, 510), slice(510, 765)
CONTINUE, POLICY = slice(765, 766), slice(766, None)


@cache
def recorded(name):
    """{name: array} of a file in tests/golden."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


BINS = recorded("1_symlog_twohot")["bins"]


def assert_close(actual, expected, unit=1.0, tolerance=1e-4):
    """|actual - expected| / (1e-3 + |expected|) ≤ tolerance, both counted in this unit."""
    expected = np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    error = np.abs(np.asarray(actual, np.float64) - expected) / (1e-3 * unit + np.abs(expected))
    assert error.max() <= tolerance, f"off by {error.max():.1e}"


# ---- From the official names of weights to ours --------------------------------------------------


def hidden(official, ours):
    """A hidden layer of the RSSM or of the encoder."""
    return {official: f"{ours}/linear", f"{official}norm": f"{ours}/norm"}


def mlp(official, ours, layers):
    """The hidden layers of a head."""
    kinds = ("linear", "norm")
    return {f"{official}/{kind}{i}": f"{ours}/layers/{i}/{kind}"
            for i in range(layers) for kind in kinds}


RSSM = {
    **hidden("dyn/dynin0", "sequence/embed_h"),
    **hidden("dyn/dynin1", "sequence/embed_z"),
    **hidden("dyn/dynin2", "sequence/embed_a"),
    "dyn/dynhid0": "sequence/mix", "dyn/dynhid0norm": "sequence/norm",
    "dyn/dyngru": "sequence/gates",
    **hidden("dyn/prior0", "prior/mlp/layers/0"),
    **hidden("dyn/prior1", "prior/mlp/layers/1"), "dyn/priorlogit": "prior/out",
    **hidden("dyn/obs0", "posterior/mlp/layers/0"), "dyn/obslogit": "posterior/out",
}
IMAGE_DECODER = {
    "dec/sp0": "decoder/from_h", **hidden("dec/sp1", "decoder/from_z/mlp/layers/0"),
    "dec/sp2": "decoder/from_z/out", "dec/spnorm": "decoder/norm",
    # the official numbers count from the image, ours from the seed map
    **{f"dec/conv{2 - i}": f"decoder/convs/{i}" for i in range(3)},
    **{f"dec/conv{2 - i}norm": f"decoder/norms/{i}" for i in range(3)},
    "dec/imgout": "decoder/convs/3",
}
VECTOR_DECODER = {
    **mlp("dec/mlp", "decoder/head/mlp", 3), "dec/vec/vector/pred": "decoder/head/out"}
CRITIC_HEAD = {**mlp("mlp", "mlp", 1), "head/logits": "out"}


def vector_encoder(name):
    """The official encoder of this name, its part for vectors."""
    layers = [hidden(f"{name}/mlp{i}", f"encoder/layers/{i}") for i in range(3)]
    return layers[0] | layers[1] | layers[2]


def image_encoder(name):
    """The official encoder of this name, its part for images."""
    convs = {f"{name}/cnn{i}": f"encoder/convs/{i}" for i in range(4)}
    return convs | {f"{name}/cnn{i}norm": f"encoder/norms/{i}" for i in range(4)}


def renamed(arrays, layers, prefix="param:"):
    """{our name: array} of the recorded weights of these layers {official name: our name}."""
    paths = [name.removeprefix(prefix).rsplit("/", 1) for name in arrays if name.startswith(prefix)]
    return {f"{layers[layer]}/{leaf}": arrays[f"{prefix}{layer}/{leaf}"]
            for layer, leaf in paths if layer in layers}


# What makes the layers of jaxmodels_nnx.py the forms of utils/core/fast_forms.py. bfloat16 keeps 8
# bits of a number, so it has a test with a tolerance of its own.
FORMS = {"plain": lambda world: world, "cpu": fast_forms.fast,
         "gpu": partial(fast_forms.rounded, dtype="float32"),
         "bfloat16": partial(fast_forms.rounded, dtype="bfloat16")}
EXACT = ("plain", "cpu", "gpu")
both_forms = pytest.mark.parametrize("form", EXACT)


def module(make, arrays):
    """What `make` makes, with these weights; all others are NaN and can touch no number here."""
    graph, shapes = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    unknown = jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan, leaf.dtype), shapes)
    return nnx.merge(graph, unflatten(shapes, flatten(unknown) | arrays))


def world_model(model, x_shape, arrays, form):
    """A world model for observations of this shape, with three continuous actions."""
    env = SimpleNamespace(x_shape=x_shape, is_image=len(x_shape) == 3, action_size=3)
    return FORMS[form](module(partial(dreamer.WorldModel, model, env), arrays))


# ---- Single layers -------------------------------------------------------------------------------


@pytest.mark.Linear
@pytest.mark.BlockLinear
@pytest.mark.RMSNorm
@pytest.mark.parametrize("name, make, parameters", [
    ("linear", partial(models.Linear, 12, 8), ["kernel", "bias"]),
    ("blocklinear", partial(models.BlockLinear, 12, 16, 4), ["kernel", "bias"]),
    ("rmsnorm", lambda rngs: models.RMSNorm(12, PAPER.model.norm_eps), ["scale"]),
])
def test_a_layer_is_the_official_layer(name, make, parameters):
    data = recorded("3b_layers")
    layer = module(make, {leaf: data[f"{name}_{leaf}"] for leaf in parameters})
    assert_close(layer(data[f"{name}_in"]), data[f"{name}_out"])


@pytest.mark.Conv
def test_a_convolution_is_the_official_one_to_the_rounding_of_the_official_one():
    data = recorded("3b_layers")
    x, kernel = data["conv_in"].astype(np.float64), data["conv_kernel"].astype(np.float64)
    padded, (height, width) = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0))), x.shape[1:3]
    exact = data["conv_bias"] + sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(5) for j in range(5))
    layer = module(partial(models.Conv, 3, 6, 5),
                   {leaf: data[f"conv_{leaf}"] for leaf in ("kernel", "bias")})
    official = np.abs(data["conv_out"] - exact).max()
    assert official <= 1e-6 * np.abs(exact).max()  # 75 float32 products of up to 22 each
    assert np.abs(layer(data["conv_in"]) - exact).max() <= 2 * official


@pytest.mark.Hidden
def test_a_hidden_layer_ends_in_the_official_silu():
    data, eps = recorded("3b_layers"), PAPER.model.norm_eps
    assert_close(np.array(eps), data["rms_eps"], unit=eps)
    for x, expected in zip(data["silu_in"], data["silu_out"], strict=True):
        undo_norm = np.full(12, np.sqrt(np.mean(x**2) + eps), np.float32)
        layer = module(partial(models.Hidden, 12, 12, eps), {
            "linear/kernel": np.eye(12, dtype=np.float32),
            "linear/bias": np.zeros(12, np.float32), "norm/scale": undo_norm})
        assert_close(layer(x), expected)


# ---- Robust predictions and the heads' losses ----------------------------------------------------


@pytest.mark.symlog
def test_symlog_is_official():
    data = recorded("1_symlog_twohot")
    assert_close(dreamer.symlog(data["symlog_in"]), data["symlog_out"])


@pytest.mark.symexp
def test_symexp_is_official():
    data = recorded("1_symlog_twohot")
    assert_close(dreamer.symexp(data["symexp_in"]), data["symexp_out"])


@pytest.mark.value_bins
def test_the_bins_are_official():
    assert_close(dreamer.value_bins(PAPER.model.bins), BINS)
    for name in ("4_imag_loss_case0", "4_imag_loss_case1"):
        assert_array_equal(recorded(name)["bins"], BINS)


@pytest.mark.twohot_mean
def test_the_twohot_mean_is_official_and_exactly_0_for_equal_logits():
    data = recorded("1_symlog_twohot")
    assert_close(twohot_mean(data["twohot_logits"], BINS), data["twohot_pred"])
    assert_array_equal(twohot_mean(jnp.zeros((4, 255)), BINS), data["zero_logits_pred"])


@pytest.mark.twohot_loss
def test_the_twohot_loss_its_gradient_and_the_two_bins_are_official_for_every_target():
    data = recorded("1_symlog_twohot")
    logits, target = data["twohot_logits"], data["twohot_target"]
    gradient = jax.jit(jax.grad(lambda x: twohot_loss(x, target, BINS).sum()))(logits)
    assert_close(twohot_loss(logits, target, BINS), data["twohot_loss"])
    assert_close(gradient, data["twohot_loss_grad_logits"])
    assert_close(jax.nn.softmax(logits) - gradient, data["twohot_target_probs"])


def terminal_with(target):
    """The is_terminal that gives this target: the official loss takes any, ours only makes two."""
    return 1.0 - target / (1.0 - 1.0 / PAPER.learning.horizon)


@pytest.mark.decoder_loss
def test_the_losses_of_vectors_and_images_are_official():
    data = recorded("1b_other_heads")
    vector = SimpleNamespace(is_image=False, decode=lambda latent: data["symlog_mse_pred"])
    image = SimpleNamespace(is_image=True, decode=lambda latent: data["img_pred"])
    losses = dreamer.decoder_loss(vector, None, data["symlog_mse_target"])
    assert_close(losses, data["symlog_mse_loss"])
    losses = dreamer.decoder_loss(image, None, data["img_target_uint8"])
    assert_close(losses, data["img_loss"])


@pytest.mark.continue_loss
def test_the_continue_loss_is_the_official_cross_entropy_with_a_soft_target():
    data, horizon = recorded("1b_other_heads"), PAPER.learning.horizon
    losses = dreamer.continue_loss(data["con_logit"], terminal_with(data["con_target"]), horizon)
    assert_close(losses, data["con_loss"])


@pytest.mark.prediction_loss
def test_the_three_prediction_terms_are_official_when_heads_and_targets_are():
    twohot, other = recorded("1_symlog_twohot"), recorded("1b_other_heads")
    world = SimpleNamespace(
        model=PAPER.model, is_image=False, decode=lambda latent: other["symlog_mse_pred"],
        reward=lambda s: s[:, :255], continue_=lambda s: s[:, 255:])
    rows = SimpleNamespace(x=other["symlog_mse_target"], r=twohot["twohot_target"][:5],
                           is_last=np.ones(5),  # by a time limit, for all that is asked here
                           is_terminal=terminal_with(other["con_target"][:5]))
    logits, logit = twohot["twohot_logits"][:5], other["con_logit"][:5, None, None]
    terms = dreamer.prediction_loss(world, Latent(logits, logit), rows, PAPER.learning)
    assert_close(terms["decoder"], other["symlog_mse_loss"])
    assert_close(terms["reward"], twohot["twohot_loss"][:5])
    assert_close(terms["continue"], other["con_loss"][:5])


# ---- Latents and the KL losses -------------------------------------------------------------------


def mixed(logits):
    """The probabilities of these logits with the official 1% of the uniform."""
    share = PAPER.model.unimix
    return share / logits.shape[-1] + (1.0 - share) * jax.nn.softmax(logits)


@pytest.mark.unimix
def test_mixed_probabilities_and_their_log_probability_are_official():
    data = recorded("2_onehot_kl")
    probs = dreamer.unimix(data["post_logits"], PAPER.model.unimix)
    assert_close(probs, data["post_probs"])
    assert_close(jnp.log(probs), data["mixed_post_logits"])
    logp = models.Categorical(jnp.log(probs)).log_prob(data["onehot_event"])
    assert_close(logp, data["logp"])
    assert_close(logp.sum(-1), data["logp_sum_over_S"])


@pytest.mark.entropy
def test_the_entropy_is_official():
    data = recorded("2_onehot_kl")
    entropies = dreamer.entropy(mixed(data["post_logits"]))
    assert_close(entropies, data["entropy"])
    assert_close(entropies.sum(-1), data["entropy_sum_over_S"])
    assert_close(entropies.sum(-1).mean(), data["rep_ent_metric"])
    priors = dreamer.entropy(mixed(data["prior_logits"]))
    assert_close(priors.sum(-1).mean(), data["dyn_ent_metric"])


@pytest.mark.kl
def test_the_kl_is_official():
    data = recorded("2_onehot_kl")
    kl = dreamer.kl(mixed(data["post_logits"]), mixed(data["prior_logits"]))
    # terms near 1 cancel to 1e-5 in float32: the recorded numbers are themselves off by 1.3e-4
    assert_close(kl, data["kl_per_variable"], tolerance=2e-4)
    assert_close(kl.sum(-1), data["kl_sum_over_S"])


@pytest.mark.parametrize("name, loss", [
    pytest.param("dyn", dreamer.dynamics_loss, marks=pytest.mark.dynamics_loss),
    pytest.param("rep", dreamer.representation_loss, marks=pytest.mark.representation_loss)])
def test_a_kl_loss_and_its_gradients_are_official_free_bits_included(name, loss):
    data = recorded("2_onehot_kl")
    losses, pullback = jax.vjp(
        lambda post, prior: loss(mixed(post), mixed(prior), PAPER.learning.free_bits),
        data["post_logits"], data["prior_logits"])
    assert_close(losses, data[f"{name}_loss"])
    to_posterior, to_prior = pullback(jnp.ones((3, 5)))
    assert_close(to_posterior, data[f"grad_sum_{name}_wrt_post"])
    assert_close(to_prior, data[f"grad_sum_{name}_wrt_prior"])


@pytest.mark.sample_onehot
def test_the_straight_through_gradient_is_official():
    data = recorded("2_onehot_kl")
    _, pullback = jax.vjp(
        lambda logits: dreamer.sample_onehot(KEY, mixed(logits)), data["post_logits"])
    assert_close(*pullback(data["st_weight"]), data["st_grad_wrt_logits"])


# ---- The recurrent state-space model -------------------------------------------------------------


@pytest.fixture(scope="module", params=EXACT)
def rssm(request):
    """The recorded RSSM in a world model whose encoder is as wide as the recorded tokens."""
    arrays = renamed(recorded("3_rssm_blocks4"), RSSM)
    return world_model(replace(MODEL, units=10), (2,), arrays, request.param)


def step_and_gradients(world, past, weight):
    """h after one step from the past, and the gradients of the sum of weight · h."""
    h, pullback = jax.vjp(world.sequence_step, *past)
    return h, pullback(weight)


@pytest.mark.sequence_step
def test_the_recurrent_step_and_its_gradients_are_official(rssm):
    data = recorded("3_rssm_blocks4")
    past = Latent(data["deter"], data["stoch"]), data["action"]
    step = jax.jit(partial(step_and_gradients, rssm))
    h, (to_latent, to_a) = step(past, data["grad_weight"])
    assert_close(h, data["next_deter"])
    assert_close(to_latent.h, data["grad_deter"])
    assert_close(to_latent.z, data["grad_stoch"])
    assert_close(to_a, data["grad_action"])


@pytest.mark.prior_probs
def test_the_prior_is_official(rssm):
    data = recorded("3_rssm_blocks4")
    logits = jax.jit(rssm.prior)(data["next_deter"])
    assert_close(logits.reshape(5, 4, 4), data["prior_logits"])
    assert_close(jax.jit(rssm.prior_probs)(data["next_deter"]), mixed(data["prior_logits"]))


@pytest.mark.posterior_probs
def test_the_posterior_is_official(rssm):
    data = recorded("3_rssm_blocks4")
    probs = jax.jit(rssm.posterior_probs)(data["obs_next_deter"], data["tokens"])
    assert_close(probs, mixed(data["obs_post_logits"]))


@pytest.mark.observe_step
def test_a_step_on_real_data_is_official_and_forgets_the_past_where_an_episode_begins(rssm):
    data = recorded("3_rssm_blocks4")
    past = Latent(data["deter"], data["stoch"])
    step = jax.jit(partial(dreamer.observe_step, rssm))
    latent, probs = step(past, data["action"], data["tokens"], data["reset"], KEY)
    assert_close(latent.h, data["obs_next_deter"])
    assert_close(probs, mixed(data["obs_post_logits"]))
    logits = jax.jit(rssm.posterior)(jnp.concatenate([latent.h, data["tokens"]], -1))
    assert_close(logits.reshape(5, 4, 4), data["obs_post_logits"])


@pytest.mark.sequence_step
@pytest.mark.observe_step
def test_in_bfloat16_a_step_and_its_gradients_are_official_to_its_rounding():
    data = recorded("3_rssm_blocks4")
    world = world_model(replace(MODEL, units=10), (2,), renamed(data, RSSM), "bfloat16")
    past = Latent(data["deter"], data["stoch"])
    step = jax.jit(partial(step_and_gradients, world))
    h, (to_latent, _) = step((past, data["action"]), data["grad_weight"])
    off(h, data["next_deter"], 0.02)
    off(to_latent.h, data["grad_deter"], 0.02)
    off(to_latent.z, data["grad_stoch"], 0.05)
    observe_step = jax.jit(partial(dreamer.observe_step, world))
    latent, probs = observe_step(past, data["action"], data["tokens"], data["reset"], KEY)
    off(latent.h, data["obs_next_deter"], 0.02)
    off(probs, mixed(data["obs_post_logits"]), 0.03)


def off(actual, expected, tolerance):
    """The error is within this share of the largest number, and there is one: it was rounded."""
    error = np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()
    assert 1e-5 < error <= tolerance and actual.dtype == jnp.float32, f"off by {error:.1e}"


# ---- Encoder and decoder -------------------------------------------------------------------------


@pytest.mark.WorldModel
@pytest.mark.parametrize("name, tokens", [("enc_vec", "tokens_vec"), ("enc_both", "tokens_both")])
@both_forms
def test_the_vector_encoder_is_official(name, tokens, form):
    data = recorded("10_encoder")
    world = world_model(MODEL, (5,), renamed(data, vector_encoder(name)), form)
    # the encoder of both lays the vector's tokens in front of the image's
    assert_close(jax.jit(world.encode)(data["vector"]), data[tokens][..., :16])


@pytest.mark.WorldModel
@pytest.mark.parametrize("name, tokens", [("enc_img", "tokens_img"), ("enc_both", "tokens_both")])
@both_forms
def test_the_image_encoder_is_official(name, tokens, form):
    data = recorded("10_encoder")
    world = world_model(MODEL, (64, 64, 3), renamed(data, image_encoder(name)), form)
    assert_close(jax.jit(world.encode)(data["image"]), data[tokens][..., -128:])


@pytest.mark.WorldModel
@pytest.mark.decoder_loss
@both_forms
def test_the_vector_decoder_is_official_and_so_is_its_loss(form):
    data = recorded("10b_decoder")
    arrays = renamed(data, VECTOR_DECODER)
    first = "decoder/head/mlp/layers/0/linear/kernel"
    arrays[first] = np.roll(arrays[first], 32, 0)  # official input is [z, h], ours [h, z]
    world = world_model(MODEL, (5,), arrays, form)
    latent = Latent(data["deter"], data["stoch"])
    assert_close(jax.jit(world.decode)(latent), data["pred_vector_symlog_space"])
    loss = jax.jit(partial(dreamer.decoder_loss, world))(latent, data["target_vector"])
    assert_close(loss, data["loss_vector"])


@pytest.mark.WorldModel
@pytest.mark.decoder_loss
@both_forms
def test_the_image_decoder_is_official_and_so_is_its_loss(form):
    data = recorded("10b_decoder")
    world = world_model(replace(MODEL, blocks=8), (64, 64, 3), renamed(data, IMAGE_DECODER), form)
    latent = Latent(data["deter"], data["stoch"])
    assert_close(jax.jit(world.decode)(latent), data["pred_image"])
    loss = jax.jit(partial(dreamer.decoder_loss, world))(latent, data["target_image"])
    assert_close(loss, data["loss_image"])


@pytest.mark.WorldModel
@both_forms
def test_a_decoder_of_half_as_many_wider_blocks_lays_their_channels_side_by_side(form):
    data = recorded("10b_decoder")
    arrays, name = renamed(data, IMAGE_DECODER), "decoder/from_h"
    # the recorded blocks have one channel each, which would hide a wrong order of channels
    kernel, bias = arrays[f"{name}/kernel"], arrays[f"{name}/bias"].reshape(4, 2, 16)
    wider = np.zeros((4, 8, 16, 2), np.float32)  # [block, its piece of h, pixel, its channel]
    wider[:, :4, :, 0], wider[:, 4:, :, 1] = kernel[::2], kernel[1::2]
    arrays[f"{name}/kernel"] = wider.reshape(4, 8, 32)
    arrays[f"{name}/bias"] = bias.swapaxes(1, 2).ravel()
    world = world_model(MODEL, (64, 64, 3), arrays, form)
    image = jax.jit(world.decode)(Latent(data["deter"], data["stoch"]))
    assert_close(image, data["pred_image"])


# ---- Policies ------------------------------------------------------------------------------------


def actor(name, discrete, actions):
    """The recorded output layers of an actor, given their input where its MLP would be."""
    layers = {"pol/mean": "out", "pol/stddev": "out_std", "pol/logits": "out"}
    env = SimpleNamespace(discrete=discrete, action_size=actions)
    model = replace(MODEL, units=6)
    made = module(partial(dreamer.Actor, model, env), renamed(recorded(name), layers))
    made.mlp = lambda s: s
    return made


@pytest.mark.Actor
def test_the_continuous_policy_is_official():
    data = recorded("7_bounded_normal")
    policy = actor("7_bounded_normal", False, 3)(data["head_input"])
    assert_close(policy.mean, data["mean"])
    assert_close(policy.mean, data["pred"])
    assert_close(policy.std, data["std"])
    assert_close(policy.log_prob(data["action"]), data["logp_sum"])
    assert_close(policy.entropy(), data["entropy_sum"])


@pytest.mark.bounded_normal
def test_each_entry_of_the_continuous_policy_is_official():
    data = recorded("7_bounded_normal")
    pre = data["mean_pre"][..., None], data["std_pre"][..., None]
    policy = models.bounded_normal(*pre, PAPER.model)
    assert_close(policy.log_prob(data["action"][..., None]), data["logp_per_dim"])
    assert_close(policy.entropy(), data["entropy_per_dim"])
    for name, std in (("minent_per_dim", -np.inf), ("maxent_per_dim", np.inf)):
        extreme = models.bounded_normal(pre[0], np.full((8, 3, 1), std), PAPER.model)
        assert_close(extreme.entropy(), data[name])


@pytest.mark.Actor
def test_the_discrete_policy_is_official_and_mixed_with_no_uniform():
    data = recorded("7b_categorical")
    policy = actor("7b_categorical", True, 5)(data["head_input"])
    assert_close(policy.logits, data["linear_out"])
    assert_close(policy.logits, data["logits"])
    assert_close(policy.log_prob(jax.nn.one_hot(data["action"], 5)), data["logp"])
    assert_close(policy.entropy(), data["entropy"])


# ---- Actor and critic losses on dreams -----------------------------------------------------------


def as_logits(y):
    """Logits whose two-hot mean is y."""
    below = np.clip(np.searchsorted(BINS, y, side="right") - 1, 0, 253)
    share = (y - BINS[below]) / (BINS[below + 1] - BINS[below])
    twohot = (1 - share)[..., None] * np.eye(255)[below] + share[..., None] * np.eye(255)[below + 1]
    return jnp.log(jnp.maximum(twohot, 1e-30))


class Case:
    """A recorded dream, the recorded outputs of every network laid side by side as features."""

    def __init__(self, name):
        self.data = data = recorded(name)
        self.discrete = "policy_logits" in data
        policy = ["policy_logits"] if self.discrete else ["policy_mean_pre", "policy_std_pre"]
        con = np.float64(data["con"])
        parts = [data["value_logits"], data["slowvalue_logits"], as_logits(data["rew"]),
                 np.log(con / (1.0 - con))[..., None], *(data[part] for part in policy)]
        self.s = jnp.concatenate(parts, -1)
        a = jax.nn.one_hot(data["action"], 5) if self.discrete else jnp.array(data["action"])
        self.a = a[:, :-1]
        self.range_before = self.return_range("before")

    def return_range(self, when):
        """The recorded normaliser [2] before or after the update."""
        return jnp.array([self.data[f"retnorm_{end}_{when}"] for end in ("lo", "hi")])

    def policy(self, s):
        """The policy of these features."""
        if self.discrete:
            return models.Categorical(s[..., POLICY])
        return models.bounded_normal(*jnp.split(s[..., POLICY], 2, -1), PAPER.model)

    def losses(self, s):
        """Sum of both losses, and everything that `imagination_losses` returns."""
        world = SimpleNamespace(reward=lambda s: s[..., REWARD],
                                continue_=lambda s: s[..., CONTINUE])
        networks = SimpleNamespace(world=world, critic=lambda s: s[..., CRITIC], actor=self.policy)
        frozen = dreamer.Frozen(networks, lambda s: s[..., SLOW])
        imagined = dreamer.Imagined(s=s, a=self.a)
        found = on_one_device(dreamer.imagination_losses)(
            networks, frozen, imagined, self.range_before, 0.5, PAPER)
        return sum(found[0].values()), found


@pytest.fixture(scope="module", params=["4_imag_loss_case0", "4_imag_loss_case1"],
                ids=["discrete", "continuous"])
def case(request):
    """Each of the two recorded rollouts."""
    return Case(request.param)


@pytest.fixture(scope="module")
def results(case):
    """(losses, returns and range, metrics) and the gradient of the losses by the features."""
    gradient, found = jax.jit(jax.grad(case.losses, has_aux=True))(case.s)
    return found, gradient


@pytest.mark.imagination_losses
def test_returns_and_the_return_range_on_imagined_rollouts_are_official(case, results):
    (_, (returns, return_range), metrics), _ = results
    assert_close(returns, case.data["ret"])
    assert_close(return_range, case.return_range("after"))
    assert_close(metrics["actor/return_low"], case.data["retnorm_lo_after"])
    assert_close(metrics["actor/return_high"], case.data["retnorm_hi_after"])


@pytest.mark.imagination_losses
def test_metrics_of_imagined_rollouts_are_official(case, results):
    (*_, metrics), _ = results
    data = case.data
    assert_close(metrics["imagination/return"], data["metric_tar"])
    assert_close(metrics["imagination/value"], data["metric_val"])
    assert_close(metrics["imagination/reward"], data["rew"][:, 1:].mean())
    assert_close(metrics["imagination/continue"], data["con"][:, 1:].mean())
    assert_close(metrics["actor/advantage_std"], data["metric_adv_std"])
    assert_close(metrics["actor/entropy"], data["entropy"][:, :-1].mean())


@pytest.mark.imagination_losses
def test_both_losses_on_imagined_rollouts_are_official(case, results):
    (losses, *_), _ = results
    assert_close(losses["actor"], case.data["loss_policy"].mean())
    assert_close(losses["critic"], case.data["loss_value"].mean())


@pytest.mark.imagination_losses
def test_the_gradients_of_both_losses_on_imagined_rollouts_are_official(case, results):
    _, gradient = results
    of_mean = 1.0 / case.data["ret"].size  # the recorded losses are means: so small are these
    assert_close(gradient[..., CRITIC], case.data["grad_value_logits"], of_mean, ROUNDED_TARGET)
    names = ["policy_logits"] if case.discrete else ["policy_mean_pre", "policy_std_pre"]
    recorded_parts = [case.data[f"grad_{name}"] for name in names]
    assert_close(gradient[..., POLICY], np.concatenate(recorded_parts, -1), of_mean)


@pytest.mark.twohot_mean
def test_the_values_of_critic_and_slow_critic_on_imagined_rollouts_are_official(case):
    assert_close(twohot_mean(case.data["value_logits"], BINS), case.data["value_pred"])
    assert_close(twohot_mean(case.data["slowvalue_logits"], BINS), case.data["slowvalue_pred"])


@pytest.mark.trajectory_weights
def test_the_weights_of_imagined_states_are_official(case):
    assert_close(dreamer.trajectory_weights(case.data["con"]), case.data["weight"])


@pytest.mark.advantages
def test_the_mean_advantage_on_imagined_rollouts_is_official(case):
    values, limit = case.data["value_pred"][:, :-1], PAPER.learning.return_limit
    found = dreamer.advantages(case.data["ret"], values, case.return_range("after"), limit)
    assert_close(found.mean(), case.data["metric_adv"])


@pytest.mark.critic_loss
def test_the_critic_loss_of_each_imagined_state_is_official(case):
    data = case.data
    losses = critic_loss(data["value_logits"][:, :-1], data["ret"], data["slowvalue_pred"][:, :-1],
                         BINS, PAPER.learning.slow_scale)
    assert_close(data["weight"][:, :-1] * losses, data["loss_value"])


@pytest.mark.actor_loss
def test_the_actor_loss_of_each_imagined_state_is_official(case):
    data, policy = case.data, case.policy(case.s[:, :-1])
    assert_close(policy.log_prob(case.a), data["logp"][:, :-1])
    assert_close(case.policy(case.s).entropy(), data["entropy"])
    low, high = case.return_range("after")
    advantage = (data["ret"] - data["value_pred"][:, :-1]) / max(1.0, high - low)
    losses = dreamer.actor_loss(policy, case.a, advantage, PAPER.learning.eta)
    assert_close(data["weight"][:, :-1] * losses, data["loss_policy"])


@pytest.mark.update_return_range
@pytest.mark.advantages
def test_the_return_range_is_official_over_five_batches():
    data, learning = recorded("5_retnorm"), PAPER.learning
    return_range = jnp.zeros(2)
    for i, batch in enumerate(data["batches"]):
        return_range = dreamer.update_return_range(return_range, batch, learning)
        assert_close(return_range, np.array([data["state_lo"][i], data["state_hi"][i]]))
        assert_close(return_range[0], data["offset"][i])
        divided = dreamer.advantages(jnp.ones(1), 0.0, return_range, learning.return_limit)
        assert_close(1.0 / divided[0], data["scale"][i])
        percentiles = dreamer.update_return_range(
            return_range, batch, replace(learning, return_rate=1.0))
        assert_close(percentiles, np.array([data["batch_p5"][i], data["batch_p95"][i]]))


# ---- The critic on replayed rows -----------------------------------------------------------------


def replayed():
    """The recorded rows."""
    data = recorded("4b_repl_loss")
    return SimpleNamespace(r=data["rew"], is_last=data["is_last"], is_terminal=data["is_terminal"])


def replay_loss(latent):
    """`replay_critic_loss` on features that hold the outputs of critic and slow critic."""
    networks = SimpleNamespace(critic=lambda s: s[..., CRITIC])
    frozen = dreamer.Frozen(networks, lambda s: s[..., SLOW])
    bootstrap = recorded("4b_repl_loss")["boot"]
    return dreamer.replay_critic_loss(networks, frozen, latent, replayed(), bootstrap, PAPER)


@pytest.mark.replay_returns
def test_returns_of_replayed_rows_are_official():
    data, learning = recorded("4b_repl_loss"), PAPER.learning
    returns = jax.jit(lambda: dreamer.replay_returns(replayed(), data["boot"], learning))()
    assert_close(returns, data["ret"])
    assert_close(returns, data["lambda_return_only"])  # made with another critic: it has no say


@pytest.mark.critic_loss
@pytest.mark.twohot_mean
def test_losses_of_replayed_rows_are_official():
    data = recorded("4b_repl_loss")
    slow_values = twohot_mean(data["slowvalue_logits"], BINS)
    losses = critic_loss(data["value_logits"][:, :-1], data["ret"], slow_values[:, :-1], BINS,
                         PAPER.learning.slow_scale)
    assert_close((1.0 - data["is_last"][:, :-1]) * losses, data["loss_repval"])


@pytest.mark.replay_critic_loss
def test_the_replay_critic_loss_and_its_gradient_are_official():
    data = recorded("4b_repl_loss")
    latent = Latent(data["value_logits"], data["slowvalue_logits"][:, :, None])
    loss, gradient = jax.jit(jax.value_and_grad(replay_loss))(latent)
    assert_close(loss, data["loss_repval"].mean())
    of_mean = 1.0 / data["ret"].size
    assert_close(gradient.h, data["grad_value_logits"], of_mean, ROUNDED_TARGET)
    assert_array_equal(gradient.z, np.zeros_like(latent.z))  # the slow critic is not taught


# ---- Optimiser and slow critic -------------------------------------------------------------------


def starting(prefix):
    """{name without prefix: array} of the optimiser's file."""
    return {name.removeprefix(prefix): jnp.array(array)
            for name, array in recorded("6_optimizer").items() if name.startswith(prefix)}


def five_steps(optimizer, held=False):
    """Updates, and weights after them, of each recorded tensor; `held` keeps it as it was."""
    def step(carry, grads):
        params, state = carry
        updates, state = optimizer.update(grads, state, params)
        moved = optax.apply_updates(params, updates)
        return (params if held else moved, state), (updates, moved)

    params = starting("init:")
    return jax.lax.scan(step, (params, optimizer.init(params)), starting("grads:"))[1]


@pytest.mark.laprop
@pytest.mark.parametrize("run, change", [
    ("default", {}), ("nowarmup", {"warmup": 0}), ("biglr", {"lr": 1e-2, "warmup": 3})])
def test_five_steps_of_the_optimiser_are_official(run, change):
    config = replace(PAPER.optimizer, **change)
    updates, params = five_steps(dreamer.laprop(config, 10_000))
    # in the warm-up the second update is already lr / warmup times the momentum, the first is 0
    unit = config.lr / max(1, config.warmup)
    for name in updates:
        assert_array_equal(updates[name][0] == 0.0, starting(f"{run}:updates:")[name][0] == 0.0)
        assert_close(updates[name], starting(f"{run}:updates:")[name], unit)
        assert_close(params[name], starting(f"{run}:params:")[name])


@pytest.mark.laprop
@pytest.mark.parametrize("stage, momentum", [("rms", 0.0), ("mom", PAPER.optimizer.momentum)])
def test_the_optimiser_divides_and_averages_as_the_official_one(stage, momentum):
    config = replace(PAPER.optimizer, lr=1.0, warmup=0, momentum=momentum)
    updates, _ = five_steps(dreamer.laprop(config, 10_000), held=True)
    for name, expected in starting(f"stage_{stage}_fixedparams:").items():
        assert_close(-updates[name], expected)


@pytest.mark.adaptive_gradient_clipping
def test_gradients_are_clipped_as_the_official_optimiser_clips_them():
    config = PAPER.optimizer
    clip = dreamer.adaptive_gradient_clipping(config.agc, config.agc_floor)
    clipped, _ = five_steps(clip, held=True)
    for name, expected in starting("stage_agc_fixedparams:").items():
        assert_close(clipped[name], expected)


@pytest.mark.learning_rate
def test_the_learning_rate_is_official():
    config, data = PAPER.optimizer, recorded("6_optimizer")
    rate = dreamer.learning_rate(config.lr, config.warmup, config.lr_final, 10_000)
    assert_close(rate(data["lr_at_step_index"]), data["lr_at_step"], config.lr)


def critic_weights(prefix):
    """The recorded critic of this prefix, by our names."""
    return renamed(recorded("8_slow_ema"), CRITIC_HEAD, prefix)


def no_loss(*_):
    """In place of `total_loss`: a gradient of zero, and nothing learned."""
    return jnp.zeros(()), dreamer.Aux(None, None, {})


def move_there(grads, target, params):
    """In place of an optimiser: to the weights that stand where its state would be."""
    return jax.tree.map(jnp.subtract, target, params), target


@pytest.mark.train_step
def test_the_slow_critic_follows_the_critic_after_each_update_as_the_official_one(monkeypatch):
    monkeypatch.setattr(dreamer, "total_loss", no_loss)
    program = SimpleNamespace(config=PAPER, optimizer=SimpleNamespace(update=move_there))
    slow = critic_weights("slow_step0:")
    params = {"critic": slow}
    state = dreamer.AgentState(params=params, slow_critic=slow, average=params, opt_state=None,
                               return_range=None, step=0)
    for step in (1, 2, 3):
        target = {"critic": critic_weights(f"source_step{step}:")}
        one_update = on_one_device(dreamer.train_step)
        state, *_ = one_update(program, state._replace(opt_state=target), None, None)
        for name, expected in critic_weights(f"slow_step{step}:").items():
            assert_close(state.slow_critic[name], expected)


@pytest.mark.Critic
def test_a_critic_of_the_slow_weights_answers_as_the_official_one():
    data = recorded("8_slow_ema")
    model = replace(PAPER.model, deter=2, latents=2, classes=2, units=8, critic_layers=1)
    critic = module(partial(dreamer.Critic, model), critic_weights("slow_step3:"))
    assert_close(critic(data["x"]), data["slow_step3_logits"])
