"""Each draw has randomness of its own: another step, environment or key draws other numbers.

Networks and environments here do nothing but draw, so that two draws with one key are equal.
"""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dreamer
from gymnax_wrappers import Step
from utils.core import replay
from utils.core.devices import on_one_device

KEYS = jax.random.split(jax.random.key(1), 2)
N, T, CLASSES = 5, 4, 4096  # so many classes that two draws are rarely of the same
START = dreamer.Latent(jnp.zeros((N, 1)), jnp.zeros((N, 1, CLASSES)))
NO_ACTION, NO = jnp.zeros((N, 1)), jnp.zeros(N, bool)
ROWS = dreamer.Transition(
    x=jnp.zeros((N, T + 1, 1)), r=jnp.zeros((N, T + 1)),
    **dict.fromkeys(["is_first", "is_last", "is_terminal"], jnp.zeros((N, T + 1), bool)),
    a=jnp.zeros((N, T + 1, 1)), h=jnp.zeros((N, T + 1, 1)), z=jnp.zeros((N, T + 1, 1), jnp.uint8))


class Dice:
    """Networks without preference, and an environment whose observation is a draw."""

    def __init__(self):
        self.world, self.is_image = self, False
        self.model = SimpleNamespace(bins=15, classes=CLASSES)

    def actor(self, s):
        """A policy whose action is drawn as the number of a latent's class is."""
        return SimpleNamespace(
            sample=lambda key: jnp.floor(jax.random.uniform(key, (len(s), 1)) * CLASSES))

    def encode(self, x):
        """The observation itself."""
        return x

    def decode(self, latent):
        """Nothing."""
        return jnp.zeros_like(latent.h)

    def reward(self, s):
        """Equal chances."""
        return jnp.zeros((*s.shape[:-1], self.model.bins))

    def continue_(self, s):
        """Equal chances."""
        return jnp.zeros((*s.shape[:-1], 1))

    def sequence_step(self, latent, a):
        """The state stays as it is."""
        return latent.h

    def posterior_probs(self, h, tokens):
        """One latent, all classes equally likely."""
        return jnp.full((*h.shape[:-1], 1, CLASSES), 1.0 / CLASSES)

    def prior_probs(self, h):
        """The same as the posterior."""
        return self.posterior_probs(h, None)

    def step(self, key, place, action):
        """A row with a draw as its observation."""
        no = jnp.zeros((), bool)
        return place, Step(jax.random.uniform(key, (1,)), jnp.float32(0.0), no, no, no)


def repeated(*draws):
    """The share of draws that are equal to another one: half of them where the key is constant.

    Chance repeats a few of them, whatever the way of drawing."""
    numbers = np.concatenate([np.ravel(draw) for draw in draws])
    return 1.0 - len(np.unique(numbers)) / len(numbers)


def classes(z):
    """The numbers of the classes that were drawn."""
    return z.argmax(-1)


# ---- Week 1 --------------------------------------------------------------------------------------


@pytest.mark.sample_onehot
def test_samples_are_drawn_again_with_another_key():
    probs = jnp.full((N, CLASSES), 1.0 / CLASSES)
    assert repeated(*(classes(dreamer.sample_onehot(key, probs)) for key in KEYS)) < 0.3


# ---- Week 2 --------------------------------------------------------------------------------------


@pytest.mark.observe_step
def test_an_observed_step_draws_each_latent_and_draws_again_with_another_key():
    z = [dreamer.observe_step(Dice(), START, NO_ACTION, NO_ACTION, NO, key)[0].z for key in KEYS]
    assert repeated(*map(classes, z)) < 0.3


@pytest.mark.imagine_step
def test_an_imagined_step_draws_each_latent_and_draws_again_with_another_key():
    z = [dreamer.imagine_step(Dice(), START, NO_ACTION, key).z for key in KEYS]
    assert repeated(*map(classes, z)) < 0.3


@pytest.mark.observe
def test_each_observed_state_has_a_draw_of_its_own_and_another_one_with_another_key():
    z = [dreamer.observe(Dice(), START, ROWS, key)[0].z for key in KEYS]
    assert repeated(*map(classes, z)) < 0.3


