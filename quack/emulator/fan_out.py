"""Several observers as one that forwards each hook to those that implement it, so that unused hooks cost a call at most."""

from collections.abc import Callable, Sequence
from typing import Any, Optional

from .observer import Observer

HOOKS = tuple(name for name, value in vars(Observer).items() if callable(value) and not name.startswith("_"))


class _FanOut(Observer):
    """Hooks are set per instance by `fan_out`."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = tuple(observers)

    def instrument(self, machine: Any, code: list[Any]) -> list[Any]:
        for observer in self.observers:
            code = observer.instrument(machine, code)
        return code


def _forward(targets: list[Callable[..., Any]]) -> Callable[..., None]:
    def call_all(*arguments: Any, **options: Any) -> None:
        for target in targets:
            target(*arguments, **options)

    return call_all


def fan_out(observers: Sequence[Observer]) -> Optional[Observer]:
    """One observer for all of `observers`; None if there are none."""
    if len(observers) <= 1:
        return observers[0] if observers else None
    combined = _FanOut(observers)
    for hook in HOOKS:
        targets = [getattr(o, hook) for o in observers if getattr(type(o), hook) is not getattr(Observer, hook)]
        if hook != "instrument" and targets:
            setattr(combined, hook, targets[0] if len(targets) == 1 else _forward(targets))
    return combined
