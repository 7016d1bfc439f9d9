"""Grouped GEMMs: problems of different sizes in few launches, from tables of addresses; no operand is copied or padded.

`prepare_grouped` decides everything that follows from shapes, strides and dtypes, once: a `GroupedProgram`. Problems that
the same compiled code can run (majors, alignment, dtypes, epilogue) share a launch. Running it needs a table of addresses
on the device (`BoundTables`), which is written once for each set of addresses and never changed afterwards, so launches on
several streams, and replays of CUDA graphs, cannot disturb each other.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Optional

import numpy as np
import torch

from .. import heuristics
from ..gemm_config import GemmConfig, OperandSpec
from ..gemm_port import EpilogueOpSpec, PortKind, PortSource, numbered_ports
from ..grouped_table import TableLayout, Word, table_layout
from .call import conversion
from .device import EMULATED, Device, device_of, is_capturing, reachable, tile_counter
from .dispatch import get_function
from .epilogue import Allocated
from .grouped_aliases import check_disjoint
from .grouped_call import Families, GroupedCall, LaunchOptions
from .grouped_partials import PartialsLayout, PartialsMemory
from .grouped_tables import BoundTables, pitch_of
from .legality import legality
from .operands import aligned_copy
from .plan import GemmRequest, clusters_to_launch, describe_request
from .residency import cluster_count
from .scales import Scales, as_stored
from .spec import GROUPED, GemmShape, GemmSpec, UnsupportedGemm
from .split_k import COMBINE, SplitPlan, check_split, split_spec, streams

Pointers = tuple[int, ...]
Layout = tuple[tuple[int, ...], tuple[int, ...]]  # shape, strides
NUMBERS = (PortKind.SCALAR, PortKind.INTEGER)  # ports that all problems share
MAX_TABLES = 16  # sets of addresses that a program remembers
MAX_PROGRAMS = 256
NOTHING = contextlib.nullcontext()
_captured: list[Any] = []  # a CUDA graph may replay at any time: what it reads and writes lives as long as the process
_programs: OrderedDict[tuple, "GroupedProgram"] = OrderedDict()

data_ptr = torch.Tensor.data_ptr


class PortValue(NamedTuple):
    """A port of a call. kind: as the caller has it; convert: what the kernel takes of a number, if not itself."""

    name: str
    kind: PortKind
    convert: Optional[Callable[[Any], Any]] = None


@dataclass(frozen=True)
class Problem:
    """One problem of a program. shape: its extents in kernel terms; layouts: of its matrices as the kernel reads them, by operand."""

    index: int
    shape: GemmShape
    layouts: dict[str, Layout]


class GroupedLaunch:
    """The problems that one compiled function runs, in the order of its table: longest K first.

    ports: those that are present, in the order of the mixins. convert: as of the form, for C and out.
    """

    def __init__(
        self,
        spec: GemmSpec,
        device: Device,
        problems: list[Problem],
        options: LaunchOptions,
        ports: tuple[PortValue, ...],
        convert: Optional[Callable[[torch.Tensor], torch.Tensor]],
    ):
        legality(spec).require()
        if streams(options.split_k, options.split_k_mode):
            legality(split_spec(spec, options.split_k_mode)).require()
        config = spec.config
        self.spec, self.mode, self.ports, self.convert = spec, options.split_k_mode, ports, convert
        self.problems = sorted(problems, key=lambda p: -p.shape.k)
        works = sum(_works(p.shape, config) for p in self.problems)
        self.clusters = max(1, clusters_to_launch(spec, device.sms, works))
        splits = min(options.split_k or 1, cluster_count(config, device.sms))
        self.split: Optional[SplitPlan] = None
        if splits > 1:
            self.split = SplitPlan(spec, options.split_k_mode, works, splits, device)
        self.finishing = spec if self.split is None else self.split.finishing
        self.function = get_function(spec, device.is_emulated) if self.split is None else self.split.function
        self.is_counted = config.is_dynamic_persistent and (self.split is not None or not spec.cancels)
        self.device = device.ordinal
        self.template, self.template_has_k = self.problems[0].index, self.problems[0].shape.k > 0
        a, b = self.spec.operands.a, self.spec.operands.b
        self.a_spec, self.b_spec = (b, a) if config.swap_ab else (a, b)
        self.scales = Scales.in_one_row() if spec.operands.is_scaled else None
        self.table: TableLayout = table_layout(spec.operands, spec.epilogue)
        self.names = self._names()
        self.rows = np.array([self._static_row(p) for p in self.problems], dtype=np.int64)
        self.partial_words: dict[int, np.ndarray] = {}  # by word of the table: where in the buffer the partials begin

    def _names(self) -> dict[int, str]:
        """By word of the table, the operand whose address that is."""
        swapped = self.spec.config.swap_ab
        operands = {"a": "B" if swapped else "A", "b": "A" if swapped else "B", "c": "C", "d": "out"}
        operands |= {f"{key}_scale": f"{operands[key]}_scale" for key in ("a", "b")}
        found = {slot.word: operands[key] for key, slot in self.table.slots.items() if isinstance(key, str)}
        for (port_id, _), port in zip(numbered_ports(self.spec.epilogue), self.ports, strict=True):
            slot = self.table.slots.get(port_id)
            if slot is not None and port_id.kind not in (PortKind.ROW_PARTIALS, PortKind.COL_PARTIALS):
                found[slot.word] = port.name
        return found

    def _static_row(self, problem: Problem) -> list[int]:
        """Everything but the addresses, and the pitches of partials; kernel roles, so A and B trade places with swap_ab."""
        row = [0] * self.table.words
        row[Word.M], row[Word.N], row[Word.K] = problem.shape.m, problem.shape.n, problem.shape.k
        row[Word.NUMBER] = problem.index
        layouts = {port_id: port.layout for port_id, port in numbered_ports(self.spec.epilogue)}
        for key, slot in self.table.slots.items():
            if slot.pitch is None:
                continue
            spec: Optional[OperandSpec]
            spec = getattr(self.spec.operands, key) if isinstance(key, str) else layouts[key]
            if spec is not None:
                row[slot.pitch] = pitch_of(spec, *problem.layouts[self.names[slot.word]])
        return row

    def place_partials(self, layout: PartialsLayout) -> None:
        """Find room for the partials of this launch, and note where that is."""
        swapped = self.spec.config.swap_ab
        problems = [(p.index, p.shape.swapped() if swapped else p.shape) for p in self.problems]
        row_of = {p.index: row for row, p in enumerate(self.problems)}
        for (port_id, _), port in zip(numbered_ports(self.spec.epilogue), self.ports):
            if port.kind not in (PortKind.ROW_PARTIALS, PortKind.COL_PARTIALS):
                continue
            slot = self.table.slots[port_id]
            words = self.partial_words[slot.word] = np.zeros(len(self.problems), dtype=np.int64)
            for strip in layout.place(port.name, port.kind, self.finishing, problems):
                for share in strip.shares:
                    words[row_of[share.problem]] = strip.word(share)
                    self.rows[row_of[share.problem], slot.pitch] = strip.pitch

    def bind(self, families: Families, memory: Optional[PartialsMemory]) -> "BoundLaunch":
        """Write the addresses to the device."""
        rows = self.rows.copy()
        for word, name in self.names.items():
            family = families[name]
            rows[:, word] = [family[p.index].data_ptr() for p in self.problems]
        for word, places in self.partial_words.items():
            assert memory is not None
            rows[:, word] = memory.buffer.data_ptr() + memory.buffer.element_size() * places
        counts = [self.table.descriptors]
        if self.split is not None and self.split.sum_up is not None:  # the first of two launches has fewer matrices
            first = split_spec(self.spec, self.mode)
            counts.insert(0, table_layout(first.operands, first.epilogue).descriptors)
        return BoundLaunch(self, BoundTables(rows, families["out"][0].device, *counts))

    def scale_templates(self, families: Families) -> tuple[torch.Tensor, ...]:
        """The scales of A and B of that problem in kernel roles, if there are any."""
        if self.scales is None:
            return ()
        a, b = (families[name][self.template] for name in ("A_scale", "B_scale"))
        return self.scales.words_of(a, b, self.spec.config.swap_ab)

    def templates(self, families: Families) -> tuple[Any, ...]:
        """A, B, C and D of one problem in kernel roles, from which the host encodes descriptors."""
        index = self.template
        a, b, d = families["A"][index], families["B"][index], families["out"][index]
        if not self.template_has_k:  # empty tensors have no useful address, and are not read
            a, b = aligned_copy(a, self.a_spec), aligned_copy(b, self.b_spec)
        if self.scales is not None:
            a, b = as_stored(a), as_stored(b)
        c = families["C"][index] if self.spec.operands.c is not None else None
        if self.convert is not None:
            c, d = None if c is None else self.convert(c), self.convert(d)
        return (b, a, c, d) if self.spec.config.swap_ab else (a, b, c, d)

    def port_arguments(self, families: Families, shared: dict[str, Any]) -> Optional[tuple[Any, ...]]:
        """Numbers, and of tiles those of the template; the kernel finds all others in the table."""
        values: list[Any] = []
        for name, kind, convert in self.ports:
            if kind in NUMBERS:
                values.append(shared[name] if convert is None else convert(shared[name]))
            elif kind.is_tile:
                values.append(families[name][self.template])
        return tuple(values) or None


class BoundLaunch:
    """A launch with its addresses: only the numbers on ports are still open."""

    __slots__ = ("is_first", "launch", "tables")

    def __init__(self, launch: GroupedLaunch, tables: BoundTables):
        self.launch, self.tables = launch, tables
        self.is_first = True

    def run(self, families: Families, shared: dict[str, Any], reached: tuple[torch.Tensor, ...]) -> None:
        """On the current stream. families: those that it was bound to; reached: all memory that the kernel finds by address."""
        if not self.is_first:
            self.tables.use()
        self.call(*self.arguments(families, shared, reached))
        if self.is_first:
            self.tables.mark_written()
            self.is_first = False

    def arguments(self, families: Families, shared: dict[str, Any], reached: tuple[torch.Tensor, ...]) -> tuple:
        """What `call` takes; the same at every launch but the first."""
        launch, tables = self.launch, self.tables
        problem = (*launch.scale_templates(families), tables.table, tables.descriptors, int(self.is_first))
        return *launch.templates(families), problem, launch.port_arguments(families, shared), reached

    def call(self, a: Any, b: Any, c: Any, d: Any, problem: Any, ports: Any, reached: Any) -> None:
        """Launch on the current stream, which must be ordered behind the writing of the tables."""
        launch = self.launch
        counter = tile_counter(launch.device) if launch.is_counted else None
        with reachable(reached) if launch.device == EMULATED else NOTHING:
            if launch.split is None:
                launch.function(a, b, c, d, problem, ports, counter, launch.clusters)
            else:
                *scales, table, _, is_new = problem
                sum_problem = (*scales, table, self.tables.sum_descriptors, is_new)
                launch.split.run((a, b, c, d), problem, ports, counter, sum_problem)


class GroupedProgram:
    """Runs any tensors with the shapes, strides, dtypes and alignment it was made for.

    copies: inputs that TMA cannot address: (operand, problem, layout of the copy). allocated: outputs that a call allocates, by
    operand: (shape, strides or None, dtype) of each problem. outputs: operands that are written.
    """

    def __init__(self, launches: list[GroupedLaunch], partials: PartialsLayout):
        self.launches, self.partials = launches, partials
        self.copies: list[tuple[str, int, OperandSpec]] = []
        self.allocated: dict[str, list[tuple]] = {}
        self.outputs = frozenset(
            ["out", *(p.name for launch in launches for p in launch.ports if p.kind is PortKind.TILE_OUTPUT)]
        )
        self.bound: OrderedDict[Pointers, list[BoundLaunch]] = OrderedDict()
        for launch in launches:
            launch.place_partials(partials)

    def complete(self, call: GroupedCall) -> Families:
        """The lists of a call, with new tensors for those outputs that it leaves to us."""
        families = dict(call.lists)
        like = families["A"][0]
        for name, tensors in self.allocated.items():
            families[name] = tuple(
                like.new_empty(shape, dtype=dtype)
                if steps is None
                else like.new_empty_strided(shape, steps, dtype=dtype)
                for shape, steps, dtype in tensors
            )
        return families

    def new_memory(self, call: GroupedCall) -> Optional[PartialsMemory]:
        """Room for the partials of a call, None without any."""
        if not self.partials.ports:
            return None
        return PartialsMemory(self.partials, call.totals, call.lists["A"][0], call.problems)

    def run(self, call: GroupedCall, families: Families, memory: Optional[PartialsMemory]) -> list[BoundLaunch]:
        """On the current stream; tables for these addresses are written if there are none yet."""
        families = self.with_copies(families)
        reached = reached_by(families, memory)
        pointers = tuple(map(data_ptr, reached))
        bound = self.bound.get(pointers)
        captures = bool(families["out"]) and is_capturing(families["out"][0].get_device())
        if bound is None:
            check_disjoint(families, {operand: name for name, operand in call.names.items()}, self.outputs)
            bound = [launch.bind(families, memory) for launch in self.launches]
            if not captures:  # what is captured is only written when the graph runs
                self.bound[pointers] = bound
                if len(self.bound) > MAX_TABLES:
                    self.bound.popitem(last=False)
        if captures:
            _captured.extend(b.tables for b in bound)
            _captured.append(memory)
        for launch in bound:
            launch.run(families, call.shared, reached)
        if memory is not None:
            memory.finish()
        return bound

    def with_copies(self, families: Families) -> Families:
        """With copies of those inputs that TMA cannot address."""
        for name, index, spec in self.copies:
            inputs = list(families[name])
            inputs[index] = aligned_copy(inputs[index], spec)
            families = families | {name: tuple(inputs)}
        return families


def reached_by(families: Families, memory: Optional[PartialsMemory]) -> tuple[torch.Tensor, ...]:
    """All tensors whose addresses a program puts into tables."""
    own = () if memory is None else (memory.buffer,)
    return *(tensor for family in families.values() for tensor in family), *own


def program_of(call: GroupedCall) -> tuple[GroupedProgram, Families]:
    """The program for such a call, from the cache if there was one, and its lists with outputs."""
    key = call.key()
    try:
        program = _programs.get(key)
    except TypeError:  # something unhashable: `prepare_grouped` says what
        program = None
    if program is not None:
        return program, program.complete(call)
    program, families = prepare_grouped(call)
    _programs[key] = program
    if len(_programs) > MAX_PROGRAMS:
        _programs.popitem(last=False)
    return program, families


class _Described(NamedTuple):
    """A problem, the spec of D^T if there is one, its request, and how C and out of the call become the request's, if they do."""

    problem: Problem
    swapped: Optional[GemmSpec]
    request: GemmRequest
    convert: Optional[Callable[[torch.Tensor], torch.Tensor]]


