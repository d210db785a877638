"""The schema of dreamer4.yaml: the meaning and the valid values of each hyperparameter.

The numbers are in dreamer4.yaml alone; a test compares its comments with these meanings.
"""

from dataclasses import dataclass

from utils.core.config import setting, show
from utils.core.settings import Log

SCALES = (1, 2, 4)  # of the perceptual loss: images are made smaller by these factors
PHASES = ("tokenizer", "dynamics", "agent", "policy")
# Phase -> the networks that it trains: no other weight changes.
TRAINED = {"tokenizer": ("tokenizer",), "dynamics": ("dynamics",),
           "agent": ("dynamics", "policy", "reward"), "policy": ("policy", "value")}
KINDS = {"space", "time"}


def layer_kinds(text):
    """"space time" or "9 x space space time" as the list of all layers' kinds."""
    count, times, kinds = text.rpartition(" x ")
    return kinds.split() * (int(count) if times and count.strip().isdecimal() else 1)



@dataclass(frozen=True)
class Run:
    """What to run, for how long, and how often to evaluate and save."""

    seed: int = setting("seed of all randomness", low=0, below=2**32)
    tokenizer: int = setting("updates of phase 1", low=1)
    dynamics: int = setting("updates of phase 2", low=1)
    agent: int = setting("updates of phase 3", low=1)
    policy: int = setting("updates of phase 4", low=1)
    chunk: int = setting("maximum updates per compiled call and line of metrics", low=1)
    evaluations: int = setting("evaluations of each phase, the last one at its end", low=1)
    save_every: int = setting("updates between checkpoints", low=1)
    compile_cache: bool = setting("cache compiled programs on disk for the next start")


@dataclass(frozen=True)
class World:
    """The bouncing square, and the policy whose play is the data."""

    size: int = setting("side of the image, pixels", low=2, high=1024)
    step: int = setting("pixels that an action moves the square", low=1)
    smallest: int = setting("smallest side of a square, pixels", low=1)
    largest: int = setting("largest side of a square, pixels", low=1)
    colour_low: int = setting("darkest red, green or blue of a square", low=0, high=255)
    colour_high: int = setting("brightest red, green or blue of a square", low=0, high=255)
    background_low: int = setting("darkest red, green or blue behind it", low=0, high=255)
    background_high: int = setting("brightest red, green or blue behind it", low=0, high=255)
    hold_low: int = setting("fewest steps in one direction", low=1)
    hold_high: int = setting("most steps in one direction", low=1)
    tasks: int = setting("points to go to: the centre, then corners", low=1, high=5)
    sequences: int = setting("recorded sequences", low=1)
    length: int = setting("frames of a recorded sequence", low=2)
    unlabelled: float = setting("share of the sequences without actions", low=0, below=1)


@dataclass(frozen=True)
class Evaluation:
    """What the figures of each phase are measured on."""

    sequences: int = setting("fresh sequences", low=1)
    context: int = setting("real frames before a dream", low=1)
    frames: int = setting("dreamed frames", low=1)
    episodes: int = setting("fresh episodes in the world", low=1)
    steps: int = setting("actions of an episode", low=1)


@dataclass(frozen=True)
class Tokenizer:
    """Phase 1: images to a few numbers, and back."""

    patch: int = setting("side of a patch, pixels", low=1)
    latents: int = setting("latent tokens of an image", low=1)
    channels: int = setting("numbers of a latent token", low=1)
    width: int = setting("D: width of a token", low=1)
    heads: int = setting("query heads of the attention", low=1)
    kv_heads: int = setting("key and value heads, each for a group of queries", low=1)
    hidden: int = setting("width inside of a SwiGLU", low=1)
    encoder: str = setting("kinds of the encoder's layers")
    decoder: str = setting("kinds of the decoder's layers")
    window: int = setting("steps that a time layer sees, this one included", low=2)
    rope: float = setting("base of the angles of RoPE", above=1)
    cap: float = setting("soft cap of the attention's logits", above=0)
    norm_eps: float = setting("ε inside the root of the RMS norm", above=0)
    batch: int = setting("B: sequences per update", low=1)
    length: int = setting("T: frames per sequence", low=1)
    mask_low: float = setting("share of masked patches at least, below 0 for more without", high=1)
    mask_high: float = setting("share of masked patches at most", low=0, high=1)
    bottleneck: float = setting("scale of the initial weights in front of the tanh", low=0)
    noise: float = setting("noise on the latents while they are learned", low=0)
    perceptual: float = setting("scale of the perceptual loss", low=0)
    adam: float = setting("peak learning rate of Adam", above=0)
    muon: float = setting("peak learning rate of Muon, 0 for Adam alone", low=0)

