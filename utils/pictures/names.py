"""Names of an environment's actions and of the entries of its observations.

Source: the step functions of Gymnax, and of Gymnasium, whose names are given here without
"gymnasium:". DeepSea is missing because each of its cells has its own
mapping of the actions.
"""

from utils.core.cli import GYMNASIUM

COMPASS = ("up", "right", "down", "left")
ACTIONS = {
    "CartPole-v1": ("left", "right"),
    "Pendulum-v1": ("torque",),
    "Acrobot-v1": ("torque -1", "torque 0", "torque +1"),
    "MountainCar-v0": ("left", "coast", "right"),
    "MountainCarContinuous-v0": ("force",),
    "LunarLander-v3": ("nothing", "left engine", "main engine", "right engine"),
    "Asterix-MinAtar": ("stay", "left", "up", "right", "down"),
    "Breakout-MinAtar": ("stay", "left", "right"),
    "Freeway-MinAtar": ("stay", "up", "down"),
    "Seaquest-MinAtar": ("stay", "left", "up", "right", "down", "fire"),
    "SpaceInvaders-MinAtar": ("stay", "left", "right", "fire"),
    "Catch-bsuite": ("left", "stay", "right"),
    "UmbrellaChain-bsuite": ("no umbrella", "umbrella"),
    "FourRooms-misc": COMPASS,
    "MetaMaze-misc": COMPASS,
    "FrozenLake-misc": ("left", "down", "right", "up"),
    "Pong-misc": ("stay", "up", "down"),
    "PointRobot-misc": ("move x", "move y"),
    "Reacher-misc": ("torque 1", "torque 2"),
    "Swimmer-misc": ("push x", "push y"),
}
ENTRIES = {
    "CartPole-v1": ("cart position, m", "cart velocity, m/s", "pole angle, rad",
                    "pole velocity, rad/s"),
    "Pendulum-v1": ("cos of the angle", "sin of the angle", "velocity, rad/s"),
    "Acrobot-v1": ("cos of angle 1", "sin of angle 1", "cos of angle 2", "sin of angle 2",
                   "velocity 1, rad/s", "velocity 2, rad/s"),
    "MountainCar-v0": ("position", "velocity, per step"),
    "MountainCarContinuous-v0": ("position", "velocity, per step"),
    "LunarLander-v3": ("x", "y", "velocity, x", "velocity, y", "angle, rad", "turning, rad/s",
                       "left leg touches", "right leg touches"),
    "FourRooms-misc": ("row", "column", "row of the goal", "column of the goal"),
    "PointRobot-misc": ("x", "y", "last reward", "last move, x", "last move, y", "time, steps"),
    "Reacher-misc": ("cos of angle 1", "cos of angle 2", "sin of angle 1", "sin of angle 2",
                     "velocity 1", "velocity 2", "goal, x", "goal, y"),
}


def entries(env):
    """The name of each entry of a vector, with its unit if it has one."""
    known = ENTRIES.get(_plain(env.name), ())
    if len(known) == env.x_shape[0]:
        return known
    return [f"entry {number}" for number in range(env.x_shape[0])]


def actions(env):
    """The name of each action, or of each entry of a continuous one."""
    known = ACTIONS.get(_plain(env.name), ())
    if len(known) == env.action_size:
        return known
    word = "action" if env.discrete else "entry"
    return [f"{word} {number}" for number in range(env.action_size)]


def _plain(name):
    """The id of an environment of Gymnasium without what is in front of it."""
    return name.removeprefix(f"{GYMNASIUM}:")
