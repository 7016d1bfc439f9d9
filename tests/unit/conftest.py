"""Fixtures of the unit tests."""

from collections import OrderedDict
from collections.abc import Callable, Iterator

import pytest

import quack
from quack.runtime import call, grouped, plan, row_sum
from quack.runtime.legality import legality
from quack.runtime.spec import GemmSpec


@pytest.fixture
def launches(monkeypatch) -> Iterator[list[tuple]]:
    """CPU tensors pass for an H200's, and compiled functions only record their arguments; legality is asked all the same."""
    calls: list[tuple] = []

    def get_function(spec, emulated) -> Callable[..., None]:
        if isinstance(spec, GemmSpec):
            legality(spec).require()
        return lambda *arguments: calls.append(arguments)

    for module in (plan, grouped):
        monkeypatch.setattr(module, "get_function", get_function)
        monkeypatch.setattr(module, "tile_counter", lambda device: None)
    monkeypatch.setattr(row_sum, "get_function", get_function)
    monkeypatch.setattr(row_sum, "_plans", {})
    monkeypatch.setattr(call, "_calls", {})
    monkeypatch.setattr(grouped, "_programs", OrderedDict())
    with quack.emulator.use("sm90"):
        yield calls