@dataclass(frozen=True)
class Dynamics:
    """Phase 2: the latents of the next frame, by shortcut forcing."""

    spatial: int = setting("S_z: tokens that carry the latents of a frame", low=1)
    registers: int = setting("S_r: register tokens of a frame", low=0)
    width: int = setting("D: width of a token", low=1)
    heads: int = setting("query heads of the attention", low=1)
    kv_heads: int = setting("key and value heads, each for a group of queries", low=1)
    hidden: int = setting("width inside of a SwiGLU", low=1)
    layers: str = setting("kinds of the layers, space or time")
    window: int = setting("steps that a time layer sees, this one included", low=2)
    rope: float = setting("base of the angles of RoPE", above=1)
    cap: float = setting("soft cap of the attention's logits", above=0)
    norm_eps: float = setting("ε inside the root of the RMS norm", above=0)
    outscale: float = setting("scale of the initial weights that give the next latents", low=0)
    kmax: int = setting("K_max: most steps to sample a frame, a power of 2", low=2)
    context_noise: int = setting("noise of past frames, in steps of 1/K_max", low=1)
    power: float = setting("τ is u^power, u uniform", above=0)
    alternate: float = setting("share of rows in which every other frame is context", low=0, high=1)
    bootstrap: float = setting("share of rows with steps larger than 1/K_max", low=0, high=1)
    images: float = setting("share of rows whose frames are single images", low=0, high=1)
    scaled: bool = setting("divide the latents by their standard deviation")
    batch: int = setting("B: sequences per update", low=1)
    length: int = setting("T: frames per sequence", low=1)
    long_every: int = setting("every n-th batch is long, 0 for none", low=0)
    long_length: int = setting("frames per sequence of a long batch", low=1)
    long_final: float = setting("share of the updates at the end that are all long", low=0, high=1)
    adam: float = setting("peak learning rate of Adam", above=0)
    muon: float = setting("peak learning rate of Muon, 0 for Adam alone", low=0)


@dataclass(frozen=True)
class Agent:
    """Phase 3: behaviour cloning and the reward model."""

    ahead: int = setting("L: actions and rewards that each frame predicts", low=1)
    units: int = setting("width of the heads", low=1)
    bins: int = setting("V: bins of the two-hot heads, odd", low=3)
    power: float = setting("τ is u^power, u uniform", above=0)
    alternate: float = setting("share of rows in which every other frame is context", low=0, high=1)
    bootstrap_scale: float = setting("scale of the bootstrap loss", low=0)
    batch: int = setting("B: sequences per update", low=1)
    length: int = setting("T: frames per sequence", low=1)
    adam: float = setting("peak learning rate of Adam", above=0)
    muon: float = setting("peak learning rate of Muon, 0 for Adam alone", low=0)


@dataclass(frozen=True)
class Imagination:
    """Phase 4: reinforcement learning in dreams."""

    dreams: int = setting("N: dreams per update", low=1)
    context: int = setting("real frames before a dream", low=1)
    horizon: int = setting("H: dreamed frames", low=1)
    k: int = setting("K: steps to sample a frame, a power of 2", low=1)
    temperature: float = setting("scale of the noise that a dreamed frame begins with", low=0)
    gamma: float = setting("γ: discount per step", low=0, high=1)
    lambda_: float = setting("λ of the λ-return", low=0, high=1)
    alpha: float = setting("α: share of the good actions in PMPO, the rest for the bad ones",
                           low=0, high=1)
    beta: float = setting("β: scale of the KL divergence from the prior", low=0)
    value_warmup: int = setting("updates of the value alone at the start", low=0)
    adam: float = setting("peak learning rate of Adam", above=0)


@dataclass(frozen=True)
class Optimizer:
    """Normalised losses, Adam and Muon, and their schedule."""

    rms_rate: float = setting("share of a loss's running mean square replaced per update",
                              above=0, high=1)
    warmup: int = setting("updates over which the learning rate rises", low=0)
    constant: float = setting("share of the updates after which it falls", low=0, high=1)
    final: float = setting("learning rate at the end, as a share of the peak", low=0, high=1)
    clip: float = setting("largest norm of the gradient for Adam", above=0)
    b1: float = setting("decay of Adam's mean of the gradient", low=0, below=1)
    b2: float = setting("decay of Adam's mean square of the gradient", low=0, below=1)
    eps: float = setting("ε added to Adam's root mean square", above=0)
    momentum: float = setting("decay of Muon's momentum", low=0, below=1)
    newton_schulz: int = setting("iterations that make Muon's step orthogonal", low=1)


