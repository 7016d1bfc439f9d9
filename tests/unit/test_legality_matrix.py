"""Legality over the whole cross product of adapter, epilogue, dtypes, majors, storage and configuration.

What is legal is stated a second time here, as `RULES`: a cell is legal if no rule holds, and otherwise refused with the
reason of a rule that holds. Cells are in the caller's terms (a pinned swap_ab renames nothing), and every alternative is
followed: it must do away with its reason, and following advice must end at a legal kernel.
"""

import itertools
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple, Optional

import pytest

from quack.gemm_config import Dtype, GemmConfig, Major, OperandSpec, OperandSpecs
from quack.gemm_port import EpilogueOpSpec, PortKind, PortSource, PortSpec
from quack.runtime.compile import kernel_facts
from quack.runtime.legality import legality
from quack.runtime.spec import DENSE, GATHER_K, GATHER_M, GROUPED, VARLEN_K, VARLEN_M, GemmSpec
from quack.runtime.split_k import COMBINE
from quack.split_k import SplitKMode

DTYPES = BF16, FP16, FP32, E4M3, E5M2 = Dtype.BF16, Dtype.FP16, Dtype.FP32, Dtype.E4M3, Dtype.E5M2  # of plain operands
ADAPTERS = (DENSE, VARLEN_M, VARLEN_K, GATHER_M, GATHER_K, GROUPED)
BATCHED = {  # which of A, B and out (C) have a batch dimension
    DENSE: (True, True, True), VARLEN_M: (False, True, False), GATHER_M: (False, True, False),
    VARLEN_K: (False, False, True), GATHER_K: (False, False, True), GROUPED: (False, False, False),
}  # fmt: skip
EPILOGUES = ("none", "alpha", "C", "scaled C", "bias", "all")
MAJORS = tuple("".join(letters) for letters in itertools.product("km", "kn", "nm"))  # of A, B and out (C)
SMALL = GemmConfig(128, 128, pingpong=True, cluster_m=1)
LARGE = GemmConfig(128, 256, cluster_m=2)
SWAPPED = GemmConfig(128, 64, pingpong=True, cluster_m=1, swap_ab=True)
CONFIGS = (
    SMALL,
    LARGE,
    SWAPPED,
    GemmConfig(64, 256, pingpong=True, cluster_m=1, cluster_n=2, is_dynamic_persistent=True),
    GemmConfig(64, 128, cluster_m=1, is_persistent=False),
    GemmConfig(128, 192, cluster_m=2),
    GemmConfig(128, 192, pingpong=True, cluster_m=1),
    GemmConfig(192, 128, cluster_m=1, cluster_n=2),
    GemmConfig(192, 128, 128, cluster_m=1),
    GemmConfig(256, 192, 128, cluster_m=1),
    GemmConfig(128, 128, cluster_m=2, swap_ab=True, is_dynamic_persistent=True),
)
STORAGES = (
    (), ("permuted",), ("split",), ("streamed",), ("concat A",), ("concat B",), ("concat C",), ("concat out",), ("concat bias",),
    ("unaligned A",), ("unaligned B",), ("unaligned C",), ("unaligned out",), ("unaligned C", "unaligned out"),
    ("unaligned C", "unaligned out", "concat out"),
)  # fmt: skip
SPLITS = {"split": SplitKMode.SERIAL, "streamed": SplitKMode.STREAM}


