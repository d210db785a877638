"""The page of a report: one HTML file that holds its pictures, and the words beside each figure.

The page needs no server, no other file and no outside address. `CAPTIONS` has the figures in the
order of the page.
"""

import base64
import html
from pathlib import Path
from typing import NamedTuple

from PIL import Image

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #555; --page: #f4f4f1; --card: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececec; --soft: #b4b4b4; --page: #17181a; --card: #232528; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 54rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.2rem; margin: 0 0 0.75rem; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; padding: 0; list-style: none; }
a { color: inherit; }
section { background: var(--card); border-radius: 0.5rem; padding: 1rem; margin: 1rem 0; }
img { display: block; width: 100%; height: auto; margin: 0 auto 0.75rem; background: #fff;
  border-radius: 0.25rem; }
p { margin: 0.5rem 0; }
.soft { color: var(--soft); }
@media (max-width: 30rem) { body, section { padding: 0.5rem; } }
"""


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


class Section(NamedTuple):
    """A figure of the page: its pictures and words, or why there is none."""

    name: str
    number: int
    caption: tuple  # title, what it shows, what a healthy one looks like
    pictures: tuple = ()  # paths
    found: str = ""  # a sentence with what was measured
    left_out: str = ""  # why, where there is no picture


def write(title, facts, sections):
    """The page's text: a title, a line of facts, and a Section for each figure."""
    links = "".join(f'<li><a href="#{part.name}">{html.escape(part.caption[0])}</a></li>'
                    for part in sections)
    body = "\n".join(_section(part) for part in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{html.escape(title)}</h1>
<p class="soft">{html.escape(facts)}</p>
<nav aria-label="Figures"><ul>{links}</ul></nav>
</header>
<main>
{body}
</main>
</body>
</html>
"""


def _section(part):
    title, shows, healthy = (html.escape(words) for words in part.caption)
    pictures = "\n".join(_picture(path, f"{part.caption[0]}. {part.found or part.caption[1]}")
                         for path in part.pictures)
    words = [f"<p>{shows}</p>", f"<p><strong>Healthy:</strong> {healthy}</p>"]
    if part.found:
        words.insert(1, f"<p><strong>Here:</strong> {html.escape(part.found)}</p>")
    if part.left_out:
        words = [f'<p class="soft">Left out: {html.escape(part.left_out)}.</p>']
    return "\n".join([f'<section id="{part.name}">', f"<h2>{part.number}. {title}</h2>", pictures,
                      *words, "</section>"])


def _picture(path, words):
    """A picture as part of the page, with words for those who do not see it."""
    kind, data = Path(path).suffix[1:], Path(path).read_bytes()
    with Image.open(path) as image:
        width, height = image.size
    text = base64.b64encode(data).decode()
    image = (f'<img src="data:image/{kind};base64,{text}" width="{width}" height="{height}" '
             f'alt="{html.escape(words)}">')
    if kind == "gif":  # it moves for ever: who does not want that can close it
        return f"<details open><summary>Film</summary>{image}</details>"
    return image
