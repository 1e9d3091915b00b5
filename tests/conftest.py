"""How many examples a law is tried on: some in each run of the suite, and other ones each time;
many where somebody says `--hypothesis-profile long`. And which tests share a process, where there
are several (pytest-xdist): those of a file, and all in `real`, whose nodes would take each other's
time; these begin first.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("suite", max_examples=40, deadline=None)
settings.register_profile("long", max_examples=1000, deadline=None)
settings.load_profile("suite")

REAL = Path(__file__).with_name("real")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: REAL not in item.path.parents)
    for item in items:
        group = "real" if REAL in item.path.parents else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
