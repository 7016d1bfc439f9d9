"""Kernels that run with a line of their PTX changed: what no checker complains of, and no result shows, was not needed."""

import dataclasses
import re
from collections.abc import Callable, Iterator

import pytest

from quack.emulator import launching
from quack.emulator.errors import EmulationError
from quack.emulator.runtime.linked import linked


def mutants(ptx: str, pattern: str, replacement: Callable[[re.Match[str]], str]) -> Iterator[tuple[str, str]]:
    """(line that is changed, text with the change)."""
    lines = ptx.split("\n")
    for i, line in enumerate(lines):
        found = re.fullmatch(pattern, line.strip())
        if found:
            yield f"{i + 1}: {line.strip()}", "\n".join([*lines[:i], replacement(found), *lines[i + 1 :]])


class Subject:
    """A launch, again and again. ptx: of the kernel as compiled, of the last one if there are several; empty before it has run."""

    def __init__(self, launch: Callable[..., None]) -> None:
        self.launch, self.ptx = launch, ""

    def run(self, patch: pytest.MonkeyPatch, *arguments: object, ptx: str = "") -> None:
        """As compiled, or with this PTX."""

        def changed(compiled: object) -> object:
            function = linked(compiled)
            self.ptx = function.ptx
            return dataclasses.replace(function, ptx=ptx) if ptx else function

        patch.setattr(launching, "linked", changed)
        self.launch(*arguments)

    def survives(self, patch: pytest.MonkeyPatch, ptx: str) -> bool:
        """Whether the launch raises nothing with it, neither a checker's complaint nor that a result is wrong."""
        try:
            self.run(patch, ptx=ptx)
        except (EmulationError, AssertionError):
            return False
        return True
