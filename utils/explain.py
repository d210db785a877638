"""Prints one update: every quantity in the order of computation, losses, gradients.

    python -m utils.explain --env CartPole-v1

It uses a tiny batch of real experience and an agent after a few updates, whose heads no longer
output zeros. Everything is computed by dreamer.py: the quantities by its functions, called in its
order, the losses and their gradients by `agent_losses`, the update by `train_step`.
"""

import dataclasses
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple
from unicodedata import combining

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import dreamer
import gymnax_wrappers
from utils.core import cli, replay
from utils.core.devices import on_one_device

ENVS, ROWS = 4, 48  # environments, and rows played in each
BATCH, LENGTH = 3, 5  # B and T
BEFORE = 20  # updates before the printed one
# These small programs run once, so compilation dominates their time.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

# {section: {name: (symbol, meaning, letters of the axes)}}, in the order of the computation
QUANTITIES = {
    "The batch, sampled from the replay": {
        "x": ("x_t", "observation", "B T+1 X"),
        "a": ("a_t", "action chosen after x_t", "B T+1 A"),
        "r": ("r_t", "reward of a_{t-1}", "B T+1"),
        "is_first": ("is_first", "an episode begins here", "B T+1"),
        "is_last": ("is_last", "an episode ends here", "B T+1"),
        "is_terminal": ("is_terminal", "the world ended here", "B T+1"),
        "start": ("h_0", "stored state before the sequence", "B D"),
    },
    "World model learning (Eq. 1-3)": {
        "tokens": ("enc(x_t)", "tokens of the encoder", "B T ·"),
        "h": ("h_t", "recurrent state", "B T D"),
        "posterior": ("q(z_t|h_t,x_t)", "posterior, unimix included", "B T S K"),
        "z": ("z_t ~ q", "sampled classes, one-hot", "B T S K"),
        "prior": ("p(ẑ_t|h_t)", "prior, unimix included", "B T S K"),
        "posterior_entropy": ("H[q]", "entropy of the posterior, nats", "B T"),
        "prior_entropy": ("H[p]", "entropy of the prior, nats", "B T"),
        "kl": ("KL(q‖p)", "error of the prior", "B T"),
        "s": ("s_t", "features [h_t, z_t]", "B T F"),
        "x_hat": ("x̂_t", "observation, predicted", "B T X"),
        "r_hat": ("r̂_t", "reward, predicted", "B T"),
        "c_hat": ("ĉ_t", "continue, predicted", "B T"),
        "decoder": ("-ln p(x_t|s_t)", "decoder loss", "B T"),
        "reward": ("-ln p(r_t|s_t)", "reward loss", "B T"),
        "continue": ("-ln p(c_t|s_t)", "continue loss", "B T"),
        "dynamics": ("L_dyn", "KL loss of the prior", "B T"),
        "representation": ("L_rep", "KL loss of the posterior", "B T"),
    },
    "Critic learning: rollouts imagined from every state (Eq. 4-5)": {
        "imagined_s": ("s_t", "imagined features", "N H+1 F"),
        "imagined_a": ("a_t ~ π", "imagined actions", "N H A"),
        "imagined_r": ("r_t", "imagined rewards", "N H+1"),
        "imagined_c": ("c_t", "continue probability, discounted", "N H+1"),
        "values": ("v(s_t)", "values of the critic", "N H+1"),
        "slow_values": ("v'(s_t)", "values of the slow critic", "N H"),
        "returns": ("R^λ_t", "λ-returns", "N H"),
        "weights": ("Π c_i", "trajectory weights", "N H"),
        "critic": ("-ln p(R_t|s_t)", "targets: return and slow critic", "N H"),
        "critic_loss": ("Π c_i · above", "its mean is the critic loss", "N H"),
    },
    "Actor learning (Eq. 6-7)": {
        "return_range": ("Per(R,·)", "running percentiles of the returns", "2"),
        "scale": ("max(L, S)", "divisor of the advantages", ""),
        "advantage": ("(R-v)/max(L,S)", "advantages", "N H"),
        "log_prob": ("ln π(a_t|s_t)", "log-probability of the action", "N H"),
        "policy_entropy": ("H[π(·|s_t)]", "entropy of the policy, nats", "N H"),
        "eta": ("η", "scale of the entropy bonus", ""),
        "actor": ("Eq. 6", "actor loss of each step", "N H"),
        "actor_loss": ("Π c_i · above", "its mean is the actor loss", "N H"),
    },
    "The critic on replayed rows": {
        "bootstrap": ("R^λ_0", "imagined return of each row", "B T"),
        "replay_returns": ("R^λ_t", "λ-returns of real rewards", "B T-1"),
        "replay_slow_values": ("v'(s_t)", "slow critic's values of the rows", "B T-1"),
        "replay_critic": ("-ln p(R_t|s_t)", "0 where an episode ends", "B T-1"),
    },
}
SCALES = {"prediction": "beta_pred", "dynamics": "beta_dyn", "representation": "beta_rep",
          "actor": "beta_actor", "critic": "beta_critic", "replay_critic": "beta_replay"}