@pytest.mark.world_losses
def test_the_losses_of_the_world_model_draw_other_states_with_another_key():
    config = SimpleNamespace(
        model=Dice().model, learning=SimpleNamespace(horizon=9.0, free_bits=0.0))
    latents = jax.jit(lambda key: dreamer.world_losses(Dice(), ROWS, key, config)[1])
    assert repeated(*(classes(latents(key).z) for key in KEYS)) < 0.3


# ---- Week 3 --------------------------------------------------------------------------------------


@pytest.mark.imagine
def test_each_imagined_action_and_latent_has_a_draw_of_its_own_and_another_one_with_another_key():
    found = [dreamer.imagine(Dice(), START, T, key) for key in KEYS]
    z = [classes(rollout.s[:, 1:, 1:]) for rollout in found]
    assert repeated(*z, *(rollout.a for rollout in found)) < 0.3


# ---- Week 5 --------------------------------------------------------------------------------------


@pytest.mark.agent_losses
def test_replayed_and_imagined_states_are_drawn_with_two_keys_and_anew_for_each_batch(monkeypatch):
    latent, drawn = dreamer.Latent(jnp.zeros((N, T, 1)), jnp.zeros((N, T, 1, 1))), []
    monkeypatch.setattr(dreamer, "assemble", lambda program, params: None)
    monkeypatch.setattr(dreamer, "freeze", lambda program, params, slow_critic: SimpleNamespace(
        networks=None, slow_critic=None))
    monkeypatch.setattr(dreamer, "world_losses", lambda networks, batch, key, config: (
        drawn.append(jax.random.uniform(key)) or ({}, latent, {})))
    monkeypatch.setattr(dreamer, "imagine", lambda networks, start, steps, key: drawn.append(
        jax.random.uniform(key)))
    monkeypatch.setattr(dreamer, "imagination_losses", lambda *_: (
        {}, (jnp.zeros((N * T, 3)), None), {}))
    monkeypatch.setattr(dreamer, "replay_critic_loss", lambda *_: 0.0)
    config = SimpleNamespace(learning=SimpleNamespace(imagination=3))
    state = SimpleNamespace(slow_critic=None, return_range=None, step=0)
    for key in KEYS:
        dreamer.agent_losses(
            SimpleNamespace(config=config, updates=1), None, state, ROWS, key)
    assert len(drawn) == 4 and repeated(drawn) == 0.0


@pytest.mark.total_loss
def test_the_total_loss_hands_its_key_to_the_losses(monkeypatch):
    names = ["prediction", "dynamics", "representation", "actor", "critic", "replay_critic"]
    monkeypatch.setattr(dreamer, "agent_losses", lambda program, params, state, batch, key: (
        dict.fromkeys(names, 0.0), jax.random.uniform(key)))
    learning = SimpleNamespace(beta_pred=1, beta_dyn=1, beta_rep=1, beta_actor=1, beta_critic=1,
                               beta_replay=1)
    program = SimpleNamespace(config=SimpleNamespace(learning=learning))
    drawn = [dreamer.total_loss(None, program, None, None, key)[1] for key in KEYS]
    assert repeated(*drawn) == 0.0


@pytest.mark.train_step
def test_a_gradient_step_hands_its_key_to_the_losses(monkeypatch):
    monkeypatch.setattr(dreamer, "total_loss", lambda params, program, state, batch, key: (
        params["critic"], dreamer.Aux(jnp.zeros(2), START, {"draw": jax.random.uniform(key)})))
    program = SimpleNamespace(
        optimizer=optax.sgd(0.1),
        config=SimpleNamespace(learning=SimpleNamespace(slow_rate=0.1),
                               optimizer=SimpleNamespace(mean_dtype="float32", average=0)))
    params = {"critic": jnp.zeros(())}
    state = dreamer.AgentState(
        params=params, slow_critic=params["critic"], average=params,
        opt_state=program.optimizer.init(params), return_range=jnp.zeros(2), step=0)
    step = jax.jit(on_one_device(partial(dreamer.train_step, program)))
    assert repeated([step(state, None, key)[2]["draw"] for key in KEYS]) == 0.0


@pytest.mark.act
def test_each_latent_and_action_of_acting_has_a_draw_of_its_own_and_another_one_with_another_key():
    step = Step(jnp.zeros((N, 1)), jnp.zeros(N), NO, NO, NO)
    found = [dreamer.act(Dice(), step, START, NO_ACTION, key) for key in KEYS]
    assert repeated(*((classes(latent.z), a) for latent, a in found)) < 0.3


