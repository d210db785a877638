"""The words of a report: a title for each figure, what it shows, and what a healthy one looks like.

In the order of the page.
"""

from typing import NamedTuple


class Caption(NamedTuple):
    """What stands above and below a figure."""

    title: str
    shows: str
    healthy: str


CAPTIONS = {
    "learning": Caption(
        "Learning",
        "Returns, and all that the updates left in metrics.jsonl, against environment steps. The "
        "entropy of prior and posterior is summed over the latents; the return range is what "
        "advantages are divided by.",
        "Returns rise and stay; decoder, reward and continue losses fall; prior and posterior keep "
        "an entropy above 0 and come close to each other; the policy's entropy falls, but not to 0 "
        "at once. A dynamics loss that stays at the free bits, a ratio of 1, may mean that the "
        "latents hold nothing: then lower the free bits or raise the scale of the prediction "
        "loss."),
    "open-loop": Caption(
        "Open loop",
        "The world model sees the first steps of an episode and dreams on with the actions that "
        "were really taken. Of whole episodes, one is shown in which much changes. The error is "
        "that of the mean of the dreams, over all episodes compared, each while it lasts.",
        "What happened lies within the dreams, which spread where the future is uncertain. The "
        "error starts far below both guesses and reaches them late; for the steps that training "
        "dreams, 15 as shipped, it should stay below a third of \u201cno change\u201d."),
    "imagined": Caption(
        "Imagined against real",
        "The policy acts in dreams and in the environment from the same starts, half of them from "
        "among random actions. Where the policy or the world is random, no dream can foresee one "
        "real episode exactly: how well the mean of other real episodes from the same start "
        "foretells it is about the least error that is possible.",
        "The dream is as good as other real episodes, and better than \u201cno change\u201d and "
        "\u201cthe mean\u201d, for as many steps as training dreams."),
    "heads": Caption(
        "Heads",
        "Predicted against true reward of every row; the value against the discounted return that "
        "was received, of the rows behind which most of it is known (what a time limit cuts off "
        "is estimated by the value of the last row, as in training); and how often the world "
        "really went on where the model gave it that chance.",
        "Dots lie on the dashed line. Values may be too low in states that the policy seldom "
        "sees. Ends of the world get a low chance of going on, all other rows one near 1."),
    "latents": Caption(
        "Latents",
        "Posterior states projected to the plane, each dot a row that was played; below, how often "
        "each class of each latent is drawn, and how many classes each uses (the exponential of "
        "its entropy).",
        "Neighbours have like values and rewards: colours change smoothly or lie in patches. "
        "Every latent uses more than one class; a latent with a single one is dead."),
    "dream": Caption(
        "A dream, drawn",
        "A real episode and a dream that begins with its first observation, both drawn from "
        "observations alone, with the policy acting in each. Once they differ, so do their "
        "actions. The dream ends where the model holds that more likely than not.",
        "The dream moves as the world does and nothing flickers or dissolves; its values and "
        "chances of going on have the size of the real ones."),
    "robustness": Caption(
        "Robustness",
        "The numbers of the open loop and of the heads, by checkpoint, on the same episodes, "
        "those of the best weights. A run keeps its last two checkpoints: what lies before "
        "them is not here.",
        "Little changes from one to the next: the error does not rise, the correlations do not "
        "fall."),
}
