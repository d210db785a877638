"""The pages of Dreamer 4: the tour names what is there, the tables are made from code and results.

    python -m tests.test_dreamer4_pages                         # writes the tables anew
    python -m tests.test_dreamer4_pages default RUN RUN RUN     # after adding results of these runs
    python -m tests.test_dreamer4_pages online RUN              # of DreamerV3 on the same square
"""

import ast
import doctest
import json
import re
import sys
from datetime import date
from pathlib import Path

import yaml

from tests import pages
from utils.dreamer4 import figures
from utils.dreamer4.settings import PHASES

ROOT = Path(__file__).parent.parent
PAGE, RESULTS = ROOT / "docs" / "dreamer4.md", ROOT / "docs" / "dreamer4.json"
EQUATION = re.compile(r"Eq\. (\d[\d, -]*) \| (.*)")


def equations():
    """The equations of dreamer4.py as markdown, in the paper's order, with their tests."""
    tests = ast.parse((ROOT / "tests" / "test_dreamer4.py").read_text(encoding="utf-8"))
    used = [{part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
            for node in tests.body if isinstance(node, ast.FunctionDef)]
    tree = ast.parse((ROOT / "dreamer4.py").read_text(encoding="utf-8"))
    rows = []
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef | ast.ClassDef) else None
        if found := EQUATION.search((text or "").partition("\n")[0]):
            count = sum(node.name in names for names in used)
            rows.append((found[1], found[2].replace("|", "\\|"), f"`{node.name}`", str(count)))
    rows.sort(key=lambda row: int(re.match(r"\d+", row[0])[0]))
    return _markdown([("Eq.", "what", "function", "tests"), ("---",) * 4, *rows])


def results(found):
    """The runs of one preset as markdown: a row for each figure, a column for each seed."""
    rows = [("phase", "figure", "beside it", *(f"seed {run['seed']}" for run in found)),
            ("---",) * 3 + ("---:",) * len(found)]
    for number, phase in enumerate(PHASES, 1):
        first = found[0]["phases"][phase]
        for name in first["figures"]:
            what, unit, _ = figures.words(name)
            values = [figures.number(name, run["phases"][phase]["figures"][name]) for run in found]
            others = figures.beside(name, first["baselines"].get(name, {}))
            rows.append((f"{number} {phase}", f"{what}, {unit}".rstrip(", "), others, *values))
    rows.append(("", "whole run, seconds", "", *(f"{run['seconds']:,.0f}" for run in found)))
    rows.append(("", "peak memory, MB", "", *(f"{run['bytes'] / 1e6:,.0f}" for run in found)))
    rows.append(("", "CPU cores", "", *(str(run["machine"]["cpus"]) for run in found)))
    where = found[0]
    return _markdown(rows) + (f"\n\nMeasured on {where['date']}, {where['machine']['model']}, "
                              f"jax {where['versions']['jax']}.")


def online(run):
    """DreamerV3's evaluations on the same square as markdown, by the frames that it has met."""
    rows = [("frames met", "share of Dreamer 4's", "real return, sampled"), ("---:",) * 3]
    rows += [(f"{frames:,}", f"{frames / run['recorded']:.0%}", f"{score:.1f}")
             for frames, score in run["evaluations"]]
    return _markdown(rows) + f"\n\nSeed {run['seed']}, measured on {run['date']}."