def prepare_grouped(call: GroupedCall) -> tuple[GroupedProgram, Families]:
    """Validate, choose, compile or load; the program and the lists with outputs. Errors as of `plan.prepare`, with the number of the
    problem."""
    options = call.launch
    check_split(options.split_k, options.split_k_mode)
    if not isinstance(options.config, (GemmConfig, type(None))):
        raise TypeError(f"config is a {type(options.config).__name__}, expected a GemmConfig")
    classes: dict[GemmSpec, list[_Described]] = {}
    copies: list[tuple[str, int, OperandSpec]] = []
    partials = PartialsLayout()
    allocated: dict[str, list[torch.Tensor]] = {}
    for index in range(call.problems):
        operands = call.operands(index)
        try:
            request = call.form.complete(operands, call.options)
            shape, base, swapped, (copy_a, copy_b) = describe_request(request)
        except UnsupportedGemm as error:
            raise UnsupportedGemm(f"problem {index}: {error.reason}", error.alternative) from None
        except (ValueError, TypeError) as error:
            raise type(error)(f"problem {index}: {error}") from None
        for name, value in operands.items():
            if isinstance(value, torch.Tensor) and name not in call.lists and value is not call.shared.get(name):
                allocated.setdefault(name, []).append(value)
        if 0 in (shape.m, shape.n):
            for port in _ports(request):
                if port.kind in (PortKind.ROW_PARTIALS, PortKind.COL_PARTIALS):
                    partials.skip(port.name, port.kind, index, shape)
            continue
        copied = {
            "A": base.operands.a if copy_a and shape.k else None,
            "B": base.operands.b if copy_b and shape.k else None,
        }
        copies += [(name, index, spec) for name, spec in copied.items() if spec is not None]
        layouts = {n: _layout_as_read(t, copied.get(n)) for n, t in _matrices(request).items()}
        swapped = None if swapped is None else _grouped(swapped)
        convert = None if request.out is operands["out"] else call.form.convert
        described = _Described(Problem(index, shape, layouts), swapped, request, convert)
        classes.setdefault(_grouped(base), []).append(described)
    device = device_of(call.lists["A"][0])
    launches = [_launch(base, members, call, device) for base, members in classes.items()]
    program = GroupedProgram(launches, partials)
    program.copies = copies
    program.allocated = {
        name: [(t.shape, None if t.is_contiguous() else t.stride(), t.dtype) for t in tensors]
        for name, tensors in allocated.items()
    }
    return program, call.lists | {name: tuple(tensors) for name, tensors in allocated.items()}