PARTS = ("decoder", "reward", "continue")  # of the prediction loss
WORLD = {"encoder": "encoder", "sequence": "sequence", "posterior": "posterior", "prior": "prior",
         "decoder": "decoder", "reward": "reward", "continue": "continue_"}
MODULES = (*WORLD, "actor", "critic")


class Explained(NamedTuple):
    """One update: intermediate values, losses, their gradients, and the changes of the weights."""

    values: dict  # {name of QUANTITIES: array}
    losses: dict  # {loss: value}, unscaled, including the terms of the prediction loss
    total: Any  # of `total_loss`
    gradient_norms: dict  # {loss: {module: norm of its gradient}}
    changes: dict  # {module: (norm of the weights, norm of their change)}
    metrics: dict  # of `train_step`


class Inspected(NamedTuple):
    """The results of one compiled function, before the update."""

    values: dict
    losses: dict
    total: jax.Array
    gradient_norms: dict


def main(argv=None):
    """The command -> exit status: 0, or 2 for a user error"""
    try:
        config = _config(argv)
        env = gymnax_wrappers.configured(config.run)
        if env.on_host:
            raise ValueError(f"run.env: {env.name} is stepped by the host; choose one of "
                             "--list-envs: an update is the same in every environment")
        print(report(explain(config, env), config, env))
    except (ValueError, OSError, jax.errors.JaxRuntimeError) as error:
        return cli.complain(error, "utils.explain")
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _config(argv):
    parser = cli.Parser("python -m utils.explain", description=__doc__.splitlines()[0],
                        allow_abbrev=False)
    cli.add_config_flags(parser)
    return tiny(cli.resolve(parser.parse_args(argv)))


def tiny(config):
    """Reduce a Config to few environments, rows and sequences, with the same agent and losses.

    B = 3, T = 5 and N = 15 differ, so that shapes are easy to tell apart."""
    rows = ENVS * ROWS
    run = dataclasses.replace(
        config.run, envs=ENVS, prefill=rows, steps=max(config.run.steps, rows + 1))
    sizes = dataclasses.replace(config.replay, capacity=rows, batch=BATCH, length=LENGTH)
    return dataclasses.replace(config, run=run, replay=sizes)


def explain(config, env):
    """Play, make some updates, and record one more: -> Explained"""
    program, _ = dreamer.build(config, env)
    key = jax.random.key(config.run.seed)
    shapes = dreamer.init.eval_shape(program, key)
    state, batch = jax.eval_shape(partial(_play, program), shapes, key)
    with ThreadPoolExecutor() as pool:  # parallel compilation
        compiled = pool.map(partial(_compiled, program), (
            (_train_step, state, batch, key), (_inspect, state, batch, key),
            (_play, shapes, key)))
        runner = dreamer.init(program, key)
        step, inspect, play = compiled
    state, batch = play(runner, key)
    for update in range(BEFORE):
        state, _, _ = step(state, batch, jax.random.fold_in(key, update))
    last = jax.random.fold_in(key, BEFORE)
    inspected, (after, _, metrics) = inspect(state, batch, last), step(state, batch, last)
    change = jax.tree.map(jnp.subtract, after.params, state.params)
    changes = {name: (optax.tree.norm(weights), optax.tree.norm(part)) for (name, weights), part in
             zip(modules(state.params).items(), modules(change).values())}
    return Explained(*jax.device_get((*inspected, changes, metrics)))


def _train_step(program, state, batch, key):
    return on_one_device(dreamer.train_step)(program, state, batch, key)


def _compiled(program, call):
    function, *arguments = call
    lowered = jax.jit(partial(function, program)).lower(*arguments)
    return lowered.compile(QUICKLY)


def _play(program, state, key):
    """Play and sample a batch: -> AgentState, Transition [B, T + 1, ...]"""
    state, _ = dreamer.rollout(program, state, ROWS)
    recent = program.config.replay.recent
    batch, _ = replay.sample(state.replay, key, BATCH, LENGTH + 1, recent)
    return state.agent, batch


def modules(params):
    """{module: its part of the weights or gradients}, each part once."""
    world = {name: params["world"][key] for name, key in WORLD.items()}
    return world | {"actor": params["actor"], "critic": params["critic"]}