class Cell(NamedTuple):
    """A GEMM in the terms of its caller. storage: what is special about operands or their order."""

    adapter: str
    epilogue: str
    a: Dtype
    b: Dtype
    d: Dtype
    majors: str
    config: GemmConfig
    storage: tuple[str, ...] = ()

    def __str__(self) -> str:
        adapter = self.adapter.partition(":")[2].removesuffix("Adapter")
        dtypes = f"{self.a.value}x{self.b.value}->{self.d.value}"
        return " ".join([adapter, dtypes, self.majors, str(self.config), self.epilogue, *self.storage])

    @property
    def is_ragged_m(self) -> bool:
        return self.adapter in (VARLEN_M, GATHER_M)

    @property
    def is_ragged_k(self) -> bool:
        return self.adapter in (VARLEN_K, GATHER_K)

    @property
    def is_gathered(self) -> bool:
        return self.adapter in (GATHER_M, GATHER_K)

    @property
    def has_c(self) -> bool:
        return self.epilogue in ("C", "scaled C", "all")

    def has(self, storage: str) -> bool:
        """Whether this is so; what is said of C means nothing without C."""
        return storage in self.storage and (self.has_c or not storage.endswith(" C"))


# ---- cells as specs ---------------------------------------------------------------------------------------------------


@cache
def operand(
    dtype: Dtype, is_batched: bool, transposed: bool, is_inner: bool, align: int, is_concat: bool
) -> OperandSpec:
    return OperandSpec(
        dtype, 2 + is_batched, transposed, Major.INNER if is_inner else Major.OUTER, align or dtype.bytes, is_concat
    )


@cache
def ops(epilogue: str, adapter: str, swapped: bool, is_concat: bool) -> tuple[EpilogueOpSpec, ...]:
    host, device = PortSpec(PortKind.SCALAR, PortSource.HOST), PortSpec(PortKind.SCALAR, PortSource.DEVICE, FP32, 1)
    kind = PortKind.COL_VECTOR if swapped else PortKind.ROW_VECTOR
    ndim = 1 if adapter == GROUPED else 2
    bias = PortSpec(kind, PortSource.TABLE if adapter == GROUPED else PortSource.DEVICE, BF16, ndim, is_concat)
    bias_mixin = "ColBias" if swapped else "RowBias"
    terms: dict[str, tuple[tuple[str, Optional[PortSpec]], ...]] = {
        "none": (),
        "alpha": (("ScaleAccumulator", host),),
        "C": (("AddC", None),),
        "scaled C": (("AddScaledC", host),),
        "bias": ((bias_mixin, bias),),
        "all": (("ScaleAccumulator", device), ("AddScaledC", device), (bias_mixin, bias)),
    }
    return tuple(
        EpilogueOpSpec(f"quack.epilogue.linear:{name}", () if port is None else (port,))
        for name, port in terms[epilogue]
    )


def build(cell: Cell) -> GemmSpec:
    """The spec that a call of this kind makes; fp8 with the precise accumulation that is the default."""
    batched, swapped = BATCHED[cell.adapter], cell.config.swap_ab

    def make(name: str, dtype: Dtype, is_batched: bool, transposed: bool, is_inner: bool) -> OperandSpec:
        align = 0 if f"unaligned {name}" in cell.storage else 16
        return operand(dtype, is_batched, transposed, is_inner, align, f"concat {name}" in cell.storage)

    # Swapped, the kernel computes out^T (N, M): out is N-major where N is its *outer* mode.
    inner_d = (cell.majors[2] == "n") != swapped
    a = make("A", cell.a, batched[0], False, cell.majors[0] == "k")
    b = make("B", cell.b, batched[1], True, cell.majors[1] == "k")
    d = make("out", cell.d, batched[2], swapped, inner_d)
    c = make("C", cell.d, batched[2], swapped, inner_d) if cell.has_c else None
    if swapped:
        a, b = b, a
    return GemmSpec(
        "sm_90a",
        OperandSpecs(a, b, d, c),
        cell.config.with_tile_k(a.dtype),
        ops(cell.epilogue, cell.adapter, swapped, "concat bias" in cell.storage),
        not a.dtype.is_fp8,
        cell.adapter,
        is_permuted="permuted" in cell.storage,
        combine=next((COMBINE[mode] for name, mode in SPLITS.items() if name in cell.storage), None),
    )


# ---- the oracle -------------------------------------------------------------------------------------------------------


def family(dtype: Dtype) -> str:
    return "fp8" if dtype in (E4M3, E5M2) else dtype.value


