"""The worlds that the host steps, one after the other."""

import weakref

import gymnasium
import jax
import numpy as np

from utils.core.user_env import Guest, GuestError
from utils.worlds.interface import Step

RUN = "the run"
RENDERED = "rgb_array"  # the way of rendering that gives a picture as an array


class Worlds:
    """E worlds of one HostEnvironment.

    Rows follow each other as in Gymnasium's AutoresetMode.NEXT_STEP: after the last row of an
    episode the action is ignored, and the first row of the next episode comes. For messages, `of`
    says what is played; steps of a run are rows of all its worlds, from `steps` on.

    Shapes: every array of a Step here has the leading axis [E], and is one of NumPy.
    Raises: GuestError for an error in a world or a wrong value, with its step."""

    def __init__(self, env, count, of=RUN, steps=0, render_mode=None):
        self._env, self._of, self._steps = env, of, steps
        self._worlds = [env.create(render_mode) for _ in range(count)]
        self._x, self._over = [None] * count, np.zeros(count, bool)
        self.close = weakref.finalize(self, _close, self._worlds)  # at the end of the process too

    def reset(self, seeds):
        """Begin an episode in each world: -> Step; equal seeds [E] begin equal ones"""
        self._steps = self._steps if self._of == RUN else 0
        with self._guest():
            for n, world in enumerate(self._worlds):
                x, _ = self._parts("reset", world.reset(seed=int(seeds[n])))
                self._x[n] = self._raw(x)
        r, no = np.zeros(len(self._x), np.float32), np.zeros(len(self._x), bool)
        self._over = no
        return Step(x=self._observed(), r=r, is_first=~no, is_last=no, is_terminal=no)

    def step(self, actions, playing=None):
        """Carry out actions [E] as `HostEnvironment.action` gives them: -> Step

        Worlds that are not `playing` [E] stand still, and their row has the same x."""
        actions = self._env.for_world(actions)
        r, (ended, cut) = np.zeros(len(actions), np.float32), np.zeros((2, len(actions)), bool)
        over = self._over
        with self._guest():
            for n, world in enumerate(self._worlds):
                if playing is not None and not playing[n]:
                    continue
                if over[n]:
                    x, _ = self._parts("reset", world.reset())
                else:
                    x, r[n], ended[n], cut[n], _ = self._parts("step", world.step(actions[n]))
                self._x[n] = self._raw(x)
        self._over = ended | cut
        self._steps += len(actions) if self._of == RUN else 1
        if not np.isfinite(r).all():
            raise self._wrong(f"the reward is {r[~np.isfinite(r)][0]:g}, expected a finite number")
        return Step(x=self._observed(), r=r, is_first=over, is_last=self._over, is_terminal=ended)

    def begin(self, actor, key):
        """Begin episodes, with nothing remembered of those before: -> ActorState"""
        seeds = jax.random.randint(key, self._over.shape, 0, 2**31 - 1)
        first = self.reset(np.asarray(seeds))
        return actor._replace(timestep=first, episode_return=np.zeros_like(first.r),
                              length=np.zeros(len(first.r), np.int32))

    def carry_out(self, actor, playing=None):
        """Carry out the actions that an ActorState hands out: -> ActorState with what arrives"""
        return actor._replace(timestep=self.step(actor.env.action, playing))

    def picture(self):
        """The first world's own picture of itself: uint8 [H, W, 3]; None where it has none."""
        world = self._worlds[0]
        if world.render_mode != RENDERED or type(world.unwrapped).render is gymnasium.Env.render:
            return None
        with self._guest():
            picture = world.render()
        is_one = isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.shape[2] == 3
        return picture.astype(np.uint8) if is_one else None

    def _parts(self, what, found):
        """The values that `reset` or `step` returns, as many as it must."""
        wanted = {"reset": "2: observation, info",
                  "step": "5: observation, reward, terminated, truncated, info"}[what]
        if not isinstance(found, tuple) or len(found) != int(wanted[0]):
            count = len(found) if isinstance(found, tuple) else f"a {type(found).__name__},"
            raise self._wrong(f"{what} returns {count} values, expected {wanted}")
        return found

    def _raw(self, x):
        """An observation as an array of the declared shape."""
        x, wanted = self._env.array(x), self._env.raw_shape
        if x.shape != wanted or x.dtype.kind not in "biuf":
            raise self._wrong(f"the observation is {x.dtype}{list(x.shape)}, expected "
                              f"{self._env.raw_dtype}{list(wanted)}, as its space declares")
        return x

    def _observed(self):
        """The last observations of all worlds, checked and converted for the agent: [E, X]"""
        env, x = self._env, np.stack(self._x)
        self._check(x, ~np.isfinite(x), "expected finite numbers")
        if env.is_image and x.dtype != np.uint8:
            self._check(x, (x < 0) | (x > 1), "expected an image from 0 to 1, or uint8 "
                        "(run.observation=vector accepts any number)")
        if env.classes is not None:
            first, last = env.first_class, env.first_class + env.classes - 1
            self._check(x + first, (x < 0) | (x >= env.classes), f"expected {first} to {last}, as "
                        "its space declares")
        return env.observation(x, np)

    def _check(self, x, wrong, expected):
        """Raises: GuestError naming the first wrong entry of observations [E, raw]."""
        if wrong.any():
            place = tuple(np.argwhere(wrong)[0])
            where = "".join(f"[{n}]" for n in place[1:])
            raise self._wrong(f"{'entry ' * bool(where)}{where}{' of ' * bool(where)}the "
                              f"observation is {x[place]:g}, {expected}")

    def _guest(self):
        return Guest(self._place())

    def _wrong(self, what):
        return GuestError(f"{self._place()}: {what}")

    def _place(self):
        return f"run.env: {self._env.name}: step {self._steps:,} of {self._of}"


def _close(worlds):
    for world in worlds:
        world.close()
