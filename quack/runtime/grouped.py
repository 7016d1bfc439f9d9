"""Grouped GEMMs: problems of different sizes in few launches, from tables of addresses; no operand is copied or padded.

`prepare_grouped` decides everything that follows from shapes, strides and dtypes, once: a `GroupedProgram`. Problems that
the same compiled code can run (majors, alignment, dtypes, epilogue) share a launch. Running it needs a table of addresses
on the device (`BoundTables`), which is written once for each set of addresses and never changed afterwards, so launches on
several streams, and replays of CUDA graphs, cannot disturb each other.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Optional, Union

import numpy as np
import torch

from .. import heuristics
from ..gemm_config import TMA_ALIGN_BYTES, GemmConfig, OperandSpec
from ..gemm_port import GROUPED_WORDS, EpilogueOpSpec, PortKind, PortSource, present_ports
from ..split_k import SplitKMode
from .device import EMULATED, Device, device_of, is_capturing, raw_stream, reachable, tile_counter
from .dispatch import get_function
from .epilogue import Term
from .legality import legality
from .operands import aligned_copy, byte_span
from .plan import GemmRequest, clusters_to_launch, describe_request
from .residency import cluster_count
from .spec import GROUPED, GemmShape, GemmSpec, UnsupportedGemm
from .split_k import COMBINE, SplitPlan, check_split, split_spec, streams

Tensors = Sequence[torch.Tensor]
Pointers = tuple[int, ...]
Layout = tuple[tuple[int, ...], tuple[int, ...]]  # shape, strides
OPERAND_WORD, BIAS_WORD = 4, 12  # see `grouped_adapter`
TABLE_BYTES = 8 * GROUPED_WORDS
VECTORS = (PortKind.ROW_VECTOR, PortKind.COL_VECTOR)
DESCRIPTORS = 4  # per problem
MAX_TABLES = 16  # sets of addresses that a program remembers
NOTHING = contextlib.nullcontext()
_captured: list["BoundTables"] = []  # a CUDA graph may replay at any time: what it reads lives as long as the process

data_ptr = torch.Tensor.data_ptr


class GroupedTensors(NamedTuple):
    """One tensor per problem; C and bias are None or complete."""

    A: tuple[torch.Tensor, ...]
    B: tuple[torch.Tensor, ...]
    out: tuple[torch.Tensor, ...]
    C: Optional[tuple[torch.Tensor, ...]] = None
    bias: Optional[tuple[torch.Tensor, ...]] = None

    def flat(self) -> tuple[torch.Tensor, ...]:
        return tuple(tensor for family in self if family is not None for tensor in family)


@dataclass(frozen=True)
class GroupedOptions:
    """What all problems share; as in `GemmRequest`."""

    alpha: Union[float, torch.Tensor] = 1.0
    beta: Union[float, torch.Tensor] = 1.0
    fast_accum: bool = False
    config: Optional[GemmConfig] = None
    dynamic: Optional[bool] = None  # None: if the problems differ in K
    epilogue: tuple[Term, ...] = ()  # a user's, see `user_epilogue.grouped_terms`
    split_k: Optional[int] = None  # None: 1
    split_k_mode: SplitKMode = SplitKMode.SERIAL


class BoundTables:
    """The device tables of one launch for one set of addresses. Immutable once its first launch has run."""

    def __init__(self, rows: np.ndarray, device: torch.device, sums_up: bool):
        self.staging = torch.from_numpy(rows)
        self.descriptors = _aligned_rows(DESCRIPTORS * len(rows), device)
        # Of a second launch, whose boxes differ.
        self.sum_descriptors = _aligned_rows(DESCRIPTORS * len(rows), device) if sums_up else None
        self.table = _aligned_rows(len(rows), device)
        self.device = self.table.get_device()
        if device.type == "cuda":
            self.staging = self.staging.pin_memory()  # the copy reads it later, a graph at every replay
        self.table.copy_(self.staging, non_blocking=True)
        self.stream = raw_stream(self.device)
        self.written: Optional[torch.cuda.Event] = None

    def use(self) -> None:
        """Before every launch but the first: order the current stream behind the one that wrote the tables. Not while
        capturing, for an event from outside cannot be captured; captures begin on an idle device (`torch.cuda.graph`)."""
        if raw_stream(self.device) == self.stream or self.written is None or is_capturing(self.device):
            return
        current = torch.cuda.current_stream(self.device)
        current.wait_event(self.written)
        self.table.record_stream(current)
        self.descriptors.record_stream(current)
        if self.sum_descriptors is not None:
            self.sum_descriptors.record_stream(current)

    def mark_written(self) -> None:
        """After the first launch."""
        if self.device != EMULATED and not is_capturing(self.device):
            self.written = torch.cuda.current_stream(self.device).record_event()


class GroupedLaunch:
    """The problems that one compiled function runs, in the order of its table: longest K first."""

    def __init__(self, spec: GemmSpec, device: Device, problems: list["Problem"], options: GroupedOptions):
        legality(spec).require()
        if streams(options.split_k, options.split_k_mode):
            legality(split_spec(spec, options.split_k_mode)).require()
        config = spec.config
        self.spec = spec
        self.problems = sorted(problems, key=lambda p: -p.shape.k)
        works = sum(_works(p.shape, config) for p in self.problems)
        self.clusters = max(1, clusters_to_launch(spec, device.sms, works))
        splits = min(options.split_k or 1, cluster_count(config, device.sms))
        self.split: Optional[SplitPlan] = None
        if splits > 1:
            self.split = SplitPlan(spec, options.split_k_mode, works, splits, device)
        self.function = get_function(spec, device.is_emulated) if self.split is None else self.split.function
        self.is_counted = config.is_dynamic_persistent and (self.split is not None or not spec.cancels)
        self.device = device.ordinal
        self.template, self.template_has_k = self.problems[0].index, self.problems[0].shape.k > 0
        a, b = self.spec.operands.a, self.spec.operands.b
        self.a_spec, self.b_spec = (b, a) if config.swap_ab else (a, b)
        self.rows = np.array([self._static_row(p) for p in self.problems], dtype=np.int64)
        self.scalars = [port.kind not in VECTORS for port in present_ports(spec.epilogue)]

    def _static_row(self, problem: "Problem") -> list[int]:
        """Everything but the addresses; kernel roles, so A and B trade places with swap_ab."""
        operands = self.spec.operands
        row = [0] * GROUPED_WORDS
        row[:3] = problem.shape.m, problem.shape.n, problem.shape.k
        names = ("B", "A", "C", "out") if self.spec.config.swap_ab else ("A", "B", "C", "out")
        for i, (spec, name) in enumerate(zip((operands.a, operands.b, operands.c, operands.d), names)):
            if spec is not None:
                row[OPERAND_WORD + 2 * i + 1] = _pitch(spec, *problem.layouts[name])
        return row

    def bind(self, tensors: GroupedTensors) -> "BoundLaunch":
        """Write the addresses of `tensors` to the device."""
        rows = self.rows.copy()
        swapped = self.spec.config.swap_ab
        families = [tensors.A, tensors.B, tensors.C, tensors.out, tensors.bias]
        if swapped:
            families[0], families[1] = families[1], families[0]
        words = [OPERAND_WORD, OPERAND_WORD + 2, OPERAND_WORD + 4, OPERAND_WORD + 6, BIAS_WORD]
        for family, word in zip(families, words):
            if family is not None:
                rows[:, word] = [family[p.index].data_ptr() for p in self.problems]
        sums_up = self.split is not None and self.split.sum_up is not None
        return BoundLaunch(self, BoundTables(rows, tensors.out[0].device, sums_up))

    def templates(self, tensors: GroupedTensors) -> tuple[Any, ...]:
        """A, B, C and D of one problem in kernel roles, from which the host encodes descriptors."""
        index = self.template
        a, b, d = tensors.A[index], tensors.B[index], tensors.out[index]
        if not self.template_has_k:  # empty tensors have no useful address, and are not read
            a, b = aligned_copy(a, self.a_spec), aligned_copy(b, self.b_spec)
        c = None if tensors.C is None or self.spec.operands.c is None else tensors.C[index]
        return (b, a, c, d) if self.spec.config.swap_ab else (a, b, c, d)

    def ports(self, values: Optional[tuple[Any, ...]], tables: BoundTables) -> Optional[tuple[Any, ...]]:
        """Scalars as they are, vectors as the column of the table that has their addresses."""
        if values is None:
            return None
        return tuple(v if is_scalar else tables.table[:, BIAS_WORD] for v, is_scalar in zip(values, self.scalars))


class BoundLaunch:
    """A launch with its addresses: only the ports are still open."""

    __slots__ = ("is_first", "launch", "tables")

    def __init__(self, launch: GroupedLaunch, tables: BoundTables):
        self.launch, self.tables = launch, tables
        self.is_first = True

    def run(self, ports: Optional[tuple[Any, ...]], tensors: GroupedTensors) -> None:
        """On the current stream. tensors: those that it was bound to."""
        if not self.is_first:
            self.tables.use()
        self.call(*self.arguments(ports, tensors))
        if self.is_first:
            self.tables.mark_written()
            self.is_first = False

    def arguments(self, ports: Optional[tuple[Any, ...]], tensors: GroupedTensors) -> tuple[Any, ...]:
        """What `call` takes; the same at every launch but the first."""
        launch, tables = self.launch, self.tables
        problem = (tables.table, tables.descriptors, int(self.is_first))
        return *launch.templates(tensors), problem, launch.ports(ports, tables), tensors

    def call(self, a: Any, b: Any, c: Any, d: Any, problem: Any, ports: Any, tensors: GroupedTensors) -> None:
        """Launch on the current stream, which must be ordered behind the writing of the tables."""
        launch = self.launch
        counter = tile_counter(launch.device) if launch.is_counted else None
        with reachable(tensors.flat()) if launch.device == EMULATED else NOTHING:
            if launch.split is None:
                launch.function(a, b, c, d, problem, ports, counter, launch.clusters)
            else:
                table, _, is_new = problem
                sum_problem = (table, self.tables.sum_descriptors, is_new)
                launch.split.run((a, b, c, d), problem, ports, counter, sum_problem)


@dataclass(frozen=True)
class Problem:
    """One problem of a program. shape: its extents in kernel terms; layouts: of A, B, out and C, as the kernel reads them."""

    index: int
    shape: GemmShape
    layouts: dict[str, Layout]


class GroupedProgram:
    """Runs any tensors with the shapes, strides, dtypes and alignment it was made for."""

    def __init__(self, launches: list[GroupedLaunch], copies: list[tuple[str, int, OperandSpec]]):
        self.launches = launches
        self.copies = copies  # inputs that TMA cannot address: (family, problem, layout of the copy)
        self.bound: OrderedDict[Pointers, list[BoundLaunch]] = OrderedDict()

    def run(self, tensors: GroupedTensors, ports: Optional[tuple[Any, ...]]) -> list[BoundLaunch]:
        """On the current stream; tables for these addresses are written if there are none yet."""
        for family, index, spec in self.copies:
            inputs = list(getattr(tensors, family))
            inputs[index] = aligned_copy(inputs[index], spec)
            tensors = tensors._replace(**{family: tuple(inputs)})
        pointers = tuple(map(data_ptr, tensors.flat()))
        bound = self.bound.get(pointers)
        captures = bool(tensors.out) and is_capturing(tensors.out[0].get_device())
        if bound is None:
            check_disjoint(tensors)
            bound = [launch.bind(tensors) for launch in self.launches]
            if not captures:  # what is captured is only written when the graph runs
                self.bound[pointers] = bound
                if len(self.bound) > MAX_TABLES:
                    self.bound.popitem(last=False)
        if captures:
            _captured.extend(b.tables for b in bound)
        for launch in bound:
            launch.run(ports, tensors)
        return bound


def prepare_grouped(tensors: GroupedTensors, options: GroupedOptions) -> GroupedProgram:
    """Validate, choose, compile or load. Errors as of `plan.prepare`, with the number of the problem."""
    check_split(options.split_k, options.split_k_mode)
    classes: dict[GemmSpec, list[tuple[Problem, GemmSpec]]] = {}
    copies = []
    for index in range(len(tensors.A)):
        request = problem_request(tensors, options, index)
        try:
            shape, base, swapped, (copy_a, copy_b) = describe_request(request)
        except UnsupportedGemm as error:
            raise UnsupportedGemm(f"problem {index}: {error.reason}", error.alternative) from None
        except (ValueError, TypeError) as error:
            raise type(error)(f"problem {index}: {error}") from None
        if 0 in (shape.m, shape.n):
            continue
        copied = {
            "A": base.operands.a if copy_a and shape.k else None,
            "B": base.operands.b if copy_b and shape.k else None,
        }
        copies += [(family, index, spec) for family, spec in copied.items() if spec is not None]
        operands = {"A": request.A, "B": request.B, "out": request.out, "C": request.used_c}
        layouts = {n: _layout_as_read(t, copied.get(n)) for n, t in operands.items() if t is not None}
        assert swapped is not None  # the terms of a grouped call all have a form for D^T
        base, swapped = _grouped(base), _grouped(swapped)
        classes.setdefault(base, []).append((Problem(index, shape, layouts), swapped))
    launches = []
    device = device_of(tensors.A[0]) if tensors.A else None
    for base, members in classes.items():
        assert device is not None
        swapped = members[0][1].on(device.arch, device.target)
        problems = [problem for problem, _ in members]
        try:
            spec = choose(base.on(device.arch, device.target), swapped, [p.shape for p in problems], options, device)
            if spec.config.swap_ab:
                problems = [replace(p, shape=p.shape.swapped()) for p in problems]
            launches.append(GroupedLaunch(spec, device, problems, options))
        except UnsupportedGemm as error:
            raise UnsupportedGemm(f"problem {problems[0].index}: {error.reason}", error.alternative) from None
    return GroupedProgram(launches, copies)


def choose(
    base: GemmSpec, swapped: GemmSpec, shapes: list[GemmShape], options: GroupedOptions, device: Device
) -> GemmSpec:
    """The pinned configuration, or the best predicted one."""
    if options.config is not None:
        chosen = swapped if options.config.swap_ab else base
        return chosen.configured(options.config)
    splits = (options.split_k or 1) > 1 or streams(options.split_k, options.split_k_mode)
    combine = COMBINE[options.split_k_mode] if splits else None  # asks more of a configuration
    base, swapped = replace(base, combine=combine), replace(swapped, combine=combine)
    spec = replace(heuristics.choose_grouped(base, shapes, device.sms, swapped), combine=None)
    dynamic = options.dynamic
    if dynamic is None:
        dynamic = len({shape.k for shape in shapes}) > 1
    return replace(spec, config=replace(spec.config, is_dynamic_persistent=dynamic))


def problem_request(tensors: GroupedTensors, options: GroupedOptions, index: int) -> GemmRequest:
    """One problem as if it were alone."""
    c = None if tensors.C is None else tensors.C[index]
    bias = None if tensors.bias is None else tensors.bias[index]
    operands = (tensors.A[index], tensors.B[index], tensors.out[index], c, bias)
    scalars = (options.alpha, options.beta)
    return GemmRequest(*operands, *scalars, options.fast_accum, options.config, epilogue=options.epilogue)


def check_disjoint(tensors: GroupedTensors) -> None:
    """No out may share memory with another out, or with an input other than its own C."""
    spans = []  # (first byte, last byte + 1, is_out, problem, name, tensor)
    for name, family in zip(GroupedTensors._fields, tensors):
        for index, tensor in enumerate(family or ()):
            size = byte_span(tensor)
            if size:
                spans.append((tensor.data_ptr(), tensor.data_ptr() + size, name, index, tensor))
    spans.sort(key=lambda span: span[:2])
    open_spans: list[Any] = []
    for span in spans:
        open_spans = [other for other in open_spans if other[1] > span[0]]
        for other in open_spans:
            if "out" not in (span[2], other[2]) or _is_own_c(span, other) or _are_disjoint_columns(span, other):
                continue
            out, peer = (span, other) if span[2] == "out" else (other, span)
            raise ValueError(f"out_list[{out[3]}] overlaps {peer[2]}_list[{peer[3]}] in memory: pass an out of its own")
        open_spans.append(span)


def _is_own_c(x: Any, y: Any) -> bool:
    """C of the same problem, the same tensor as out (in place)."""
    same = x[3] == y[3] and {x[2], y[2]} == {"C", "out"}
    return same and x[0] == y[0] and x[4].stride() == y[4].stride() and x[4].dtype == y[4].dtype


def _are_disjoint_columns(x: Any, y: Any) -> bool:
    """Slices of rows of one pitch whose columns do not meet, although their address ranges do."""
    pitches = {max(t.stride()) * t.element_size() for t in (x[4], y[4])}
    if len(pitches) != 1 or x[4].dim() != 2 or y[4].dim() != 2:
        return False
    pitch = pitches.pop()
    widths = []
    for tensor in (x[4], y[4]):
        unit = tensor.stride().index(min(tensor.stride()))
        if tensor.stride(unit) != 1:
            return False
        widths.append(tensor.shape[unit] * tensor.element_size())
    offset = (y[0] - x[0]) % pitch
    return widths[0] <= offset and offset + widths[1] <= pitch


def _grouped(spec: GemmSpec) -> GemmSpec:
    """The dense spec of one problem as part of a group: vectors come through tables."""
    ops = tuple(
        EpilogueOpSpec(
            op.mixin,
            tuple(replace(p, source=PortSource.TABLE) if p.kind in VECTORS else p for p in op.ports),
            op.statics,
        )
        for op in spec.epilogue
    )
    return replace(spec, adapter=GROUPED, epilogue=ops)


def _layout_as_read(tensor: torch.Tensor, copy: Optional[OperandSpec]) -> Layout:
    """Of the tensor, or of its aligned copy."""
    if copy is None:
        return tuple(tensor.shape), tensor.stride()
    like = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return tuple(tensor.shape), aligned_copy(like, copy).stride()


def _pitch(spec: OperandSpec, shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements between neighbours of the strided mode; a legal number where there are no neighbours."""
    strided = 1 - spec.unit_stride_dim
    if shape[strided] > 1:
        return strides[strided]
    per_row = TMA_ALIGN_BYTES // spec.dtype.bytes
    return max(1, -(-shape[1 - strided] // per_row)) * per_row


def _works(shape: GemmShape, config: GemmConfig) -> int:
    """Cluster tiles."""
    return -(-shape.m // (config.cta_tile_m * config.cluster_m)) * -(-shape.n // (config.tile_n * config.cluster_n))


def _aligned_rows(rows: int, device: torch.device) -> torch.Tensor:
    """(rows, 16) int64, uninitialised, at a multiple of 128 bytes (what TMA asks of descriptors)."""
    buffer = torch.empty((rows + 1) * GROUPED_WORDS, dtype=torch.int64, device=device)
    skip = -buffer.data_ptr() % TABLE_BYTES // 8
    return buffer[skip : skip + rows * GROUPED_WORDS].view(rows, GROUPED_WORDS)