def swaps(cell: Cell) -> bool:
    return cell.config.swap_ab


def accumulators(cell: Cell) -> int:
    """fp32 registers of a thread: a ping-pong tile belongs to one warpgroup, others to one for every 64 rows, but two for
    256; precise fp8 holds partial sums besides."""
    config = cell.config
    warpgroups = 1 if config.pingpong else {64: 1, 128: 2, 192: 3, 256: 2}[config.tile_m]
    first = cell.b if swaps(cell) else cell.a
    return config.tile_m * config.tile_n // (128 * warpgroups) * (2 if family(first) == "fp8" else 1)


def fragments(cell: Cell) -> int:
    """Registers of a thread for half a k tile of an fp32 operand that wgmma cannot read from shared memory, while multiplying."""
    config = cell.config
    dtype, major = (cell.b, cell.majors[1]) if swaps(cell) else (cell.a, cell.majors[0])
    slabs = config.tile_m // 64 if config.pingpong else {64: 1, 128: 1, 192: 1, 256: 2}[config.tile_m]
    return 16 * slabs if dtype is FP32 and major != "k" else 0


def room(cell: Cell) -> int:
    """Registers for accumulators: less with C, or out by element, less still with both by element and halves; and where parts
    of ragged or grouped rows are put together."""
    config = cell.config
    most = 1000
    if (cell.has("split") or cell.has("streamed")) and (cell.is_ragged_m or cell.adapter == GROUPED):
        most = 128 if config.pingpong and not cell.has_c else 96
    if config.tile_m == 192 and not config.pingpong:
        return 64
    elements_of_c, elements_of_d = cell.has("unaligned C"), cell.has("unaligned out")
    has_halves = any(cell.has(f"concat {name}") for name in ("C", "out")) or (
        "concat bias" in cell.storage and cell.epilogue in ("bias", "all")
    )
    taken = 0
    if cell.has_c or elements_of_d:
        taken = 72 if elements_of_c and elements_of_d and has_halves else 56
    is_column_major = (cell.majors[2] == "m") != config.swap_ab
    has_slabs = config.tile_m > (64 if config.pingpong else 128)  # of its own for each warpgroup
    if is_column_major and has_slabs:
        if (elements_of_c and elements_of_d) or (cell.adapter == GROUPED and (elements_of_c or elements_of_d)):
            return 64
    return min(most, (200 if config.tile_m == 64 and not config.pingpong else 192) - max(taken, fragments(cell)))


def splits_badly(cell: Cell, name: str) -> bool:
    """Half a tile of 64 or 192 is no whole number of 64-element atoms; K-major operands have atoms of 8. Atoms of fp32 have 32
    elements, and those of fp8 128, or 64 where a tile is no multiple of that."""
    if (cell.a if name == "A" else cell.b) is FP32:
        return False
    outer = cell.majors["AB".index(name)] != "k"
    is_a_of_kernel = (name == "A") != swaps(cell)
    tile, ctas = (
        (cell.config.tile_m, cell.config.cluster_n) if is_a_of_kernel else (cell.config.tile_n, cell.config.cluster_m)
    )
    return outer and tile in (64, 192) and ctas == 2


def stage_bytes(cell: Cell) -> int:
    """One stage of A and B: 128 bytes of K unless the configuration says otherwise."""
    config = cell.config
    return (config.tile_m + config.tile_n) * (config.tile_k * cell.a.bytes if config.tile_k else 128)


def ring_bytes(cell: Cell) -> int:
    """Two 64-row stages of out and of C, 128 bytes wide, for each warpgroup; none where they are accessed by element."""
    config = cell.config
    warpgroups = 2 if config.pingpong else {64: 1, 128: 2, 192: 3, 256: 2}[config.tile_m]
    rings = (not cell.has("unaligned out")) + (cell.has_c and not cell.has("unaligned C"))
    return warpgroups * rings * 2 * 64 * min(128, 64 * cell.d.bytes)