def _inspect(program, state, batch, key):
    """Values, losses and gradients of an update with these arguments: -> Inspected"""
    losses, pull = jax.vjp(lambda params: _losses(program, params, state, batch, key), state.params)
    names = list(losses)
    each = jax.lax.map(partial(_norms, names, pull), jnp.eye(len(names)))
    gradient_norms = {name: jax.tree.map(lambda norms, i=i: norms[i], each)
                      for i, name in enumerate(names)}
    total, _ = on_one_device(lambda params: dreamer.total_loss(
        params, program, state, batch, key))(state.params)
    return Inspected(_values(program, state, batch, key), losses, total, gradient_norms)


def _losses(program, params, state, batch, key):
    losses, aux = on_one_device(partial(dreamer.agent_losses, program))(params, state, batch, key)
    return losses | {name: aux.metrics[f"losses/{name}"] for name in PARTS}


def _norms(names, pull, chosen):
    """{module: norm of the gradient} of the losses, weighted by `chosen` [losses]."""
    (gradient,) = pull(dict(zip(names, chosen)))
    return {name: optax.tree.norm(part) for name, part in modules(gradient).items()}


def _values(program, state, batch, key):
    """{name of QUANTITIES: array}, by the functions of dreamer.py in its order."""
    config, (observe_key, imagine_key) = program.config, jax.random.split(key)
    networks = dreamer.assemble(program, state.params)
    slow_critic = nnx.merge(program.critic, state.slow_critic)
    values, latent = _world_values(networks.world, batch, observe_key, config)
    start = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), latent)
    imagined = dreamer.imagine(networks, start, config.learning.imagination, imagine_key)
    done = state.step / program.updates
    values |= _imagination_values(networks, slow_critic, imagined, state.return_range, done, config)
    values |= {name: values["weights"] * values[name.removesuffix("_loss")]
               for name in ("critic_loss", "actor_loss")}
    rows = jax.tree.map(lambda x: x[:, 1:], batch)
    return values | _replay_values(networks, slow_critic, latent, rows, values["returns"], config)


def _world_values(world, batch, key, config):
    """Values of the world model: -> values, posterior states [B, T, ...]"""
    learning, bins = config.learning, dreamer.value_bins(config.model.bins)
    start = dreamer.Latent(batch.h[:, 0], jax.nn.one_hot(batch.z[:, 0], config.model.classes))
    latent, posterior = dreamer.observe(world, start, batch, key)
    prior, s = world.prior_probs(latent.h), dreamer.features(latent)
    rows = jax.tree.map(lambda x: x[:, 1:], batch)
    values = {name: getattr(batch, name) for name in ("x", "a", "r", "is_first", "is_last",
                                                      "is_terminal")}
    return values | dreamer.prediction_loss(world, latent, rows, learning) | {
        "start": start.h, "tokens": world.encode(rows.x), "h": latent.h, "z": latent.z,
        "posterior": posterior, "prior": prior, "s": s, "x_hat": world.decode(latent),
        "posterior_entropy": dreamer.entropy(posterior).sum(-1),
        "prior_entropy": dreamer.entropy(prior).sum(-1),
        "kl": dreamer.kl(posterior, prior).sum(-1),
        "r_hat": dreamer.twohot_mean(world.reward(s), bins),
        "c_hat": jax.nn.sigmoid(world.continue_(s)[..., 0]),
        "dynamics": dreamer.dynamics_loss(posterior, prior, learning.free_bits),
        "representation": dreamer.representation_loss(posterior, prior, learning.free_bits),
    }, latent


def _imagination_values(networks, slow_critic, imagined, return_range, done, config):
    """Values of actor and critic on imagined rollouts."""
    learning, bins = config.learning, dreamer.value_bins(config.model.bins)
    s, before_last = imagined.s, imagined.s[:, :-1]
    r = dreamer.twohot_mean(networks.world.reward(s), bins)
    c = jax.nn.sigmoid(networks.world.continue_(s)[..., 0])
    values = dreamer.twohot_mean(networks.critic(s), bins)
    slow_values = dreamer.twohot_mean(slow_critic(before_last), bins)
    returns = dreamer.lambda_returns(r, c, values, learning.lambda_)
    return_range = dreamer.update_return_range(return_range, returns, learning)
    limit, policy = learning.return_limit, networks.actor(before_last)
    eta = dreamer.entropy_scale(return_range, done, learning)
    advantage = dreamer.advantages(returns, values[:, :-1], return_range, limit)
    return {
        "imagined_s": s, "imagined_a": imagined.a, "imagined_r": r, "imagined_c": c,
        "values": values, "slow_values": slow_values, "returns": returns,
        "return_range": return_range,
        "weights": dreamer.trajectory_weights(c)[:, :-1],
        "critic": dreamer.critic_loss(
            networks.critic(before_last), returns, slow_values, bins, learning.slow_scale),
        "scale": jnp.maximum(limit, return_range[1] - return_range[0]), "advantage": advantage,
        "log_prob": policy.log_prob(imagined.a), "policy_entropy": policy.entropy(), "eta": eta,
        "actor": dreamer.actor_loss(policy, imagined.a, advantage, eta),
    }


