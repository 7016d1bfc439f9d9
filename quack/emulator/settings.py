"""What is emulated and how: the settings of this context, from `use(...)` or the environment.

QUACK_EMULATE           sm90 | sm100 | sm120: calls on CPU tensors compile for that architecture and run emulated
QUACK_EMULATE_SCHEDULE  eager (default) | latest | random:SEED
QUACK_EMULATE_CHECK     comma-separated checkers, or "all"; none by default
QUACK_EMULATE_SMS       how many SMs the emulated device has
"""

import contextlib
import contextvars
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Optional

from .asynchrony import EAGER, Schedule
from .checks import parse as parse_checks
from .observer import Observer
from .runtime.device import DEVICES, DeviceProperties

SWITCH = "QUACK_EMULATE"


@dataclass(frozen=True)
class Settings:
    """arch: "sm90", "sm100" or "sm120", or None where only `launch` is used (it reads the PTX target).

    checks: names of checkers (`quack.emulator.checks`). sms: None leaves the number of the real device. observers: see all
    launches, after the checkers.
    """

    arch: Optional[str] = None
    schedule: Schedule = EAGER
    checks: tuple[str, ...] = ()
    sms: Optional[int] = None
    observers: tuple[Observer, ...] = ()

    def __post_init__(self) -> None:
        if self.arch is not None and self.arch not in DEVICES:
            raise ValueError(f"architecture {self.arch!r}: expected one of {', '.join(DEVICES)}")
        parse_checks(self.checks)  # raises for unknown names
        if self.sms is not None and self.sms < 1:
            raise ValueError(f"{self.sms} SMs: a device has at least 1")

    def device(self, arch: str) -> DeviceProperties:
        """The emulated device of an architecture."""
        properties = DEVICES[arch]
        return properties if self.sms is None else replace(properties, sm_count=self.sms)


_current: contextvars.ContextVar[Optional[Settings]] = contextvars.ContextVar("quack emulation", default=None)


def current() -> Settings:
    """The settings of this context."""
    settings = _current.get()
    return settings if settings is not None else _from_environment()


def _from_environment() -> Settings:
    environment = os.environ
    checks = environment.get(f"{SWITCH}_CHECK", "")
    sms = environment.get(f"{SWITCH}_SMS", "")
    return Settings(
        environment.get(SWITCH) or None,
        Schedule.parse(environment.get(f"{SWITCH}_SCHEDULE") or "eager"),
        tuple(name for name in checks.split(",") if name),
        int(sms) if sms else None,
    )


@contextlib.contextmanager
def use(
    arch: Optional[str] = None,
    *,
    schedule: Optional[str] = None,
    checks: Optional[Sequence[str]] = None,
    sms: Optional[int] = None,
    observers: Sequence[Observer] = (),
) -> Iterator[Settings]:
    """Within the block, quack calls on CPU tensors compile for `arch` and run emulated.

    arch: "sm90", "sm100" or "sm120". schedule: "eager", "latest" or "random:SEED". checks: names of checkers or ("all",).
    What is not given stays as it is outside the block. Raises ValueError for unknown names.
    """
    outer = current()
    settings = Settings(
        arch if arch is not None else outer.arch,
        Schedule.parse(schedule) if schedule is not None else outer.schedule,
        tuple(checks) if checks is not None else outer.checks,
        sms if sms is not None else outer.sms,
        (*outer.observers, *observers),
    )
    token = _current.set(settings)
    try:
        yield settings
    finally:
        _current.reset(token)