def _markdown(rows):
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def measured():
    """{preset: its runs} of docs/dreamer4.json."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def blocks():
    """{name: text} of what this file writes into the page."""
    found = measured()
    beside = {"dreamer 4, online": online(found.pop("online"))} if "online" in found else {}
    shown = {f"dreamer 4, {preset}": results(runs) for preset, runs in found.items()}
    return {"equations of dreamer 4": equations()} | shown | beside


def filled(text):
    """The page with these blocks."""
    for name, block in blocks().items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(start)
        text = f"{before}{start}\n\n{block}\n\n{end}{rest.partition(end)[2]}"
    return text


def _add(preset, folders):
    """Add the results of runs, replacing those of the preset."""
    runs = [json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
            for folder in folders]
    runs.sort(key=lambda run: run["seed"])
    RESULTS.write_text(json.dumps(measured() | {preset: runs}, indent=1) + "\n", encoding="utf-8")


def _add_online(folder):
    """Add the evaluations of a run of DreamerV3."""
    config = yaml.safe_load((Path(folder) / "config.yaml").read_text(encoding="utf-8"))
    lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [(row["step"], row["charts/eval_return"]) for row in map(json.loads, lines)
             if "charts/eval_return" in row]
    world = yaml.safe_load((ROOT / "dreamer4.yaml").read_text(encoding="utf-8"))["world"]
    run = {"seed": config["run"]["seed"], "date": date.today().isoformat(),
           "recorded": world["sequences"] * world["length"], "evaluations": found}
    RESULTS.write_text(json.dumps(measured() | {"online": run}, indent=1) + "\n", encoding="utf-8")


def test_the_page_holds_the_tables_that_are_made_from_code_and_results():
    for name, block in blocks().items():
        assert pages.block(name) == block, "write it by: python -m tests.test_dreamer4_pages"


def test_every_equation_of_the_paper_is_in_the_table_and_has_a_test():
    rows = [row.split(" | ") for row in equations().splitlines()[2:]]
    spans = [[int(part) for part in re.findall(r"\d+", row[0])] for row in rows]
    covered = {number for span in spans for number in range(span[0], span[-1] + 1)}
    assert covered == set(range(1, 12)) - {3}  # Eq. 3 is Eq. 7 with the smallest steps
    tested = {number for span, row in zip(spans, rows) if int(row[-1].strip(" |"))
              for number in range(span[0], span[-1] + 1)}
    assert tested >= {1, 2, 4, 6, 7, 8, 9, 11}


def test_the_tour_names_only_what_is_there():
    tour = PAGE.read_text(encoding="utf-8").partition("## Read it")[2].partition("\n## ")[0]
    paths = [ROOT / "dreamer4.py", *(ROOT / "utils" / "dreamer4").glob("*.py")]
    known = {name for path in paths
             for name in re.findall(r"^ *(?:def|class) (\w+)", path.read_text("utf-8"), re.M)}
    numbers = yaml.safe_load((ROOT / "dreamer4.yaml").read_text(encoding="utf-8"))
    known |= {f"{section}.{key}" for section, keys in numbers.items() for key in keys}
    named = {name for name in re.findall(r"`(\w+(?:\.\w+)?)`", tour) if ".py" not in name}
    assert len(named) > 25 and not named - known


def test_the_prompts_of_the_tour_print_what_it_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = re.sub(r"^```.*$", "", PAGE.read_text(encoding="utf-8"), flags=re.M)
    tour = doctest.DocTestParser().get_doctest(text, {}, PAGE.name, str(PAGE), 0)
    said, runner = [], doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    found = runner.run(tour, out=said.append)
    assert found.attempted > 10 and not found.failed, "".join(said)


def test_the_table_of_results_has_a_column_for_each_seed_and_the_baselines_once():
    run = {"seed": 0, "seconds": 60.4, "bytes": 1.2e9, "date": "2026-11-27",
           "versions": {"jax": "0.10"},
           "machine": {"cpus": 2, "model": "X"}, "phases": {
               phase: {"figures": {}, "baselines": {}} for phase in PHASES}}
    run["phases"]["dynamics"] = {"figures": {"psnr_k4": 24.123},
                                 "baselines": {"psnr_k4": {"last frame repeated": 12.0}}}
    table = results([run, run | {"seed": 1}])
    row = "| 2 dynamics | dreamed frames, K = 4, dB | last frame repeated 12.00 | 24.12 | 24.12 |"
    assert row in table
    assert "seed 0 | seed 1" in table and "| 60 | 60 |" in table and "| 2 | 2 |" in table
    assert "| 1,200 | 1,200 |" in table


if __name__ == "__main__":
    if sys.argv[1:]:
        preset, *folders = sys.argv[1:]
        _add_online(*folders) if preset == "online" else _add(preset, folders)
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
