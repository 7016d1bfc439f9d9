"""Checkers: observers of a launch that raise `CheckFailed`, with the PTX line and what it conflicts with.

They judge by what the PTX ISA orders, not by what happened in this run, so most defects are found under every schedule.
"""

from collections.abc import Sequence
from enum import Enum

from ..observer import Observer
from .barriers import Barriers
from .exits import Exits
from .history import Words
from .ordering import Ordering
from .proxies import Proxies
from .races import Races
from .refills import Refills
from .registers import Registers
from .tensor_memory import TensorMemoryLeaks
from .uninitialised import Uninitialised


class Check(Enum):
    """Names of the checkers, as in QUACK_EMULATE_CHECK. Of several that see a defect, the first one reports it."""

    EXITS = "exits"
    RACES = "races"
    PROXIES = "proxies"
    REFILLS = "refills"
    UNINITIALISED = "uninitialised"
    BARRIERS = "barriers"
    REGISTERS = "registers"
    TENSOR_MEMORY = "tensor_memory"


ALL = "all"
STRICT = (Check.REFILLS,)  # also report what hardware gets right, so only by name


def parse(names: Sequence[str]) -> list[Check]:
    """The checkers of these names ("all": every one but the STRICT), each once. Raises ValueError for unknown names."""
    known = {check.value: check for check in Check}
    unknown = [name for name in names if name != ALL and name not in known]
    if unknown:
        raise ValueError(f"checkers {', '.join(unknown)}: expected some of {', '.join((ALL, *known))}")
    return [check for check in Check if (ALL in names and check not in STRICT) or check.value in names]


def observers(names: Sequence[str]) -> list[Observer]:
    """Fresh checkers for one launch; see `parse`. `Ordering` comes last: a release is the last thing of its tick."""
    ordering, words = Ordering(), Words()
    made: dict[Check, Observer] = {
        Check.EXITS: Exits(ordering),
        Check.RACES: Races(ordering, words),
        Check.PROXIES: Proxies(ordering, words),
        Check.REFILLS: Refills(ordering, words),
        Check.UNINITIALISED: Uninitialised(words),
        Check.BARRIERS: Barriers(ordering, words),
        Check.REGISTERS: Registers(),
        Check.TENSOR_MEMORY: TensorMemoryLeaks(),
    }
    wanted = [made[check] for check in parse(names)]
    needs_ordering = any(hasattr(checker, "ordering") for checker in wanted)
    return [*wanted, ordering] if needs_ordering else wanted


__all__ = ["ALL", "Check", "observers", "parse"]
