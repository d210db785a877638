"""The schema of dreamer.yaml: the meaning and the valid values of each hyperparameter.

The numbers are in dreamer.yaml alone; a test compares its comments with these meanings.
"""

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from utils.core.config import setting

LAYERS = 100  # most hidden layers of one network: each is built, even to be counted


@dataclass(frozen=True)
class Run:
    """What to run, for how long, and how often to evaluate and save."""

    env: str = setting("Gymnax id, gymnasium:ID, or your own package.module:factory")
    env_params: dict = setting("environment parameters to change from their defaults")
    observation: str = setting("how to read the observation x", choices=("auto", "vector", "image"))
    seed: int = setting("seed of all randomness", low=0, below=2**32)
    steps: int = setting("environment steps of the whole run (rows, reset rows included)", low=1)
    envs: int = setting("E: environments stepped in parallel", low=1)
    devices: int = setting("maximum number of devices to share environments and batches", low=1)
    prefill: int = setting("environment steps before the first update", low=1)
    train_ratio: float = setting("replayed rows trained on per environment step", low=1e-4,
                                 high=1e6)
    chunk: int = setting("maximum environment steps per compiled call and line of metrics", low=1)
    eval_every: int = setting("environment steps between evaluations", low=1)
    eval_episodes: int = setting("fresh episodes per evaluation, in parallel", low=1)
    eval_limit: int = setting("steps after which an evaluation episode is cut off", low=1)
    save_every: int = setting("environment steps between checkpoints", low=1)
    save_replay: bool = setting("save the replay in checkpoints: large, but resumes exactly")
    compile_cache: bool = setting("cache compiled programs on disk for the next start")


@dataclass(frozen=True)
class Model:
    """Sizes of the networks."""

    deter: int = setting("D: width of the recurrent state h", low=1)
    hidden: int = setting("width of the layers in the RSSM", low=1)
    latents: int = setting("S: number of categorical latents", low=1)
    classes: int = setting("K: classes of each latent", low=1, high=256)
    blocks: int = setting("G: blocks of the recurrent matrices", low=1)
    units: int = setting("width of the other MLPs", low=1)
    depth: int = setting("channels of a convolution per unit of its multiplier", low=1)
    multipliers: tuple[int, ...] = setting("multiplier of each convolution, one per halving")
    kernel: int = setting("side of the convolution kernels, pixels", low=1)
    seed_pixels: int = setting("smallest side that an image is halved to, pixels", low=1)
    encoder_layers: int = setting("hidden layers of the vector encoder", low=1, high=LAYERS)
    decoder_layers: int = setting("hidden layers of the vector decoder", low=1, high=LAYERS)
    prior_layers: int = setting("hidden layers of the prior", low=1, high=LAYERS)
    posterior_layers: int = setting("hidden layers of the posterior", low=1, high=LAYERS)
    reward_layers: int = setting("hidden layers of the reward head", low=1, high=LAYERS)
    continue_layers: int = setting("hidden layers of the continue head", low=1, high=LAYERS)
    actor_layers: int = setting("hidden layers of the actor", low=1, high=LAYERS)
    critic_layers: int = setting("hidden layers of the critic", low=1, high=LAYERS)
    bins: int = setting("V: bins of the two-hot heads, odd", low=3)
    unimix: float = setting("share of the uniform distribution in prior and posterior",
                            low=0, high=1)
    norm_eps: float = setting("ε inside the root of the RMS norm", above=0)
    actor_scale: float = setting("scale of the actor's initial output weights", low=0)
    min_std: float = setting("smallest standard deviation of continuous actions", above=0)
    max_std: float = setting("largest standard deviation of continuous actions", above=0)
    std_bias: float = setting("added to the actor's output before the sigmoid of the deviation")
    compute_dtype: str = setting("type of the activations on a GPU",
                                 choices=("float32", "bfloat16"))

    @property
    def z_size(self):
        """S·K, the width of the flattened z."""
        return self.latents * self.classes

    @property
    def s_size(self):
        """F = D + S·K, the width of the features."""
        return self.deter + self.z_size


@dataclass(frozen=True)
class Replay:
    """What is stored and sampled."""

    capacity: int = setting("rows stored, over all environments", low=1)
    batch: int = setting("B: sequences per update", low=1)
    length: int = setting("T: trained rows per sequence", low=1)
    recent: float = setting("share of sequences drawn in proportion to 1/age", low=0, high=1)


@dataclass(frozen=True)
class Learning:
    """Scales and constants of the losses."""

    beta_pred: float = setting("β_pred: scale of the prediction loss", low=0)
    beta_dyn: float = setting("β_dyn: scale of the dynamics loss", low=0)
    beta_rep: float = setting("β_rep: scale of the representation loss", low=0)
    beta_actor: float = setting("scale of the actor loss", low=0)
    beta_critic: float = setting("β_val: scale of the critic loss on imagined rollouts", low=0)
    beta_replay: float = setting("β_repval: scale of the critic loss on replayed rows", low=0)
    free_bits: float = setting("KL below which the KL losses have no gradient, nats", low=0)
    imagination: int = setting("H: imagined steps of a rollout", low=1)
    horizon: float = setting("1/(1-γ): steps until the discount has decayed to 1/e", above=1)
    lambda_: float = setting("λ of the λ-return", low=0, high=1)
    eta: float = setting("η: scale of the actor's entropy bonus", low=0)
    eta_final: float = setting("smallest η, as a share of eta: that of the end of the run",
                               low=0, high=1)
    slow_rate: float = setting("share of the slow critic replaced per update", low=0, high=1)
    slow_scale: float = setting("scale of the slow critic's regulariser", low=0)
    return_rate: float = setting("share of the return range replaced per update", low=0, high=1)
    return_limit: float = setting("L: smallest divisor of the advantages", above=0)
    return_low: float = setting("lower percentile of the return range", low=0, high=100)
    return_high: float = setting("upper percentile of the return range", low=0, high=100)

    @property
    def trains_policy(self):
        """Whether actor or critic has a loss; --world-model-only has none."""
        return bool(self.beta_actor or self.beta_critic or self.beta_replay)