@dataclass(frozen=True)
class Config:
    """Every number that the program uses, one field per section of the YAML file."""

    run: Run
    world: World
    evaluation: Evaluation
    tokenizer: Tokenizer
    dynamics: Dynamics
    agent: Agent
    imagination: Imagination
    optimizer: Optimizer
    log: Log

    PROGRAM = "dreamer4.py"
    MAY_CHANGE = ("run.save_*", "run.compile_cache", "log.*")  # in a resumed run

    def __post_init__(self):
        """Checks that involve two numbers; the bounds of single fields are checked in config.py."""
        for checks in (_world(self.world), _transformer("tokenizer", self.tokenizer),
                       _transformer("dynamics", self.dynamics), _sizes(self), _lengths(self)):
            for holds, message in checks:
                if not holds:
                    raise ValueError(message)


def _world(world):
    """(whether it holds, what to say if not) of the section `world`"""
    for name in ("colour", "background", "hold"):
        low, high = getattr(world, f"{name}_low"), getattr(world, f"{name}_high")
        yield low <= high, (f"world.{name}_high: expected at least world.{name}_low = {low}, "
                            f"found {high}")
    yield world.smallest <= world.largest, (
        f"world.largest: expected at least world.smallest = {world.smallest}, "
        f"found {world.largest}")
    room = world.size - world.step
    yield world.largest <= room, (
        f"world.largest: expected at most world.size - world.step = {room}, found {world.largest}")


def _transformer(name, shape):
    """The same for a section that describes a transformer"""
    yield shape.width % (2 * shape.heads) == 0, (
        f"{name}.width: expected a multiple of 2 × {name}.heads = {2 * shape.heads}, "
        f"found {shape.width}")
    yield shape.heads % shape.kv_heads == 0, (
        f"{name}.heads: expected a multiple of {name}.kv_heads = {shape.kv_heads}, "
        f"found {shape.heads}")
    for key in ("encoder", "decoder", "layers"):
        text = getattr(shape, key, "space")
        yield layer_kinds(text) and set(layer_kinds(text)) <= KINDS, (
            f"{name}.{key}: expected words, each space or time, or like 9 x space time, "
            f"found {show(text)}")


def _sizes(config):
    """The same for numbers of several sections"""
    tokenizer, dynamics, size = config.tokenizer, config.dynamics, config.world.size
    numbers = tokenizer.latents * tokenizer.channels
    sides = {"tokenizer.patch": tokenizer.patch}
    if tokenizer.perceptual:
        sides["the perceptual loss's scale"] = max(SCALES)
    for name, side in sides.items():
        yield size % side == 0, f"world.size: expected a multiple of {name} = {side}, found {size}"
    yield numbers % dynamics.spatial == 0, (
        f"dynamics.spatial: expected a divisor of tokenizer.latents × tokenizer.channels = "
        f"{numbers}, found {dynamics.spatial}")
    yield tokenizer.mask_low <= tokenizer.mask_high, (
        f"tokenizer.mask_high: expected at least tokenizer.mask_low = {tokenizer.mask_low:g}, "
        f"found {tokenizer.mask_high:g}")
    yield dynamics.kmax.bit_count() == 1, (
        f"dynamics.kmax: expected a power of 2, found {dynamics.kmax}")
    yield dynamics.context_noise < dynamics.kmax, (
        f"dynamics.context_noise: expected less than dynamics.kmax = {dynamics.kmax}, "
        f"found {dynamics.context_noise}")
    k = config.imagination.k
    yield k.bit_count() == 1 and k <= dynamics.kmax, (
        f"imagination.k: expected a power of 2 up to dynamics.kmax = {dynamics.kmax}, found {k}")
    yield config.agent.bins % 2 == 1, (
        f"agent.bins: expected an odd number, found {config.agent.bins}")


def _lengths(config):
    """The same for what is cut out of recorded sequences"""
    agent, evaluation, dynamics = config.agent, config.evaluation, config.dynamics
    long = dynamics.long_length if dynamics.long_every or dynamics.long_final else 1
    frames = {
        "tokenizer.length": config.tokenizer.length, "dynamics.length": dynamics.length,
        "dynamics.long_length": long, "imagination.context": config.imagination.context,
        "agent.length + agent.ahead - 1": agent.length + agent.ahead - 1,
        "evaluation.context + evaluation.frames": evaluation.context + evaluation.frames}
    for name, length in frames.items():
        yield length <= config.world.length, (
            f"world.length: expected at least {name} = {length}, found {config.world.length}")