@pytest.mark.play
def test_each_environment_steps_with_a_key_of_its_own_and_another_key_plays_differently(
        monkeypatch):
    monkeypatch.setattr(dreamer, "act", lambda networks, timestep, latent, a, key: (
        latent, jax.random.uniform(key, a.shape)))
    step = Step(jnp.zeros((N, 1)), jnp.zeros(N), NO, NO, NO)
    actor = dreamer.ActorState(NO, step, START, NO_ACTION, jnp.zeros(N), jnp.zeros(N, jnp.int32))
    found = [dreamer.play(SimpleNamespace(env=Dice()), None, actor, key)[0] for key in KEYS]
    assert repeated(*((after.a, after.timestep.x) for after in found)) == 0.0


def play_a_draw(program, networks, actor, key):
    """Instead of dreamer.play: all that is reported is one number, drawn with the key."""
    return actor, jnp.zeros(N), jax.random.uniform(key)


@pytest.mark.rollout
def test_each_step_of_playing_has_a_key_of_its_own_and_the_next_rollout_has_others(monkeypatch):
    monkeypatch.setattr(dreamer, "assemble", lambda program, params: None)
    monkeypatch.setattr(dreamer, "play", play_a_draw)
    state = dreamer.RunnerState(SimpleNamespace(params=None), replay.create(jnp.zeros(()), N, 9),
                                jnp.zeros(()), KEYS[0])
    state, first = dreamer.rollout(None, state, 3)
    _, second = dreamer.rollout(None, state, 3)
    assert repeated(first, second) == 0.0


@pytest.mark.update
def test_each_update_draws_a_batch_of_its_own_and_learns_with_a_key_of_its_own(monkeypatch):
    monkeypatch.setattr(dreamer, "train_step", lambda program, agent, batch, key: (
        agent, dreamer.Latent(batch.h[:, 1:], batch.z[:, 1:, :, None]),
        {"rows": batch.x[:, 0], "draw": jax.random.uniform(key)}))
    column = jnp.arange(4096.0)[None]
    flags = dict.fromkeys(["is_first", "is_last", "is_terminal"], column > 0.0)
    rows = dreamer.Transition(x=column, r=column, **flags, a=column, h=column,
                              z=jnp.zeros((1, 4096, 1), jnp.uint8))
    config = SimpleNamespace(replay=SimpleNamespace(batch=N, length=1, recent=0))
    update = jax.jit(partial(dreamer.update, SimpleNamespace(config=config)))
    state, first = update(dreamer.RunnerState(
        None, replay.Replay(rows, jnp.int32(4096)), None, KEYS[0]))
    _, second = update(state)
    assert repeated(first["rows"], second["rows"]) < 0.3
    assert repeated(first["draw"], second["draw"]) == 0.0


def start_drawn(program, envs, key):
    """Instead of dreamer.start_episodes: the lengths are numbers drawn with the key."""
    return dreamer.ActorState(jnp.int32(0), None, None, None, jnp.zeros(envs),
                              jax.random.uniform(key, (envs,)))


def play_and_end_one(program, networks, actor, key):
    """Instead of dreamer.play: at step t environment t ends, with a return drawn with the key."""
    stats = dreamer.EpisodeStats(
        is_last=jnp.arange(N) == actor.env, length=actor.length,
        episode_return=jnp.full(N, jax.random.uniform(key)))
    return actor._replace(env=actor.env + 1), None, stats


@pytest.mark.evaluate
def test_each_step_of_an_evaluation_has_a_key_of_its_own_and_another_evaluation_has_others(
        monkeypatch):
    monkeypatch.setattr(dreamer, "assemble", lambda program, params: None)
    monkeypatch.setattr(dreamer, "start_episodes", start_drawn)
    monkeypatch.setattr(dreamer, "play", play_and_end_one)
    config = SimpleNamespace(run=SimpleNamespace(eval_episodes=N, eval_limit=2 * N))
    program = dreamer.Program(config, None, None, None, None, updates=1)
    found = [dreamer.evaluate(program, None, key) for key in KEYS]
    assert repeated(*(number for pair in found for number in pair)) == 0.0
