"""`legality(spec)`: can this GEMM be compiled? Pure Python; no torch, no CuTe DSL, no GPU."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

from ..arch import ARCHES, Arch, Feature
from ..gemm_config import Dtype, GemmConfig, Major, OperandSpec, OperandSpecs
from ..gemm_port import PortKind, present_ports, tile_layouts
from ..gemm_resources import (
    EPILOGUE_REGISTERS,
    HALVES_REGISTERS,
    MIXIN_REGISTERS,
    PARTIAL_REGISTERS,
    SIDE_REGISTERS,
)
from .budget import budget_of
from .cluster_rules import fallback_refusals
from .scaling_rules import scaling_refusals
from .sm90_rules import sm90_activation_refusals, sm90_refusals
from .sm100_rules import sm100_refusals
from .sm120_rules import sm120_activation_refusals, sm120_refusals
from .spec import (
    DENSE,
    GATHER_K,
    GATHER_M,
    GATHERING,
    GROUPED,
    RAGGED_K,
    RAGGED_M,
    STREAM_COMBINE,
    SYMMETRIC,
    VARLEN_K,
    VARLEN_M,
    GemmSpec,
    UnsupportedGemm,
    is_user_code,
)
from .symmetric_rules import symmetric_refusals

GATE = "quack.epilogue.activation:Gate"
PARTIALS = {PortKind.ROW_PARTIALS, PortKind.COL_PARTIALS}
ARCH_RULES = {
    "quack.sm90": sm90_refusals,
    "quack.sm100": sm100_refusals,
    "quack.sm120": sm120_refusals,
}  # what only one kernel class refuses, by package
ACTIVATION_RULES = {
    "quack.sm90": sm90_activation_refusals,
    "quack.sm120": sm120_activation_refusals,
}  # the same of tiles with an activation, where accumulators lie in registers
FEATURES = {
    VARLEN_M: Feature.VARLEN_M,
    VARLEN_K: Feature.VARLEN_K,
    GATHER_M: Feature.GATHER_M,
    GATHER_K: Feature.GATHER_K,
    GROUPED: Feature.GROUPED,
    SYMMETRIC: Feature.SYMMETRIC,
}
PERMUTABLE = (DENSE, *RAGGED_M, *RAGGED_K)  # adapters whose scheduler is in `problem_order.PERMUTED_SCHEDULER`
# Three MMA warpgroups make 512 threads, so ptxas may give each thread only 128 registers.
MAX_ACCUMULATORS_THREE_WARPGROUPS = 64
MAX_ACCUMULATORS_RAGGED_PARTS = {True: 128, False: 96}  # ping-pong without C, others; 160 and 128 spill 16 to 80 bytes
MAX_ACCUMULATORS_REDUCED_PARTS = (
    112  # in several slabs that share a tile; with C and a reduction 128 spill 16 to 48 bytes
)
MAX_ACCUMULATORS_REDUCED_SHORT = (
    176  # row reductions where short tiles have a main loop of their own; 192 spill 96 to 128 bytes
)
MAX_ACCUMULATORS_GROUPED_ELEMENTS = (
    112  # of grouped problems with D and an input tile by element: an address of its own for each; 128 spill 32 bytes
)
MAX_ACCUMULATORS_SCATTERED = 64  # with M-major elements in several slabs; 96 spill with two bf16 or fp32 operands


@dataclass(frozen=True)
class Legality:
    """reason is None when legal; alternative names the nearest legal choice where one exists."""

    reason: Optional[str] = None
    alternative: Optional[str] = None

    @property
    def ok(self) -> bool:
        return self.reason is None

    def require(self) -> None:
        if self.reason is not None:
            raise UnsupportedGemm(self.reason, self.alternative)


def legality(spec: GemmSpec) -> Legality:
    """The first rule that refuses, or Ok."""
    arch = ARCHES.get(spec.arch)
    if arch is None or not arch.has_kernel:
        built = ", ".join(arch.name for arch in ARCHES.values() if arch.has_kernel)
        return Legality(f"no kernel for {spec.arch} yet", f"a GPU of {built}")
    if spec.target not in (None, *arch.execution.runs_on):
        return Legality(f"the kernel for {spec.arch} does not run on {spec.target}", f"target={spec.arch}")
    for refusal in _refusals(spec, arch):
        return refusal
    return Legality()


def _feature_refusals(spec: GemmSpec, arch: Arch) -> Iterator[Legality]:
    """What this architecture's kernel has not been tested with."""
    lacking, config = arch.execution.lacking, spec.config
    if not lacking:
        return
    wanted = {
        FEATURES.get(spec.adapter): True,
        Feature.PERMUTED: spec.is_permuted,
        Feature.SPLIT_K: spec.combine is not None,
        Feature.STREAM_K: spec.combine == STREAM_COMBINE,
        Feature.PINGPONG: config.pingpong,
        Feature.DYNAMIC: config.is_dynamic_persistent,
    }
    for feature, is_wanted in wanted.items():
        if is_wanted and feature in lacking:
            assert feature is not None
            yield Legality(f"{feature.label} has no kernel on {arch.name} yet", feature.alternative)