class Rule(NamedTuple):
    """Cells for which `when` holds are illegal, and `reason` finds why. Fields of the cell may stand in `reason`."""

    when: Callable[[Cell], bool]
    reason: str


RULES = (
    # dtypes and majors that wgmma multiplies
    Rule(lambda x: x.b is FP32 and x.majors[1] != "k" and not swaps(x), "^fp32 B is not K-major: .* but A can go through"),
    Rule(lambda x: x.a is FP32 and x.majors[0] != "k" and swaps(x), "^fp32 A is not K-major: .* but B, with swap_ab=True,"),
    Rule(lambda x: family(x.a) != family(x.b), "A is {x.a.value} and B is {x.b.value}|B is {x.b.value} and A is {x.a.value}"),
    Rule(lambda x: family(x.a) == "fp8" and x.majors[0] != "k", "^fp8 A is not K-major"),
    Rule(lambda x: family(x.b) == "fp8" and x.majors[1] != "k", "^fp8 B is not K-major"),
    Rule(lambda x: x.has("unaligned A"), "^A is not 16-byte aligned"),
    Rule(lambda x: x.has("unaligned B"), "^B is not 16-byte aligned"),
    # ragged dimensions
    Rule(lambda x: x.is_ragged_k and "fp8" in (family(x.a), family(x.b)), "^fp8 has no kernel with cu_seqlens_k"),
    Rule(lambda x: x.is_ragged_k and FP32 in (x.a, x.b), "^fp32 has no kernel with cu_seqlens_k"),
    Rule(lambda x: x.is_ragged_k and x.majors[0] == "k", "^A is K-major: with cu_seqlens_k"),
    Rule(lambda x: x.is_ragged_k and x.majors[1] == "k", "^B is K-major: with cu_seqlens_k"),
    Rule(lambda x: x.adapter == VARLEN_M and x.majors[0] == "m", "^A is M-major: with cu_seqlens_m .* TMA boxes"),
    Rule(lambda x: x.adapter == GATHER_M and x.majors[0] == "m", "^A is M-major: with cu_seqlens_m .* A_idx"),
    Rule(
        lambda x: x.is_ragged_m and x.majors[2] == "m" and not x.has("unaligned out"),
        "^with cu_seqlens_m an M-major out is stored by element",
    ),
    Rule(
        lambda x: x.is_ragged_m and x.has_c and x.majors[2] == "m" and not x.has("unaligned C"),
        "^with cu_seqlens_m an M-major C is read by element",
    ),
    Rule(lambda x: (x.is_ragged_m or x.is_ragged_k) and swaps(x), "A and B cannot be swapped"),
    Rule(lambda x: x.is_ragged_m and not x.config.is_persistent, "only the device knows how many tiles"),
    # halves: A (M, K) holds those of M where K is contiguous, and so on
    Rule(lambda x: x.is_ragged_m and x.has("concat A") and x.majors[0] == "k", "names A, but cu_seqlens_m splits M"),
    Rule(lambda x: x.is_ragged_m and x.has("concat C") and x.majors[2] == "n", "names C, but cu_seqlens_m splits M"),
    Rule(lambda x: x.is_ragged_m and x.has("concat out") and x.majors[2] == "n", "names out, but cu_seqlens_m splits M"),
    Rule(lambda x: x.is_ragged_k and x.has("concat A") and x.majors[0] == "m", "names A, but cu_seqlens_k splits K"),
    Rule(lambda x: x.is_ragged_k and x.has("concat B") and x.majors[1] == "n", "names B, but cu_seqlens_k splits K"),
    # tables, orders, indices
    Rule(lambda x: x.adapter == GROUPED and not x.config.is_persistent, "^grouped problems have a persistent schedule"),
    Rule(
        lambda x: (x.has("split") or x.has("streamed")) and not x.config.is_persistent,
        "^split-K needs clusters that persist",
    ),
    Rule(lambda x: x.has("streamed") and x.adapter != DENSE, "^SplitKMode.STREAM shares out the k tiles of equal problems"),
    Rule(
        lambda x: x.has("streamed") and x.config.is_dynamic_persistent, "^SplitKMode.STREAM gives every cluster the same work"
    ),
    Rule(lambda x: x.adapter == GROUPED and x.has("permuted"), "^batch_idx_permute has no schedule with .*GroupedAdapter"),
    Rule(lambda x: x.is_gathered and x.config.cluster_n > 1, "^cluster_n={x.config.cluster_n} multicasts A, but with A_idx"),
    Rule(
        lambda x: x.is_gathered and x.config.tile_m == 192 and x.config.tile_k == 128 and x.a.bytes > 1,
        "^tile_m=192 leaves loading warps 32 registers",
    ),
    # what fits
    Rule(lambda x: splits_badly(x, "A"), "^a (64|192)-wide tile of A does not split into 2"),
    Rule(lambda x: splits_badly(x, "B"), "^a (64|192)-wide tile of B does not split into 2"),
    Rule(lambda x: accumulators(x) > room(x), "needs .* accumulator registers a thread, limit "),
    Rule(lambda x: stage_bytes(x) * 2 > 232448 - 1024 - ring_bytes(x), " leaves shared memory for [01] operand stages"),
    Rule(lambda x: (x.config.tile_k or 0) * x.a.bytes > 256, "^tile_k=128 is 512 bytes"),
)  # fmt: skip