def _replay_values(networks, slow_critic, latent, rows, imagined_returns, config):
    """Values of the critic on replayed rows; `imagined_returns` [N, H] start from these rows."""
    learning, bins = config.learning, dreamer.value_bins(config.model.bins)
    bootstrap = imagined_returns[:, 0].reshape(rows.r.shape)
    s = dreamer.features(latent)[:, :-1]
    returns = dreamer.replay_returns(rows, bootstrap, learning)
    slow_values = dreamer.twohot_mean(slow_critic(s), bins)
    loss = dreamer.critic_loss(networks.critic(s), returns, slow_values, bins, learning.slow_scale)
    return {"bootstrap": bootstrap, "replay_returns": returns, "replay_slow_values": slow_values,
            "replay_critic": jnp.where(rows.is_last[:, :-1], 0.0, loss)}


# ---- As text -------------------------------------------------------------------------------------


def report(explained, config, env):
    """The text of an Explained: five tables."""
    head = (f"{env.describe()}\nUpdate {BEFORE + 1} of an agent on one tiny batch: "
            f"B {BATCH} sequences, T {LENGTH} steps, N {BATCH * LENGTH} rollouts of "
            f"H {config.learning.imagination} steps.")
    return "\n\n".join([head, *_quantities(explained.values), _loss_table(explained, config),
                        _gradient_table(explained.gradient_norms), _change_table(explained)])


def _quantities(values):
    for section, rows in QUANTITIES.items():
        lines = [f"{section}\n{'':15}{'':35}{'shape':23}{'min':>10}{'mean':>10}{'max':>10}"]
        for name, (symbol, meaning, letters) in rows.items():
            value = np.asarray(values[name], float)
            numbers = "".join(f"{part:>10.3g}"
                              for part in (value.min(), value.mean(), value.max()))
            symbol += " " * (15 - sum(not combining(letter) for letter in symbol))
            lines.append(f"{symbol}{meaning:35}{_shape(letters, value.shape):23}{numbers}")
        yield "\n".join(lines)


def _shape(letters, shape):
    """[B 3, T 5]; all axes of an observation follow its X."""
    letters = letters.split()
    letters += [""] * (len(shape) - len(letters))
    return "[" + ", ".join(f"{letter} {size}".strip() if not letter.isdigit() else letter
                           for letter, size in zip(letters, shape)) + "]"


def _loss_table(explained, config):
    lines = [f"Losses (Eq. 2)\n{'':18}{'value':>10}{'× scale':>10}{'= term':>12}"]
    for name, key in SCALES.items():
        value, scale = explained.losses[name], getattr(config.learning, key)
        lines.append(f"{_words(name):18}{_number(value):>10}{scale:>10g}"
                     f"{_number(value * scale):>12}   learning.{key}")
    return "\n".join([*lines, f"{'total':18}{'':20}{_number(explained.total):>12}"])


def _gradient_table(gradient_norms):
    widths = {module: max(10, len(module) + 1) for module in MODULES}
    lines = ["Norm of the gradient of each loss with respect to each module, unscaled",
             " " * 15 + "".join(f"{module:>{width}}" for module, width in widths.items())]
    first, *others = SCALES
    for name in (first, *PARTS, *others):
        cells = (f"{_number(gradient_norms[name][module]):>{width}}"
                 for module, width in widths.items())
        lines.append(f"{_words(name):15}" + "".join(cells))
    return "\n".join(lines)


def _change_table(explained):
    norm = _number(explained.metrics["optimizer/grad_norm"])
    lines = [f"The update: gradient norm {norm} before clipping",
             f"{'':15}{'weights':>10}{'change':>10}{'share':>10}"]
    for name in MODULES:
        weights, change = explained.changes[name]
        lines.append(f"{name:15}{_number(weights):>10}{_number(change):>10}"
                     f"{_number(change / weights):>10}")
    return "\n".join(lines)


def _words(name):
    return name.replace("_", " ")


def _number(value):
    """Three digits; a dash for exactly 0."""
    return "-" if value == 0.0 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