def _adapter_refusals(spec: GemmSpec, arch: Arch) -> Iterator[Legality]:
    """What ragged problems ask of layouts and schedules."""
    operands, config = spec.operands, spec.config
    if spec.adapter in (DENSE, SYMMETRIC):
        return
    if spec.adapter == GROUPED:
        if not config.is_persistent:
            yield Legality("grouped problems have a persistent schedule only", "is_persistent=True")
        return
    if config.swap_ab:
        yield Legality("a ragged dimension stays where it is: A and B cannot be swapped", "swap_ab=False")
    if spec.adapter in RAGGED_K and not operands.is_scaled:
        strided = (operands.a.dtype, operands.b.dtype)
        unstrided = arch.execution.k_major_only | arch.execution.k_major_b
        for dtype in (d for d in strided if d in unstrided & arch.execution.inputs):
            yield Legality(
                f"{_kind(dtype)} has no kernel with cu_seqlens_k: groups begin at any k, so K must be strided, but "
                f"{arch.execution.mma} reads {dtype.bits}-bit operands K-major only",
                "A.bfloat16(), B.bfloat16()",
            )
        for name, operand in (("A", operands.a), ("B", operands.b)):
            if operand.major is not Major.OUTER:
                mode = "M" if name == "A" else "N"
                yield Legality(
                    f"{name} is K-major: with cu_seqlens_k groups begin at any k, so K must be the strided dimension",
                    f"{name} with {mode} contiguous",
                )
    if spec.adapter in RAGGED_M and operands.a.major is not Major.INNER:
        boxes = "A_idx picks rows, and copies take" if spec.adapter in GATHERING else "TMA boxes begin at multiples of"
        yield Legality(
            f"A is M-major: with cu_seqlens_m groups begin at any row, and {boxes} 16 bytes",
            "A with K contiguous",
        )
    if spec.adapter in RAGGED_M and not config.is_persistent:
        yield Legality(
            "only the device knows how many tiles cu_seqlens_m makes, so clusters persist", "is_persistent=True"
        )
    if spec.adapter in RAGGED_M and operands.d.is_tma and operands.d.major is not Major.INNER:
        yield Legality("with cu_seqlens_m an M-major out is stored by element", "an N-major out")
    if spec.adapter in RAGGED_M and operands.c is not None and operands.c.is_tma and operands.c.major is Major.OUTER:
        yield Legality("with cu_seqlens_m an M-major C is read by element", "an N-major C")


def _concat_refusals(spec: GemmSpec) -> Iterator[Legality]:
    """Two halves along a ragged dimension would put the rows of a group in two places."""
    a, b, d, c = spec.operands
    named = {"A": a, "B": b, "C": c, "out": d}
    if spec.adapter in RAGGED_M:
        ragged = {"A": Major.INNER, "C": Major.INNER, "out": Major.INNER}
    else:
        ragged = {"A": Major.OUTER, "B": Major.OUTER} if spec.adapter in RAGGED_K else {}
    for name, major in ragged.items():
        operand = named[name]
        if operand is not None and operand.is_concat and operand.major is major:
            dimension = "cu_seqlens_m splits M" if spec.adapter in RAGGED_M else "cu_seqlens_k splits K"
            yield Legality(
                f"concat_layout names {name}, but {dimension} of {name} into groups, not into halves",
                f"{name} in logical order",
            )


def _order_refusals(spec: GemmSpec) -> Iterator[Legality]:
    if spec.is_permuted and spec.adapter not in PERMUTABLE:
        yield Legality(f"batch_idx_permute has no schedule with {spec.adapter}", "a call without batch_idx_permute")