def may_say(cell: Cell) -> list[str]:
    """Patterns of the reasons that this cell can be refused with; none if it is legal."""
    return [rule.reason.format(x=cell) if "{x" in rule.reason else rule.reason for rule in RULES if rule.when(cell)]


# ---- following advice -------------------------------------------------------------------------------------------------


def _flip(cell: Cell, name: str, major: str) -> Cell:
    majors = list(cell.majors)
    majors[("A", "B", "out").index(name)] = major.lower()
    return cell._replace(majors="".join(majors))


def _without(cell: Cell, storage: str) -> Cell:
    assert storage in cell.storage
    return cell._replace(storage=tuple(s for s in cell.storage if s != storage))


def _configured(cell: Cell, name: str, value: str) -> Cell:
    return cell._replace(
        config=replace(
            cell.config, **{name: {"True": True, "False": False}[value] if value in ("True", "False") else int(value)}
        )
    )


def _narrower(cell: Cell) -> Cell:
    """The widest narrower tile that fits."""
    narrower = (
        cell._replace(config=replace(cell.config, tile_n=n)) for n in range(cell.config.tile_n - 16, 0, -16)
    )  # fmt: skip
    return next(c for c in narrower if accumulators(c) <= room(c))


ADVICE: tuple[tuple[str, Callable[..., Cell]], ...] = (
    (r"(is_persistent|is_dynamic_persistent|swap_ab|cluster_n|tile_k)=(\w+)", _configured),
    (
        r"SplitKMode\.SERIAL with split_k=2",
        lambda x: x._replace(storage=tuple("split" if s == "streamed" else s for s in x.storage)),
    ),
    (r"(A|B) with ([KMN]) contiguous(?:, e\.g\. .*)?", _flip),
    (r"an N-major (?:out|C)", lambda x: _flip(x, "out", "n")),
    (r"(A|B|C|out) in logical order", lambda x, name: _without(x, f"concat {name}")),
    (r"an aligned copy of (A|B)", lambda x, name: _without(x, f"unaligned {name}")),
    (r"a call without batch_idx_permute", lambda x: _without(x, "permuted")),
    (r"A\.bfloat16\(\), B\.bfloat16\(\)", lambda x: x._replace(a=BF16, b=BF16)),
    (r"convert one operand to the dtype of the other", lambda x: x._replace(b=x.a)),
    (r"a smaller cluster", lambda x: x._replace(config=replace(x.config, cluster_m=1, cluster_n=1))),
    (r"a smaller tile_n", _narrower),
    (r"a smaller tile or tile_k", lambda x: x._replace(config=replace(x.config, tile_k=64))),
)


