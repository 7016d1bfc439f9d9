"""Grouped calls that run once, and those that repeat."""

from collections.abc import Callable
from operator import is_
from typing import Any, NamedTuple, Optional

from .call import signature_of
from .debug import is_debugging
from .device import EMULATED, is_capturing, raw_stream
from .grouped import GroupedProgram, data_ptr, program_of, reached_by
from .grouped_call import Families, GroupedCall, Tensors
from .grouped_partials import PartialsLayout, PartialsMemory


class _Prepared(NamedTuple):
    """What a call needs to run."""

    program: GroupedProgram
    families: Families
    memory: Optional[PartialsMemory]


def prepared(call: GroupedCall) -> _Prepared:
    """The program for a call, its lists with outputs, and room for its partials. Launches nothing."""
    if not call.problems:
        return _Prepared(GroupedProgram([], PartialsLayout()), dict(call.lists), None)
    program, families = program_of(call)
    return _Prepared(program, families, program.new_memory(call))


def run_once(call: GroupedCall) -> Any:
    """Run a call on the current stream; what it returns."""
    program, families, memory = prepared(call)
    if call.problems:
        program.run(call, families, memory)
    return call.returned(families, memory)


class GroupedPlan:
    """Callable: `plan(A_list, B_list)` computes into the outputs that the plan holds, and returns them, as the function that it was
    made for does.

    Other tensors than those planned may be passed if they have the same shapes, strides, dtypes and alignment; other lists (out_list,
    C_list, ... and those on ports of an epilogue, by name) may be replaced likewise, if the plan was made with them or they are
    outputs. With tensors at known addresses a call is one launch (of each kind of problem), else the tables are written first.
    Calls can be captured in CUDA graphs; replays see new contents, not new addresses.

    The same tensor objects count as being where they were: after `tensor.data = ...`, `set_` or `resize_` pass them to a new
    plan, or to `gemm_grouped`. QUACK_DEBUG=1, set when the plan is made, has every call compare the addresses.
    """

    def __init__(self, call: GroupedCall):
        self._call = call
        self._program, families, self._memory = prepared(call)
        self._signatures = {name: [*map(signature_of, tensors)] for name, tensors in families.items()}
        self._is_debugging = is_debugging()
        self._calls: Optional[list[tuple[Callable[..., Any], tuple[Any, ...]]]] = None  # if all is known to be in place
        self._stream = 0  # on which it is
        self._remember(families)

    def __call__(
        self,
        A_list: Optional[Tensors] = None,
        B_list: Optional[Tensors] = None,
        out_list: Optional[Tensors] = None,
        **lists: Optional[Tensors],
    ) -> Any:
        """Run on the current stream. lists: by the names that the function has for them."""
        held = self._families
        if self._calls is not None and not lists and out_list is None:
            # The path of calls that repeat: keep it short.
            inputs = [*(held["A"] if A_list is None else A_list), *(held["B"] if B_list is None else B_list)]
            if (
                len(inputs) == len(self._inputs)
                and all(map(is_, inputs, self._inputs))
                and not (self._is_debugging and list(map(data_ptr, inputs)) != self._pointers)
                and raw_stream(self._device) == self._stream
                and not is_capturing(self._device)
            ):
                for call, arguments in self._calls:
                    call(*arguments)
                return self._call.returned(held, self._memory)
        families = self._replaced({"A_list": A_list, "B_list": B_list, "out_list": out_list, **lists})
        self._remember(families)
        if families["A"]:
            bound = self._program.run(self._call, families, self._memory)
            if not self._program.copies and not is_capturing(self._device):
                reached = reached_by(families, self._memory)
                own = self._memory.steps if self._memory is not None else []
                self._calls = [(b.call, b.arguments(families, self._call.shared, reached)) for b in bound] + own
                self._stream = raw_stream(self._device)
        return self._call.returned(families, self._memory)

    def _remember(self, families: Families) -> None:
        self._families = families
        self._inputs = [*families["A"], *families["B"]]
        self._pointers = list(map(data_ptr, self._inputs))
        self._device = families["A"][0].get_device() if families["A"] else EMULATED
        self._calls = None

    def _replaced(self, lists: dict[str, Optional[Tensors]]) -> Families:
        """The plan's tensors with these instead: as many as planned, each like the one it replaces."""
        families = dict(self._families)
        for name, given in lists.items():
            if given is None:
                continue
            operand = self._call.names.get(name, "")
            planned = self._signatures.get(operand)
            if planned is None or len(given) != len(planned):
                raise ValueError(f"{name} has {len(given)} tensors, the plan was made for {len(planned or ())}")
            for i, (tensor, signature) in enumerate(zip(given, planned)):
                if signature_of(tensor) != signature:
                    raise ValueError(
                        f"{name}[{i}] is {signature_of(tensor)} (shape, strides, dtype, device, address mod 16), the plan was "
                        f"made for {signature}; make a new plan"
                    )
            families[operand] = tuple(given)
        return families
