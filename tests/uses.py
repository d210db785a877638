"""A plugin of pytest that records which tasks each test uses, for tests/test_course.py.

It runs on a copy of the project in which every task begins with a line that adds its name to SEEN.
What a fixture uses counts for every test that asks for it. A function that is traced once would
hide that it is used again: before a test that shares compiled functions with others, what jax has
compiled is forgotten. Of the cases of a test that name the same functions, the first alone is run.
"""

import json
import os
from collections import defaultdict
from pathlib import Path

import jax
import pytest

SEEN = set()
OF_FIXTURE = {}  # name -> the tasks that it used when it was last set up
OF_TEST = defaultdict(set)  # (test, markers) -> the tasks that it used


def _shares(item):
    """Whether compiled functions outlive a test: in its module, or in fixtures of several tests."""
    fixtures = item._fixtureinfo.name2fixturedefs.values()
    return any(found[-1].scope == "module" for found in fixtures) or any(
        hasattr(value, "clear_cache") for value in vars(item.module).values())


def _key(item):
    names = {mark.name for mark in item.iter_markers() if not mark.name.startswith("week")}
    return item.originalname, tuple(sorted(names - {"parametrize"}))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """One case of each test."""
    items[:] = {_key(item): item for item in reversed(items)}.values()
    items.reverse()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef):
    """Notes what a fixture uses apart from what others do."""
    around = set(SEEN)
    SEEN.clear()
    try:
        return (yield)
    finally:
        OF_FIXTURE[fixturedef.argname] = set(SEEN)
        SEEN.update(around)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Notes what a test uses."""
    SEEN.clear()
    if _shares(item):
        jax.clear_caches()
    result = yield
    OF_TEST[_key(item)] = SEEN.union(*(OF_FIXTURE.get(name, ()) for name in item.fixturenames))
    return result


def pytest_sessionfinish():
    """Leaves the record in the file that the variable USES names."""
    rows = [(test, names, sorted(used)) for (test, names), used in OF_TEST.items()]
    Path(os.environ["USES"]).write_text(json.dumps(rows), encoding="utf-8")
