"""What people read: README.md and docs/*.md, with the blocks that programs write into them."""

from pathlib import Path

ROOT = Path(__file__).parent.parent


def text():
    """All pages, one after the other."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def block(name):
    """What stands between <!-- name --> and <!-- /name -->: one page has these marks, once."""
    start, end, pages = f"<!-- {name} -->", f"<!-- /{name} -->", text()
    assert pages.count(start) == pages.count(end) == 1, f"{start} and {end}: expected once each"
    return pages.partition(start)[2].partition(end)[0].strip()
