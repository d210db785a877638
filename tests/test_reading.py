"""The tour of docs/reading.md: its prompts give what it says, its links lead where they should.

    python -m tests.test_reading

writes the lines of its links anew, after the code has moved.
"""

import doctest
import re
from pathlib import Path

from utils.course.catalogue import LINK, linked

ROOT = Path(__file__).parent.parent
TOUR = ROOT / "docs" / "reading.md"
ANCHOR = re.compile(r"\]\(([\w./]*)#([\w-]+)\)")  # to a heading, of this page or another


def test_every_link_of_the_tour_leads_to_the_lines_of_its_function():
    text = TOUR.read_text(encoding="utf-8")
    assert len(LINK.findall(text)) > 25
    assert linked(text) == text, "write them anew by: python -m tests.test_reading"


def test_every_link_to_a_heading_finds_it():
    text = TOUR.read_text(encoding="utf-8")
    for file, anchor in ANCHOR.findall(LINK.sub("", text)):
        page = (TOUR.parent / file if file else TOUR).read_text(encoding="utf-8")
        headings = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
                    for heading in re.findall(r"^#+ (.*)$", page, re.M)]
        assert anchor in headings, (file, anchor)


def test_the_prompts_of_the_tour_print_what_it_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = re.sub(r"^```.*$", "", TOUR.read_text(encoding="utf-8"), flags=re.M)
    tour = doctest.DocTestParser().get_doctest(text, {}, TOUR.name, str(TOUR), 0)
    said, runner = [], doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    found = runner.run(tour, out=said.append)
    assert found.attempted > 50 and not found.failed, "".join(said)


def test_a_prompt_that_prints_something_else_is_found():
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner().run(wrong, out=lambda text: None).failed == 1


if __name__ == "__main__":
    TOUR.write_text(linked(TOUR.read_text(encoding="utf-8")), encoding="utf-8")
