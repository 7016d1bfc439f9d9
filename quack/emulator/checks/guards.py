"""Whether an instruction runs: for checkers that wrap instructions."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..ptx import Instruction


def guard(instruction: Instruction) -> Callable[[Any], bool]:
    """Whether the predicate lets some lane execute the instruction."""
    if instruction.predicate is None:
        return lambda w: True
    name, negated = instruction.predicate
    slot = instruction.scope.register(name)

    def runs(w: Any) -> bool:
        p = w.regs[slot]
        if p is None or p is True or p is False:
            return bool(p) is not negated
        return bool((w.mask & (np.asarray(p) != negated)).any())

    return runs
