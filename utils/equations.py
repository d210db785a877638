"""Prints the table of equations: number, function, its tests, its golden files.

    python -m utils.equations

utils/course/catalogue.py collects the entries.
"""

import re
import sys
from collections import Counter
from pathlib import Path

from utils.core import cli
from utils.course import catalogue


def main(argv=None):
    """The command -> exit status: 0, or 2 for a wrong flag"""
    parser = cli.Parser("python -m utils.equations", description=__doc__.splitlines()[0],
                        allow_abbrev=False)
    try:
        parser.parse_args(argv)
        print(table())
    except (ValueError, OSError) as error:
        return cli.complain(error, "utils.equations")
    return 0


def table():
    """The equations as markdown, in the paper's order, then the tasks without a number."""
    known = catalogue.functions()
    tests = catalogue.tests(known)
    rows = [["Eq.", "what", "function", "test", "golden file"], ["---"] * 5]
    for function in sorted(known.values(), key=_place):
        if function.number or function.week:
            found = [test for test in tests if function.name in test.names]
            files = sorted({test.recorded for test in found})
            rows.append([function.number or "-", function.what.replace("|", "\\|"),
                         f"`{function.name}`", _counted(found),
                         ", ".join(f"`{name}`" for name in sorted(set().union(*files))) or "-"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _place(function):
    """Sort key: equations by their first number, then the others in source order."""
    return int(re.split("[-, ]", function.number)[0]) if function.number else 100


def _counted(found):
    """The number of tests per file, as links: `equations 3, golden 1`."""
    count = Counter(test.path for test in found)
    return ", ".join(f"[{Path(path).stem.removeprefix('test_')}](../{path}) {times}"
                     for path, times in count.items()) or "none"


if __name__ == "__main__":
    sys.exit(main())