def follow(cell: Cell, alternative: str) -> Cell:
    """The cell changed as advised. StopIteration if the advice is not in `ADVICE`."""
    return next(
        apply(cell, *match.groups()) for pattern, apply in ADVICE if (match := re.fullmatch(pattern, alternative))
    )


# ---- the matrix -------------------------------------------------------------------------------------------------------


def all_dtypes(adapter: str) -> Iterator[Cell]:
    """Every dtype, major and epilogue, in the commonest configurations."""
    grid = itertools.product(EPILOGUES, DTYPES, DTYPES, DTYPES, MAJORS, (SMALL, LARGE, SWAPPED))
    for epilogue, a, b, d, majors, config in grid:
        yield Cell(adapter, epilogue, a, b, d, majors, config)


def all_storages(adapter: str) -> Iterator[Cell]:
    """Every configuration, storage, major and epilogue, for 16-bit, mixed 8-bit and fp32 operands."""
    inputs = ((BF16, BF16), (E4M3, E5M2), (FP32, FP32))
    grid = itertools.product(EPILOGUES, inputs, (FP16, FP32), MAJORS, CONFIGS, STORAGES)
    for epilogue, (a, b), d, majors, config, storage in grid:
        yield Cell(adapter, epilogue, a, b, d, majors, config, storage)


@pytest.mark.parametrize("cells", [all_dtypes, all_storages])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_cell_is_admitted_or_refused_as_the_rules_say(adapter: str, cells: Callable[[str], Iterator[Cell]]):
    admitted, refused = 0, {}
    for cell in cells(adapter):
        verdict, expected = legality(build(cell)), may_say(cell)
        assert verdict.ok == (not expected), f"{cell}: {verdict}, expected {expected}"
        if verdict.ok:
            admitted += 1
            continue
        assert verdict.reason and verdict.alternative
        key = (verdict.reason, verdict.alternative)
        if key not in refused:
            refused[key] = cell
        assert any(re.search(pattern, verdict.reason) for pattern in expected), f"{cell}: {verdict} not in {expected}"
    assert admitted > 50 and len(refused) >= 7, (admitted, len(refused))
    for cell in refused.values():
        _assert_advice_leads_to_a_legal_kernel(cell)


def _assert_advice_leads_to_a_legal_kernel(cell: Cell) -> None:
    path, seen = cell, set()
    while not (verdict := legality(build(path))).ok:
        assert verdict.reason not in seen and len(seen) < 8, f"{cell}: advice comes back to {verdict} at {path}"
        seen.add(verdict.reason)
        path = follow(path, str(verdict.alternative))


def test_every_rule_refuses_some_cell_by_itself():
    """No rule is implied by the others, so each is seen to be enforced."""
    alone = dict.fromkeys(range(len(RULES)), 0)
    for adapter in ADAPTERS:
        for cell in itertools.chain(all_storages(adapter), all_dtypes(adapter) if adapter == DENSE else ()):
            holding = [i for i, rule in enumerate(RULES) if rule.when(cell)]
            if len(holding) == 1:
                alone[holding[0]] += 1
    unseen = {RULES[i].reason for i, count in alone.items() if not count}
    # These come with others: 512 bytes of fp32, and majors that cannot suit both fp8 or fp32 and a ragged K.
    ragged_k = {f"^{kind} has no kernel with cu_seqlens_k" for kind in ("fp8", "fp32")}
    assert unseen <= ragged_k | {r"^tile_k=128 is 512 bytes"}, unseen