def _port_refusals(spec: GemmSpec) -> Iterator[Legality]:
    """What the mixins' tiles and partials ask of the adapter and the tile."""
    kinds = {port.kind for port in present_ports(spec.epilogue)}
    layouts = (spec.operands.d, *tile_layouts(spec.epilogue, PortKind.TILE_OUTPUT))
    if any(layout.is_halved for layout in layouts) and spec.config.tile_n % 32:
        yield Legality(
            f"tile_n={spec.config.tile_n}: outputs of half the columns are stored in whole steps of 16", "tile_n=128"
        )
    if spec.operands.d.is_halved and spec.epilogue and spec.epilogue[-1].mixin != GATE:
        yield Legality(
            f"{spec.epilogue[-1].mixin} would come behind the gated activation, where only half of the columns are left",
            "the gated activation as the last mixin",
        )
    if PortKind.COL_PARTIALS in kinds and spec.adapter in RAGGED_M:
        yield Legality("column reductions would mix the rows of groups: cu_seqlens_m has none", "one call per group")


def _gather_refusals(spec: GemmSpec) -> Iterator[Legality]:
    """What `A_idx` asks of the cluster and of the loading warps."""
    config = spec.config
    if spec.adapter in GATHERING and config.cluster_n > 1:
        yield Legality(
            f"cluster_n={config.cluster_n} multicasts A, but with A_idx threads copy A, each CTA its own", "cluster_n=1"
        )


def _split_refusals(spec: GemmSpec) -> Iterator[Legality]:
    """Parts of a tile wait for each other, so those that are waited for must be running."""
    if spec.combine is not None and not spec.config.is_persistent:
        yield Legality(
            "split-K needs clusters that persist: those that wait must not keep others out", "is_persistent=True"
        )
    if spec.combine == STREAM_COMBINE:
        if spec.adapter != DENSE:
            yield Legality(
                "SplitKMode.STREAM shares out the k tiles of equal problems, which ragged and grouped ones are not",
                "SplitKMode.SERIAL with split_k=2",
            )
        if spec.config.is_dynamic_persistent:
            yield Legality(
                "SplitKMode.STREAM gives every cluster the same work: there is nothing to draw from a counter",
                "is_dynamic_persistent=False",
            )


def _refusals(spec: GemmSpec, arch: Arch) -> Iterator[Legality]:
    yield from _feature_refusals(spec, arch)
    yield from (Legality(*refusal) for refusal in scaling_refusals(spec, arch, FEATURES.get(spec.adapter)))
    yield from (Legality(*refusal) for refusal in symmetric_refusals(spec))
    yield from _adapter_refusals(spec, arch)
    yield from _gather_refusals(spec)
    yield from _concat_refusals(spec)
    yield from _order_refusals(spec)
    yield from _port_refusals(spec)
    yield from _split_refusals(spec)
    yield from _operand_refusals(spec.operands, _input_names(spec.config), arch)
    yield from _config_refusals(spec.config, spec.operands, arch)
    yield from (Legality(*refusal) for refusal in fallback_refusals(spec, arch))
    if (rules := ARCH_RULES.get(arch.execution.package)) is not None:
        yield from (Legality(*refusal) for refusal in rules(spec))
    yield from _budget_refusals(spec)
    if (rules := ACTIVATION_RULES.get(arch.execution.package)) is not None:
        yield from (Legality(*refusal) for refusal in rules(spec))


def _input_names(config: GemmConfig) -> tuple[str, str]:
    """What the caller knows the kernel's A and B as."""
    return ("B", "A") if config.swap_ab else ("A", "B")


def _kind(dtype: Dtype) -> str:
    """A dtype of inputs as people say it: fp8 is two."""
    return "fp8" if dtype.is_fp8 else dtype.value


