"""One HTML page that holds its pictures: no server, no other file, no outside address."""

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
