"""What a run did, in numbers that do not depend on time: an observer that counts, by kernel, over all its launches.

Instructions are counted by *regions*, runs of instructions that are executed together. Warps that execute the same regions
are a *role*, named after what they do. Counted as executed: every instruction that got past its wait, whether its guard
was true or not; a wait that had to block counts once.

What of it depends on the schedule: how many waits found their phase complete, and who got which tile of a dynamic scheduler.
"""

from .banks import transactions
from .collect import Stats
from .kernel import KernelStats
from .regions import find_regions, tool_of, wait_of
from .report import WIDTH, number_list
from .roles import Role, find_roles, letter

__all__ = [
    "KernelStats",
    "Role",
    "Stats",
    "WIDTH",
    "find_regions",
    "find_roles",
    "letter",
    "number_list",
    "tool_of",
    "transactions",
    "wait_of",
]
