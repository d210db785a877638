"""The environments of Gymnax that an agent can learn, and reference returns to compare with."""

from typing import NamedTuple


class Reference(NamedTuple):
    """A reference return of an environment (None if none is published) and its source.

    `steps` are the environment steps it took, None if irrelevant or unknown."""

    score: float | None
    source: str
    steps: int | None = None


PPO, LONG = "gymnax's table (PPO, 10M steps)", 10_000_000
TUNED = "gymnax's table (PPO or ES)"
EVOLVED = "gymnax's table (ES)"
BEST = "the best possible"

# In the order of Gymnax's registry. Sources: Gym's registry, the table of trained agents in gymnax,
# and the rewards of the environments themselves.
REFERENCES = {
    "CartPole-v1": Reference(500.0, f"{BEST}; Gym: 475"),
    "Pendulum-v1": Reference(-138.6, f"{BEST} on average; {TUNED}: -130"),
    "Acrobot-v1": Reference(-80.0, f"{TUNED}; Gym: -100"),
    "MountainCar-v0": Reference(-110.0, "Gym's threshold"),
    "MountainCarContinuous-v0": Reference(92.0, f"{TUNED}; Gym: 90"),
    "Asterix-MinAtar": Reference(15.0, PPO, LONG),
    "Breakout-MinAtar": Reference(28.0, PPO, LONG),
    "Freeway-MinAtar": Reference(58.0, PPO, LONG),
    "Seaquest-MinAtar": Reference(None, "none published"),
    "SpaceInvaders-MinAtar": Reference(131.0, PPO, LONG),
    "Catch-bsuite": Reference(1.0, BEST),
    "DeepSea-bsuite": Reference(0.99, BEST),
    "MemoryChain-bsuite": Reference(1.0, BEST),
    "UmbrellaChain-bsuite": Reference(1.0, f"{BEST}, on average"),
    "DiscountingChain-bsuite": Reference(1.1, BEST),
    "SimpleBandit-bsuite": Reference(0.5, f"{BEST}: arms are shuffled anew each time"),
    "FourRooms-misc": Reference(1.0, BEST),
    "MetaMaze-misc": Reference(32.0, EVOLVED),
    "PointRobot-misc": Reference(10.0, EVOLVED),
    "BernoulliBandit-misc": Reference(89.4, f"{BEST}, by dynamic programming"),
    "GaussianBandit-misc": Reference(0.0, EVOLVED),
    "Reacher-misc": Reference(None, "none published"),
    "Swimmer-misc": Reference(None, "none published"),
    "Pong-misc": Reference(1000.0, "one point for each of 1,000 steps"),
    "FrozenLake-misc": Reference(0.70, "Gym's threshold"),
}