def _launch(base: GemmSpec, members: list[_Described], call: GroupedCall, device: Device) -> GroupedLaunch:
    """Of problems of one kind."""
    problems, request, swapped = [m.problem for m in members], members[0].request, members[0].swapped
    base = base.on(device.arch, device.target)
    swapped = None if swapped is None else swapped.on(device.arch, device.target)
    try:
        spec = choose(base, swapped, [p.shape for p in problems], call.launch, device)
        if spec.config.swap_ab:
            problems = [replace(p, shape=p.shape.swapped()) for p in problems]
        return GroupedLaunch(spec, device, problems, call.launch, _ports(request), members[0].convert)
    except UnsupportedGemm as error:
        raise UnsupportedGemm(f"problem {problems[0].index}: {error.reason}", error.alternative) from None


def choose(
    base: GemmSpec, swapped: Optional[GemmSpec], shapes: list[GemmShape], options: LaunchOptions, device: Device
) -> GemmSpec:
    """The pinned configuration, or the best predicted one. swapped: None if the epilogue has no form for D^T."""
    if options.config is not None:
        if options.config.swap_ab and swapped is None:
            raise UnsupportedGemm("the epilogue has no form for D^T, which swap_ab computes", "swap_ab=False")
        chosen = swapped if options.config.swap_ab and swapped is not None else base
        return chosen.configured(options.config)
    splits = (options.split_k or 1) > 1 or streams(options.split_k, options.split_k_mode)
    combine = COMBINE[options.split_k_mode] if splits else None  # asks more of a configuration
    base, swapped = replace(base, combine=combine), None if swapped is None else replace(swapped, combine=combine)
    spec = replace(heuristics.choose_grouped(base, shapes, device.sms, swapped), combine=None)
    dynamic = options.dynamic
    if dynamic is None:
        dynamic = len({shape.k for shape in shapes}) > 1
    return replace(spec, config=replace(spec.config, is_dynamic_persistent=dynamic))


def _ports(request: GemmRequest) -> tuple[PortValue, ...]:
    """Those that are present, in the order of the mixins."""
    ports = [port for term in request.terms for port in term.ports if port.value is not None]
    return tuple(PortValue(p.name, p.kind, conversion(p) if p.value is not Allocated.PARTIALS else None) for p in ports)


def _matrices(request: GemmRequest) -> dict[str, torch.Tensor]:
    """The operands and tiles of a problem, by operand."""
    found = {"A": request.A, "B": request.B, "out": request.out, "C": request.used_c}
    found |= {p.name: p.value for term in request.terms for p in term.ports if p.kind.is_tile}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _grouped(spec: GemmSpec) -> GemmSpec:
    """The dense spec of one problem as part of a group: tensors come through tables."""
    ops = tuple(
        EpilogueOpSpec(
            op.mixin,
            tuple(
                p if p.source is PortSource.ABSENT or p.kind in NUMBERS else replace(p, source=PortSource.TABLE)
                for p in op.ports
            ),
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


def _works(shape: GemmShape, config: GemmConfig) -> int:
    """Cluster tiles."""
    return -(-shape.m // (config.cta_tile_m * config.cluster_m)) * -(-shape.n // (config.tile_n * config.cluster_n))