def _operand_refusals(operands: OperandSpecs, names: tuple[str, str], arch: Arch) -> Iterator[Legality]:
    a, b, execution = operands.a, operands.b, arch.execution
    if operands.is_scaled:
        pass  # the dtypes are those of `Execution.scaled`, see `scaling_rules`
    elif not (a.dtype in execution.inputs and b.dtype in execution.inputs):
        missing = {a.dtype, b.dtype} - execution.inputs
        kinds = " and ".join(sorted({_kind(d) + (" inputs (tf32)" if d is Dtype.FP32 else " inputs") for d in missing}))
        yield Legality(f"{kinds} have no kernel on {arch.name} yet", "A.bfloat16(), B.bfloat16()")
    elif not execution.may_mix(a.dtype, b.dtype):
        *others, last = (f"{kind} x {kind}" for kind in dict.fromkeys(_kind(d) for d in Dtype if d in execution.inputs))
        yield Legality(
            f"{names[0]} is {a.dtype.value} and {names[1]} is {b.dtype.value}: {execution.mma} multiplies "
            f"{', '.join(others)} or {last}",
            "convert one operand to the dtype of the other",
        )
    for name, operand in zip(names, (a, b)):
        only, otherwise = execution.k_major_only, ""
        if name == names[1] and b.dtype in execution.k_major_b:
            only = execution.k_major_b
            otherwise = f", but {'A' if names[0] == 'A' else 'B, with swap_ab=True,'} can go through registers"
        if operand.dtype in only and operand.major is not Major.INNER:
            yield Legality(
                f"{_kind(operand.dtype)} {name} is not K-major: {execution.mma} reads {operand.dtype.bits}-bit operands "
                f"K-major only{otherwise}",
                f"{name} with K contiguous, e.g. {name}.{'mT.contiguous().mT' if operand.transposed else 'contiguous()'}",
            )
        if not operand.is_tma:
            yield Legality(f"{name} is not 16-byte aligned", f"an aligned copy of {name}")


