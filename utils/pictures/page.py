"""The page of a report: one HTML file with the pictures and captions of all figures.

The page needs no server, no other files and no network. `CAPTIONS` lists the figures in the order
of the page.
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
  img { filter: brightness(0.85); }  /* pictures are dark on white: a soft light card */
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 54rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.2rem; margin: 0 0 0.75rem; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; padding: 0; list-style: none; }
a { color: inherit; }
section { background: var(--card); border-radius: 0.5rem; padding: 1rem; margin: 1rem 0; }
img { display: block; width: 100%; max-width: 38rem; height: auto; margin: 0 auto 0.75rem;
  padding: 0.5rem; background: #fff; border-radius: 0.75rem; }
p { margin: 0.5rem 0; }
.soft { color: var(--soft); }
@media (max-width: 30rem) { body, section { padding: 0.5rem; } }
"""


class Caption(NamedTuple):
    """The title and the text of a figure."""

    title: str
    shows: str
    healthy: str


CAPTIONS = {
    "learning": Caption(
        "Learning",
        "Returns, losses and other metrics of metrics.jsonl, against environment steps. The "
        "entropies of prior and posterior are summed over the latents; advantages are divided by "
        "the return range.",
        "Returns rise and stay high; decoder, reward and continue losses fall. Prior and posterior "
        "keep an entropy above 0 and approach each other. The policy's entropy falls, but not "
        "to 0 at once. If the dynamics loss stays at the free bits (a ratio of 1), the latents "
        "may carry no information: lower the free bits or raise the scale of the prediction loss."),
    "open-loop": Caption(
        "Open loop",
        "The world model observes the first steps of an episode and then imagines the rest, given "
        "the actions that were really taken. The panels show one full-length episode with much "
        "change. The error is that of the mean of the imagined rollouts, averaged over all "
        "episodes until they end. Two baselines: \u201cno change\u201d repeats the last "
        "observation, \u201cthe mean\u201d always predicts the average observation. Errors are in "
        "standard deviations of all observations of this report. \u201cThe mean\u201d has 1 over "
        "all of them, but more or less at a single step, where observations are more or less "
        "unusual.",
        "The real episode stays within the imagined rollouts, which spread where the future is "
        "uncertain. The error starts far below both baselines and reaches them late. Within the "
        "imagination horizon of training (15 steps by default) it should stay below a third of "
        "\u201cno change\u201d."),
    "imagined": Caption(
        "Imagined against real",
        "The policy acts in imagination and in the environment from the same start states, half of "
        "them reached by random actions. If the policy or the environment is random, no model can "
        "predict a single real episode exactly. The mean of other real episodes from the same "
        "start shows the smallest error one can expect.",
        "Within the imagination horizon of training, imagination is as accurate as other real "
        "episodes, and better than \u201cno change\u201d and \u201cthe mean\u201d."),
    "heads": Caption(
        "Heads",
        "Top: predicted against true reward of every row, and predicted value against the "
        "discounted return that followed. Values are compared only where most of the return was "
        "received; the rest is bootstrapped from the value of the last row, as in training. "
        "Bottom: how often the world continued for each predicted continue probability.",
        "Dots lie on the dashed line. Values may be too low in states that the policy rarely "
        "visits. Terminal rows have a low continue probability, all other rows one near 1."),
    "latents": Caption(
        "Latents",
        "Posterior states projected to a plane, one dot per row. Below: how often each class of "
        "each latent is sampled, and how many classes each latent uses (the exponential of its "
        "entropy).",
        "Neighbouring states have similar values and rewards: colours change smoothly or form "
        "clusters. Every latent uses more than one class; a latent with a single one is dead."),
    "dream": Caption(
        "An imagined episode",
        "A real and an imagined episode from the same first observation, both drawn from "
        "observations alone. The policy acts in each, so once the states differ, the actions "
        "differ too. The imagined episode ends where the model considers that more likely than "
        "not.",
        "The imagined episode moves like the real one, without flickering or dissolving; its "
        "values and continue probabilities are of the same size."),
    "robustness": Caption(
        "Robustness",
        "The scores of the open loop and of the heads by checkpoint, all on the same episodes, "
        "played with the best weights. A run keeps only its last two checkpoints.",
        "Little changes between checkpoints: errors do not rise and correlations do not fall."),
}


class Section(NamedTuple):
    """A figure of the page: its pictures and text, or the reason why it is missing."""

    name: str
    number: int
    caption: tuple  # title, what it shows, what a healthy one looks like
    pictures: tuple = ()  # paths
    found: str = ""  # a sentence with the measurements
    left_out: str = ""  # the reason, if there is no picture


def write(title, facts, sections):
    """The HTML of the page: a title, a line of facts, and a Section for each figure."""
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
    """An embedded picture with an alternative text."""
    kind, data = Path(path).suffix[1:], Path(path).read_bytes()
    with Image.open(path) as image:
        width, height = image.size
    text = base64.b64encode(data).decode()
    image = (f'<img src="data:image/{kind};base64,{text}" width="{width}" height="{height}" '
             f'alt="{html.escape(words)}">')
    if kind == "gif":  # it loops forever: readers can collapse it
        return f"<details open><summary>Film</summary>{image}</details>"
    return image
