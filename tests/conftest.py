"""Time on two cores: of tests marked `one_in(n)` every n-th case runs, spread evenly over the list, unless QUACK_TESTS=all
(`make test-all`). Hardware runs all cases of the same lists, see tests/gpu."""

import os
from collections import defaultdict

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "one_in(n): by default only every n-th case runs; QUACK_TESTS=all runs all")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("QUACK_TESTS") == "all":
        return
    counts: dict[str, int] = defaultdict(int)
    kept, left_out = [], []
    for item in items:
        mark = item.get_closest_marker("one_in")
        if mark is None:
            kept.append(item)
            continue
        function = item.nodeid.partition("[")[0]
        (kept if counts[function] % mark.args[0] == 0 else left_out).append(item)
        counts[function] += 1
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept
