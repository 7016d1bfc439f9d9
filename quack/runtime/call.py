"""Calls that repeat: what a call costs the host besides the TVM-FFI call.

A public function states its operands by name and its form, which is made once. Everything that decides the plan (form, options,
shapes, strides, dtypes, devices, alignments, kinds of numbers) is looked up as one key; only a new key makes a `GemmRequest`, with
all of its checks. A known one leaves what no key can hold: addresses, compared with each other in every call.

Names of operands are those of `GemmRequest`'s fields and of the ports of the form's terms, so that it is known which operand goes
where.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Optional, Union

import torch
from torch import Tensor

from ..gemm_port import PortKind
from . import epilogue
from .debug import is_debugging
from .device import kernel_key
from .epilogue import Allocated, Port
from .operands import byte_span
from .plan import EmptyPlan, GemmPlan, GemmRequest, check_aliases, check_indices, prepare
from .problem_order import check_permutation_values
from .scales import check_scale_offsets
from .spec import DENSE

MAX_CALLS = 8192  # they are small, but shapes may be endless: start over beyond this
ARGUMENTS = ("A_scale", "B_scale", "cu_seqlens_m", "cu_seqlens_k", "A_idx", "batch_idx_permute")
DECIDING = ("alpha", "beta")  # 0.0 and 1.0 compile to less; other numbers share one kernel

Operands = dict[str, Any]
Plan = Union[GemmPlan, EmptyPlan]
_Value = tuple[int, Optional[Callable[[Any], Any]]]  # which operand, and what the kernel takes of it if not itself

_calls: dict[tuple, "Call"] = {}


class Form:
    """A kind of call, known by its identity: make each once.

    outputs: (operands, *options), checks the outputs that were given and adds those that were not; None: nothing to do.
    request: (operands, *options) -> `GemmRequest`, whose tensors are the operands. prepare: from that to the plan. convert: what the
    request has in place of C and out, where it has others.
    """

    __slots__ = ("convert", "outputs", "prepare", "request")

    def __init__(
        self,
        request: Callable[..., GemmRequest],
        outputs: Optional[Callable[..., None]] = None,
        prepare: Callable[[GemmRequest], Plan] = prepare,
        convert: Optional[Callable[[Tensor], Tensor]] = None,
    ):
        self.request, self.outputs, self.prepare, self.convert = request, outputs, prepare, convert

    def complete(self, operands: Operands, options: tuple) -> GemmRequest:
        """The request, after the outputs. Every complaint about arguments comes from here or from `prepare`."""
        if self.outputs is not None:
            self.outputs(operands, *options)
        return self.request(operands, *options)


def launch(form: Form, operands: Operands, options: tuple = ()) -> dict[str, torch.Tensor]:
    """Run a call. The path of every call: keep it short.

    operands: A, B, out and whatever else the form knows; outputs that are None are put there if the form has them allocated.
    Returns the partials that were allocated, by port name.
    """
    facts: list[Any] = [form, options, *operands]
    addresses: list[int] = []
    try:
        for name, value in operands.items():
            if value is None:
                facts.append(None)
                addresses.append(0)
            elif isinstance(value, Tensor):
                address = value.data_ptr()
                addresses.append(address)
                facts += (value.shape, value.stride(), value.dtype, value.get_device(), address & 31)
            else:
                facts += (type(value), value if name in DECIDING and value in (0.0, 1.0) else None)
                addresses.append(0)
        A = operands["A"]
        facts.append(kernel_key(A))
    except (AttributeError, RuntimeError):
        form.prepare(form.complete(operands, options))  # says what is wrong
        raise
    key = tuple(facts)
    try:
        call = _calls.get(key)
    except TypeError:  # something unhashable: `prepare` says what
        call = None
    if call is None:
        given = [name for name, value in operands.items() if isinstance(value, Tensor)]
        request = form.complete(operands, options)
        call = Call(form, request, operands, given)
        if len(_calls) >= MAX_CALLS:
            _calls.clear()
        _calls[key] = call
    else:
        for name, shape, stride, dtype in call.allocated:
            operands[name] = (
                A.new_empty(shape, dtype=dtype) if stride is None else A.new_empty_strided(shape, stride, dtype=dtype)
            )
    if call.may_overlap(addresses):
        check_aliases(form.request(operands, *options))
    if call.has_indices and is_debugging():
        check_values(form.request(operands, *options))
    return call.run([*operands.values()])


def signature_of(tensor: object) -> object:
    """Everything about an optional operand that a plan depends on."""
    if not isinstance(tensor, torch.Tensor):
        return type(tensor)
    return (tensor.shape, tensor.stride(), tensor.dtype, tensor.get_device(), tensor.data_ptr() & 31)


def scalar_kind(value: object) -> object:
    """0.0 and 1.0 compile to less; other numbers share one kernel, tensors another per dtype."""
    if isinstance(value, torch.Tensor):
        return (value.shape, value.dtype, value.get_device())
    return type(value), value if value in (0.0, 1.0) else None


def check_values(request: GemmRequest) -> None:
    """In debug mode, the values of index vectors and offsets."""
    check_indices(request)
    check_scale_offsets(request)
    if request.batch_idx_permute is not None:
        check_permutation_values(request.batch_idx_permute)


class Call:
    """A plan, and which of a call's operands its kernel takes where."""

    __slots__ = (
        "a", "allocated", "arguments", "b", "c", "convert", "has_indices", "memory", "out", "partials", "plan", "ports",
    )  # fmt: skip

    def __init__(self, form: Form, request: GemmRequest, operands: Operands, given: list[str]):
        self.plan = plan = form.prepare(request)
        self.convert = None if request.out is operands["out"] else form.convert
        fresh = [(name, t) for name, t in operands.items() if isinstance(t, torch.Tensor) and name not in given]
        self.allocated = [(name, t.shape, None if t.is_contiguous() else t.stride(), t.dtype) for name, t in fresh]
        place = {name: i for i, name in enumerate(operands)}
        self.a, self.b, self.out = place["A"], place["B"], place["out"]
        self.c = None if request.used_c is None else place["C"]
        self.arguments = tuple(place[name] for name in ARGUMENTS if operands.get(name) is not None)
        self.has_indices = request.A_idx is not None or request.batch_idx_permute is not None
        self.has_indices = self.has_indices or (request.A_scale is not None and request.adapter != DENSE)
        self.ports: list[_Value] = []
        self.partials: list[tuple[str, int, bool]] = []  # name, place among the ports, whether it is transposed
        for port in (port for term in request.terms for port in term.ports):
            if port.value is Allocated.PARTIALS:
                is_swapped = plan.spec is not None and plan.spec.config.swap_ab
                self.partials.append((port.name, len(self.ports), is_swapped))
                extents = epilogue.partials_shape(port.kind, plan.finishing, plan.shape, plan.is_batched)
                self.ports.append((self.a, partial(_allocate, extents)))
            elif port.value is not None:
                self.ports.append((place[port.name], conversion(port)))
        self.ports += [(place[name], None) for name in plan.repeats]
        self.memory = _memory(request, operands, given)

    def may_overlap(self, addresses: list[int]) -> bool:
        """Whether an output and another operand share bytes, other than `out is C` does."""
        for i, j, bytes_i, bytes_j, may_be_equal in self.memory:
            first, second = addresses[i], addresses[j]
            if first < second + bytes_j and second < first + bytes_i and not (may_be_equal and first == second):
                return True
        return False

    def run(self, values: list[Any]) -> dict[str, torch.Tensor]:
        """Launch on the current stream, with operands that this was made for."""
        ports = None
        if self.ports:
            ports = tuple([values[i] if change is None else change(values[i]) for i, change in self.ports])
        arguments = tuple([values[i] for i in self.arguments]) or None
        C, out = None if self.c is None else values[self.c], values[self.out]
        if self.convert is not None:
            C, out = None if C is None else self.convert(C), self.convert(out)
        self.plan.run(values[self.a], values[self.b], C, out, ports, arguments)
        if not self.partials or ports is None:
            return {}
        return {name: ports[i].mT if is_swapped else ports[i] for name, i, is_swapped in self.partials}


def conversion(port: Port) -> Optional[Callable[[Any], Any]]:
    """What the kernel takes of a value on this port, None for the value itself."""
    if port.kind is not PortKind.SCALAR:
        return None
    if not isinstance(port.value, torch.Tensor):
        return float
    return None if port.value.dim() == 1 else _as_vector


def _as_vector(scalar: torch.Tensor) -> torch.Tensor:
    return scalar.reshape(1)


def _allocate(extents: tuple[int, ...], A: torch.Tensor) -> torch.Tensor:
    return epilogue.allocate_partials(extents, A)


def _memory(request: GemmRequest, operands: Operands, given: list[str]) -> list[tuple[int, int, int, int, bool]]:
    """The pairs of an output and something else that were given: places, bytes, and whether they may be the same matrix."""
    out, C = request.out, request.C
    tiles = {
        p.name for term in (*request.leading, *request.epilogue) for p in term.ports if p.kind is PortKind.TILE_OUTPUT
    }
    may_be_c = C is not None and (out.stride(), out.dtype) == (C.stride(), C.dtype)
    may_be_c = may_be_c and request.is_concat("C") == request.is_concat("out")
    tensors = [
        (i, name, t) for i, (name, t) in enumerate(operands.items()) if name in given and isinstance(t, torch.Tensor)
    ]
    pairs = []
    for i, name, output in tensors:
        if name == "out" or name in tiles:
            for j, other_name, other in tensors:
                if j != i and not (j < i and (other_name == "out" or other_name in tiles)):
                    is_c = may_be_c and name == "out" and other_name == "C"
                    pairs.append((i, j, byte_span(output), byte_span(other), is_c))
    return pairs