@dataclass(frozen=True)
class Optimizer:
    """AGC and LaProp."""

    lr: float = setting("peak learning rate", above=0)
    warmup: int = setting("updates over which the learning rate rises to lr", low=0)
    lr_final: float = setting("learning rate at the end of the run, as a share of lr",
                              low=0, high=1)
    agc: float = setting("largest gradient norm, as a share of the weight norm", above=0)
    agc_floor: float = setting("smallest weight norm that AGC assumes", above=0)
    rms_decay: float = setting("decay of the mean square of the gradient", low=0, below=1)
    momentum: float = setting("decay of the momentum", low=0, below=1)
    eps: float = setting("ε added to the root mean square", above=0)
    average: float = setting("share of updates whose weights are averaged to evaluate",
                             low=0, high=1)
    mean_dtype: str = setting("type in which devices exchange gradients",
                              choices=("float32", "bfloat16"))


@dataclass(frozen=True)
class Log:
    """Where metrics go besides metrics.jsonl."""

    tensorboard: bool = setting("also write event files (needs tensorboardX)")
    wandb: str = setting("project at Weights & Biases, empty for none (needs wandb)")


@dataclass(frozen=True)
class Config:
    """Every number that the program uses, one field per section of the YAML file."""

    run: Run
    model: Model
    replay: Replay
    learning: Learning
    optimizer: Optimizer
    log: Log

    PROGRAM = "dreamer.py"
    MAY_CHANGE = ("run.steps", "run.save_*", "run.compile_cache", "log.*")  # in a resumed run

    def __post_init__(self):
        """Checks that involve two numbers; the bounds of single fields are checked in config.py."""
        run, model, replay = self.run, self.model, self.replay
        rows = replay.length + 1
        least = replay.batch * replay.length / (run.envs * max(1, run.chunk // run.envs))
        checks = (
            (model.deter % model.blocks == 0,
             f"model.deter: expected a multiple of model.blocks = {model.blocks}, "
             f"found {model.deter}"),
            (model.bins % 2 == 1, f"model.bins: expected an odd number, found {model.bins}"),
            (model.min_std <= model.max_std,
             f"model.max_std: expected at least model.min_std = {model.min_std}, "
             f"found {model.max_std}"),
            (replay.capacity // run.envs >= rows,
             f"replay.capacity: expected at least run.envs × (replay.length + 1) = "
             f"{run.envs * rows} rows, found {replay.capacity}"),
            (run.prefill // run.envs >= rows,
             f"run.prefill: expected at least run.envs × (replay.length + 1) = "
             f"{run.envs * rows} steps, found {run.prefill}"),
            (replay.capacity >= replay.batch * replay.length,
             f"replay.capacity: expected at least one batch = "
             f"{replay.batch * replay.length} rows, found {replay.capacity}"),
            (run.train_ratio >= least * (1 - 1e-5),  # the message rounds it
             f"run.train_ratio: expected at least one update per run.chunk = {run.chunk} steps, "
             f"which is {least:g}, found {run.train_ratio:g}"),
            (run.steps > run.prefill,
             f"run.steps: expected more than run.prefill = {run.prefill}, found {run.steps}"),
            (self.learning.return_low < self.learning.return_high,
             f"learning.return_high: expected more than learning.return_low = "
             f"{self.learning.return_low}, found {self.learning.return_high}"),
        )
        for holds, message in checks:
            if not holds:
                raise ValueError(message)


def updates_per_steps(config):
    """(U, k): the smallest whole numbers with U updates per k steps of all environments

    Train ratio = replayed rows per environment step = U · B · T / (k · E), or the nearest to it
    with a round of at most run.chunk steps. (1, 1) becomes (2, 2): XLA would unroll two loops of
    one step each, and then copy columns of the replay."""
    run = config.run
    ratio = Fraction(run.train_ratio) * run.envs / (config.replay.batch * config.replay.length)
    ratio = ratio.limit_denominator(max(1, run.chunk // run.envs))
    times = 2 if ratio == 1 else 1
    return ratio.numerator * times, ratio.denominator * times


def trained_ratio(config):
    """The train ratio of `updates_per_steps`."""
    updates, steps = updates_per_steps(config)
    return updates * config.replay.batch * config.replay.length / (steps * config.run.envs)


def reseeded(config, seed):
    """The same configuration with another seed."""
    return replace(config, run=replace(config.run, seed=seed))


def rounds_per_chunk(config):
    """Rounds of (U, k) per chunk: all chunks have the same size, so only one is compiled."""
    run, (_, k) = config.run, updates_per_steps(config)
    rounds = math.ceil((run.steps - run.prefill) / (k * run.envs))
    chunks = math.ceil(rounds / max(1, run.chunk // (k * run.envs)))
    return math.ceil(rounds / chunks)