@pytest.mark.parametrize(
    "changes, alternative",
    [
        (dict(a=E4M3, b=E4M3, majors="mkn"), "A with K contiguous, e.g. A.contiguous()"),
        (dict(a=E4M3, b=E4M3, majors="knn"), "B with K contiguous, e.g. B.mT.contiguous().mT"),
        (dict(a=E4M3, b=E4M3, majors="mkn", config=SWAPPED), "A with K contiguous, e.g. A.contiguous()"),
        (dict(a=E4M3, b=E4M3, majors="knn", config=SWAPPED), "B with K contiguous, e.g. B.mT.contiguous().mT"),
        (dict(a=E5M2, b=E5M2, majors="mnn", adapter=VARLEN_K), "A.bfloat16(), B.bfloat16()"),
        (dict(adapter=GATHER_M, config=replace(SMALL, cluster_n=2)), "cluster_n=1"),
        (dict(adapter=VARLEN_M, config=SWAPPED), "swap_ab=False"),
        (dict(adapter=GROUPED, config=replace(SMALL, is_persistent=False)), "is_persistent=True"),
        (dict(config=replace(SMALL, tile_m=256)), "tile_m=128"),
        (dict(config=replace(LARGE, tile_m=120)), "tile_m=128"),
        (dict(adapter=VARLEN_M, majors="kkm"), "an N-major out"),
        (dict(adapter=VARLEN_M, majors="mkn"), "A with K contiguous"),
        (dict(adapter=VARLEN_K, majors="mkn"), "B with N contiguous"),
        (dict(adapter=VARLEN_M, storage=("concat A",)), "A in logical order"),
        (dict(adapter=VARLEN_M, storage=("streamed",)), "SplitKMode.SERIAL with split_k=2"),
        (dict(config=replace(SMALL, is_dynamic_persistent=True), storage=("streamed",)), "is_dynamic_persistent=False"),
    ],
)  # fmt: skip
def test_alternative(changes: dict[str, Any], alternative: str):
    cell = Cell(DENSE, "none", BF16, BF16, BF16, "kkn", replace(SWAPPED, swap_ab=False))._replace(**changes)
    assert legality(build(cell)).alternative == alternative
    assert alternative.startswith("tile_m") or legality(build(follow(cell, alternative))).ok


# ---- what is admitted compiles ----------------------------------------------------------------------------------------


def compiled_sample(seed: int) -> dict[str, Cell]:
    """Legal cells, a few of each adapter, all with different storages and configurations."""
    rng, found = random.Random(seed), {}
    for adapter, count in ((DENSE, 3), (VARLEN_M, 4), (VARLEN_K, 4), (GATHER_M, 4), (GATHER_K, 4), (GROUPED, 5)):
        cells, storages, configs = list(all_storages(adapter)), set(), set()
        rng.shuffle(cells)
        for cell in cells:
            if cell.storage in storages or cell.config in configs or may_say(cell):
                continue
            storages.add(cell.storage)
            configs.add(cell.config)
            if family(cell.a) != "fp8":
                dtype = rng.choice((BF16, FP16))
                cell = cell._replace(a=dtype, b=dtype)
            found[str(cell)] = cell
            if len(storages) == count:
                break
    return found


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", SAMPLE := compiled_sample(seed=11))
def test_an_admitted_cell_compiles(name: str):
    facts = kernel_facts(build(SAMPLE[name]))
    assert facts["spill_bytes"] == 0 and facts["wgmma_serialized"] == 0 and facts["wgmma"] > 0, facts


@pytest.mark.parametrize("d", [BF16, FP16, E4M3])
@pytest.mark.parametrize("tile", [(64, 64), (64, 240), (128, 64)])
def test_out_by_element_leaves_wgmma_asynchronous(tile: tuple[int, int], d: Dtype):
    """Single conversions of accumulators made ptxas serialise every wgmma; see `quack.dsl.convert`."""
    config = GemmConfig(*tile, pingpong=True, cluster_m=1)
    facts = kernel_facts(build(Cell(DENSE, "none", BF16, BF16, d, "kkm", config, ("unaligned out",))))
    assert facts["spill_bytes"] == 0 and facts["wgmma_serialized"] == 0, facts
