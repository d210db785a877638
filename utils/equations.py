"""Prints the table of equations: number, function, the tests that check it, the recorded numbers.

    python -m utils.equations

utils/course/catalogue.py says where the table comes from.
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
    """The equations as markdown, in the paper's order, behind them the tasks without a number."""
    known = catalogue.functions()
    held = catalogue.tests(known)
    rows = [["Eq.", "what", "function", "test", "golden file"], ["---"] * 5]
    for function in sorted(known.values(), key=_place):
        if function.number or function.week:
            named = [test for test in held if function.name in test.names]
            files = sorted({test.recorded for test in named})
            rows.append([function.number or "-", function.what.replace("|", "\\|"),
                         f"`{function.name}`", _counted(named),
                         ", ".join(f"`{name}`" for name in sorted(set().union(*files))) or "-"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _place(function):
    """Numbered ones in front, by their first number; the sort keeps the order of the source."""
    return int(re.split("[-, ]", function.number)[0]) if function.number else 100


def _counted(named):
    """`equations 3, golden 1`: how many tests are in which file, as links."""
    count = Counter(test.path for test in named)
    return ", ".join(f"[{Path(path).stem.removeprefix('test_')}]({path}) {times}"
                     for path, times in count.items()) or "none"


if __name__ == "__main__":
    sys.exit(main())