def _config_refusals(config: GemmConfig, operands: OperandSpecs, arch: Arch) -> Iterator[Legality]:
    execution = arch.execution
    tile_k = config.with_tile_k(operands.a.dtype).tile_k
    assert tile_k is not None
    heights, step, widest = execution.tile_m, execution.tile_n_step, execution.max_tile_n
    if config.tile_m not in heights:
        yield Legality(f"tile_m={config.tile_m} is not one of {heights}", f"tile_m={_nearest(config.tile_m, heights)}")
    if config.tile_n % step or not step <= config.tile_n <= widest:
        yield Legality(f"tile_n={config.tile_n} is not a multiple of {step} in {step}..{widest}", "tile_n=128")
    row_bytes = operands.a.dtype.bytes_of(tile_k)
    if row_bytes not in execution.tile_k_bytes:
        yield Legality(
            f"tile_k={tile_k} is {row_bytes} bytes, not one of {execution.tile_k_bytes}",
            f"tile_k={operands.a.dtype.elements_in(128)}",
        )
    if config.pingpong and config.tile_m > 128:
        yield Legality(f"ping-pong with tile_m={config.tile_m}: one warpgroup holds at most 128 rows", "tile_m=128")
    if config.is_dynamic_persistent and not config.is_persistent:
        yield Legality("is_dynamic_persistent needs is_persistent=True", "is_persistent=True")
    cluster, sizes, most = (config.cluster_m, config.cluster_n), execution.cluster_sizes, execution.max_cluster
    if cluster not in execution.clusters:
        legal = "(2, 1)" if most > 1 else "(1, 1)"
        yield Legality(f"cluster {cluster} is not made of {sizes} with at most {most} CTAs", legal)
    if config.use_tma_gather and not execution.has_tma_gather:
        yield Legality(f"use_tma_gather needs TMA gather4, which {arch.name} does not have", "use_tma_gather=False")
    elif config.use_tma_gather and Feature.TMA_GATHER not in execution.features:
        yield Legality(f"{Feature.TMA_GATHER.label} has no kernel on {arch.name} yet", Feature.TMA_GATHER.alternative)
    capability = arch.capability[0]
    if config.device_capacity not in (None, capability):
        yield Legality(
            f"device_capacity={config.device_capacity} is for another GPU than {arch.name}",
            f"device_capacity={capability}",
        )
    if config.max_swizzle_size < 1:
        yield Legality(f"max_swizzle_size={config.max_swizzle_size} is below 1", "max_swizzle_size=8")
    a_name, b_name = _input_names(config)
    yield from _multicast_refusals(a_name, operands.a, config.cta_tile_m, config.cluster_n)
    sharers = 2 if config.is_pair else 1  # each keeps its part of B
    yield from _multicast_refusals(b_name, operands.b, config.tile_n // sharers, max(config.cluster_m // sharers, 1))


def _multicast_refusals(name: str, operand: OperandSpec, tile: int, ctas: int) -> Iterator[Legality]:
    """Each CTA of a multicast fetches 1/ctas of the tile, which must be whole swizzle atoms."""
    atom = 8
    if operand.major is Major.OUTER:
        sizes = [operand.dtype.elements_in(row) for row in (128, 64, 32)]  # elements of a swizzled row
        fitting = [size for size in sizes if tile % size == 0]
        if not fitting:
            yield Legality(
                f"a {tile}-wide tile of {name} is no multiple of {sizes[-1]} elements, whole swizzled rows of 32 bytes",
                f"{name} with K contiguous",
            )
            return
        atom = fitting[0]
    if tile % (atom * ctas):
        yield Legality(
            f"a {tile}-wide tile of {name} does not split into {ctas} multicast slices of whole {atom}-element atoms",
            "a smaller cluster",
        )


def _budget_refusals(spec: GemmSpec) -> Iterator[Legality]:
    budget = budget_of(spec)
    kinds = [port.kind for port in present_ports(spec.epilogue)]
    has_side_access = spec.operands.c is not None or not spec.operands.d.is_tma or PortKind.TILE_INPUT in kinds
    partials = sum(kind in (PortKind.ROW_PARTIALS, PortKind.COL_PARTIALS) for kind in kinds)
    # What a user's mixin holds in registers is unknown: reserve as for C.
    reserved = SIDE_REGISTERS if has_side_access or has_user_code(spec) else EPILOGUE_REGISTERS
    reserved += PARTIAL_REGISTERS * (partials if has_side_access else max(0, partials - 1))
    if _has_halves_by_element(spec):
        reserved = HALVES_REGISTERS
    reserved += max((MIXIN_REGISTERS.get(op.mixin, 0) for op in spec.epilogue), default=0)
    limit = budget.mma_registers - reserved
    if budget.slabs > 1 and _has_scattered_columns(spec):
        limit = min(limit, MAX_ACCUMULATORS_SCATTERED)
    has_short_tiles = spec.adapter in (*RAGGED_M, GROUPED)
    if has_short_tiles and PortKind.ROW_PARTIALS in kinds:
        limit = min(limit, MAX_ACCUMULATORS_REDUCED_SHORT)
    if spec.adapter == GROUPED and PortKind.TILE_INPUT in kinds and not spec.operands.d.is_tma:
        limit = min(limit, MAX_ACCUMULATORS_GROUPED_ELEMENTS)
    if spec.combine is not None and spec.pieces_of is None and has_short_tiles:
        is_roomy = spec.config.pingpong and spec.operands.c is None
        limit = min(limit, MAX_ACCUMULATORS_RAGGED_PARTS[is_roomy])
    if spec.combine is not None and spec.pieces_of is None and partials and has_side_access:
        if budget.slabs > 1 and not spec.config.pingpong:
            limit = min(limit, MAX_ACCUMULATORS_REDUCED_PARTS)
    if budget.mma_warpgroups == 3:
        limit = MAX_ACCUMULATORS_THREE_WARPGROUPS
    if budget.accumulator_registers > limit:
        yield Legality(
            f"{spec.config} needs {budget.accumulator_registers} accumulator registers a thread, limit {limit}",
            "a smaller tile_n",
        )
    if budget.ab_stages < 2:
        yield Legality(
            f"{spec.config} leaves shared memory for {budget.ab_stages} operand stages, at least 2 are needed",
            "a smaller tile or tile_k",
        )


def has_user_code(spec: GemmSpec) -> bool:
    """Whether a mixin or the commit policy is a user's."""
    return any(is_user_code(name) for name in (spec.plan, *(op.mixin for op in spec.epilogue)))


def _has_scattered_columns(spec: GemmSpec) -> bool:
    """Whether M-major C or D by element keep so many column addresses, for the rows of every slab, that ptxas spills."""
    scattered = [
        s for s in (spec.operands.c, spec.operands.d) if s is not None and not s.is_tma and s.major is Major.OUTER
    ]
    return len(scattered) == 2 or (len(scattered) == 1 and spec.adapter == GROUPED)


def _has_halves_by_element(spec: GemmSpec) -> bool:
    """Whether neither C nor D goes through TMA and one of them, or a vector, is stored as two halves."""
    c, d = spec.operands.c, spec.operands.d
    if c is None or c.is_tma or d.is_tma:
        return False
    return c.is_concat or d.is_concat or any(port.is_concat for op in spec.epilogue for port in op.ports)


def _nearest(value: int, choices: tuple[int, ...]) -> int:
    return min(choices, key=lambda c: abs(c - value))
