"""What legality refuses says why, and what it admits compiles without spills. See test_heuristics.py for the full grid."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from quack.gemm_config import Dtype, GemmConfig, Major, OperandSpecs
from quack.gemm_port import PortKind
from quack.gemm_resources import MAX_AB_STAGES, GemmResources
from quack.runtime.compile import kernel_facts
from quack.runtime.legality import legality
from quack.runtime.spec import DENSE, GATHER_K, GATHER_M, GROUPED, VARLEN_K, VARLEN_M, GemmSpec, UnsupportedGemm
from quack.runtime.split_k import split_spec
from quack.sm90.resources import MMA_REGISTERS, SMEM_CAPACITY, resources
from quack.split_k import SplitKMode
from tests.unit.ledger import full_epilogue, gemm, operands, shipped

REGISTER_FILE = 65536  # 32-bit registers of one SM
SAMPLE = 12


def changed(a: Any = None, b: Any = None, d: Any = None) -> OperandSpecs:
    """bf16 operands with changes, one dictionary each."""
    specs = operands()
    return specs._replace(
        a=replace(specs.a, **(a or {})), b=replace(specs.b, **(b or {})), d=replace(specs.d, **(d or {}))
    )


def budget_of(spec: GemmSpec) -> GemmResources:
    return resources(spec.operands, spec.config, spec.fast_accum, spec.epilogue)


@pytest.mark.parametrize(
    "config, specs, words",
    [
        (dict(tile_m=96), operands(), ["tile_m=96", "64", "256", "tile_m=64"]),
        (dict(tile_n=24), operands(), ["tile_n=24", "16..256"]),
        (dict(tile_n=272), operands(), ["tile_n=272", "16..256"]),
        (dict(tile_k=32), operands(), ["tile_k=32", "64 bytes", "tile_k=64"]),
        (dict(tile_m=256, tile_n=128, pingpong=True), operands(), ["ping-pong", "tile_m=256", "128"]),
        (dict(is_dynamic_persistent=True, is_persistent=False), operands(), ["is_persistent=True"]),
        (dict(cluster_m=3), operands(), ["(3, 1)", "4 CTAs"]),
        (dict(cluster_m=4, cluster_n=2), operands(), ["(4, 2)", "4 CTAs"]),
        (dict(use_tma_gather=True), operands(), ["use_tma_gather", "sm_90a"]),
        (dict(device_capacity=10), operands(), ["device_capacity=10"]),
        (dict(max_swizzle_size=0), operands(), ["max_swizzle_size=0"]),
        (dict(tile_n=192, pingpong=True), operands(majors="knn"), ["192", "of B", "2 multicast", "64-element"]),
        (dict(tile_m=256, tile_n=256), operands(), ["256x256", "256 accumulator registers", "limit", "tile_n"]),
        (dict(tile_m=192, tile_n=256), operands(), ["192x256", "128 accumulator registers", "limit 64"]),
        (dict(tile_m=256, tile_n=192, tile_k=128), operands(), ["256x192x128", "1 operand stages", "at least 2"]),
        ({}, changed(a={"dtype": Dtype.FP32}), ["A is fp32", "B is bf16", "convert"]),
        ({}, operands(Dtype.FP32, majors="knn"), ["fp32 B", "K-major", "A can go through registers", "contiguous"]),
        (dict(tile_n=192, pingpong=True), operands(Dtype.FP32, majors="mkn"), ["192 accumulator registers", "limit 160"]),
        ({}, changed(a={"dtype": Dtype.FP16}), ["A is fp16", "B is bf16"]),
        ({}, changed(b={"dtype": Dtype.E4M3}), ["A is bf16", "B is fp8_e4m3"]),
        ({}, operands(Dtype.E5M2, majors="knn"), ["fp8 B", "K-major", "contiguous"]),
        ({}, operands(Dtype.E5M2, majors="mkn"), ["fp8 A", "K-major", "contiguous"]),
        ({}, changed(b={"align": 2}), ["B is not 16-byte aligned", "copy of B"]),
    ],
)  # fmt: skip
def test_refusal_names_the_values(config: dict[str, Any], specs: OperandSpecs, words: list[str]):
    verdict = legality(gemm(GemmConfig(**config), specs))
    with pytest.raises(UnsupportedGemm) as caught:
        verdict.require()
    assert caught.value.reason == verdict.reason and caught.value.alternative == verdict.alternative
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{caught.value} does not mention {missing}"


@pytest.mark.parametrize("cluster", [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("gathered, plain, majors", [(GATHER_M, VARLEN_M, "kkn"), (GATHER_K, VARLEN_K, "mnn")])
def test_gathered_a_is_not_multicast(gathered: str, plain: str, majors: str, cluster: tuple[int, int]):
    config = GemmConfig(128, 128, cluster_m=cluster[0], cluster_n=cluster[1])
    spec = gemm(config, operands(majors=majors), adapter=plain)
    assert legality(spec).ok == (cluster != (4, 1) or majors == "kkn")  # B does not split into four atoms of 64 columns
    verdict = legality(replace(spec, adapter=gathered))
    assert verdict.ok == (cluster[1] == 1 and legality(spec).ok)
    if cluster[1] == 2:
        assert verdict.reason and "cluster_n=2" in verdict.reason and verdict.alternative == "cluster_n=1"


@pytest.mark.parametrize(
    "adapter, majors, config",
    [
        (GATHER_M, "kkn", GemmConfig(256, 128, 128, cluster_m=1)),
        (GATHER_M, "kkn", GemmConfig(192, 128, cluster_m=1)),
        (GATHER_K, "mnn", GemmConfig(256, 128, 128, cluster_m=1)),
        (GATHER_K, "mnn", GemmConfig(192, 128, cluster_m=1)),
    ],
)
def test_gathering_fits_the_registers_of_loading_warps(adapter: str, majors: str, config: GemmConfig):
    spec = gemm(config, operands(majors=majors), adapter=adapter)
    assert legality(spec).ok
    now = kernel_facts(spec)
    assert now["spill_bytes"] == 0 and now["wgmma_serialized"] == 0
    if config.tile_m == 192:
        refused = legality(gemm(replace(config, tile_k=128), operands(majors=majors), adapter=adapter))
        assert refused.reason and "32 registers" in refused.reason and refused.alternative == "tile_k=64"


@pytest.mark.parametrize("adapter, majors", [(GATHER_M, "mkn"), (GATHER_K, "knn")])
def test_gathered_lines_are_contiguous(adapter: str, majors: str):
    verdict = legality(gemm(GemmConfig(cluster_m=1), operands(majors=majors), adapter=adapter))
    assert verdict.reason and "-major" in verdict.reason and "contiguous" in str(verdict.alternative)


def test_an_order_needs_an_adapter_with_a_permuted_schedule():
    spec = replace(gemm(GemmConfig(), operands()), is_permuted=True)
    assert legality(spec).ok
    verdict = legality(replace(spec, adapter="elsewhere:Adapter"))
    assert "batch_idx_permute" in str(verdict.reason) and "elsewhere:Adapter" in str(verdict.reason)


def test_halves_of_a_ragged_dimension_are_refused():
    """Which dimension holds the halves follows from the major: only that of M (varlen-M) or K (varlen-K) is refused."""
    halves = {"is_concat": True}
    for adapter, majors, side, ok in (
        (VARLEN_M, "kkn", "a", False), (VARLEN_M, "kkn", "d", False), (VARLEN_M, "kkn", "b", True),
        (VARLEN_M, "knn", "b", True), (VARLEN_K, "mnn", "a", False), (VARLEN_K, "mnn", "b", False),
        (VARLEN_K, "mnn", "d", True), (VARLEN_K, "mnm", "d", True), (DENSE, "mnm", "a", True),
    ):  # fmt: skip
        specs = operands(majors=majors)
        specs = specs._replace(**{side: replace(getattr(specs, side), **halves)})
        verdict = legality(gemm(GemmConfig(128, 128), specs, adapter=adapter))
        assert verdict.ok == ok, (adapter, majors, side, verdict)
        assert ok or "concat_layout" in str(verdict.reason)


def test_unknown_architectures_are_refused_by_name():
    assert "sm_80" in str(legality(replace(gemm(GemmConfig(), operands()), arch="sm_80")).reason)


def kinds() -> dict[str, GemmSpec]:
    """Operands and epilogues that differ in what they ask of registers and shared memory."""
    with_c = {d: operands(d=d)._replace(c=operands(d=d).d) for d in (Dtype.BF16, Dtype.FP32)}
    elements = replace(operands().d, align=2)
    specs = {f"bf16 {majors}": operands(majors=majors) for majors in ("kkn", "mnn", "mkm", "knm")}
    specs |= {
        "fp16 -> fp32": operands(Dtype.FP16, Dtype.FP32),
        "bf16 -> fp8": operands(d=Dtype.E5M2),
        "fp8": operands(Dtype.E5M2),
        "elements of D": operands(align=2),
        "elements of C": operands()._replace(c=elements),
        "elements of C and D": operands(align=2)._replace(c=elements),
        "bf16 C": with_c[Dtype.BF16],
        "fp32 C": with_c[Dtype.FP32],
    }
    rows = {name: gemm(GemmConfig(), s) for name, s in specs.items()}
    rows["fp8 precise"] = replace(rows["fp8"], fast_accum=False)
    for name in ("bf16 C", "fp32 C", "elements of C and D"):
        rows[f"{name}, all mixins"] = replace(rows[name], epilogue=full_epilogue())
    return rows


def in_halves(spec: GemmSpec) -> GemmSpec:
    """Every operand and vector stored as two halves."""
    stored = [operand and replace(operand, is_concat=True) for operand in spec.operands]
    ops = [
        replace(op, ports=tuple(replace(p, is_concat=p.kind is not PortKind.SCALAR) for p in op.ports))
        for op in spec.epilogue
    ]
    return replace(spec, operands=OperandSpecs(*stored), epilogue=tuple(ops))


def configurations(kind: GemmSpec) -> Iterator[GemmSpec]:
    grid = itertools.product(
        (64, 128, 192, 256), range(16, 257, 16), (1, 2), (False, True), ((1, 1), (2, 1), (1, 2), (2, 2), (4, 1))
    )
    for tile_m, tile_n, k_rows, pingpong, (cluster_m, cluster_n) in grid:
        tile_k = k_rows * 128 // kind.operands.a.dtype.bytes
        yield replace(
            kind,
            config=GemmConfig(tile_m, tile_n, tile_k, pingpong=pingpong, cluster_m=cluster_m, cluster_n=cluster_n),
        )


@pytest.mark.parametrize("name", kinds())
def test_every_configuration_fits_or_is_refused_with_numbers(name: str):
    verdicts = {True: 0, False: 0}
    for spec in configurations(kinds()[name]):
        verdict, budget = legality(spec), budget_of(spec)
        verdicts[verdict.ok] += 1
        if verdict.ok:
            assert 2 <= budget.ab_stages <= MAX_AB_STAGES and budget.smem_bytes <= SMEM_CAPACITY
            assert budget.accumulator_registers < MMA_REGISTERS[budget.mma_warpgroups]
            used = budget.producer_registers + budget.mma_warpgroups * budget.mma_registers
            assert 128 * used <= REGISTER_FILE and used * 128 % 8 == 0
            share = 1 if spec.config.pingpong else budget.mma_warpgroups
            assert budget.slabs * share * 64 == spec.config.tile_m
            assert spec.config.tile_n % budget.epi_n == 0
        else:
            assert verdict.reason and verdict.alternative and any(c.isdigit() for c in verdict.reason)
    assert min(verdicts.values()) > 50


def test_outer_major_b_never_splits_a_swizzle_atom():
    for spec in configurations(kinds()["bf16 mnn"]):
        config = spec.config
        if legality(spec).ok:
            for operand, tile, ctas in (
                (spec.operands.a, config.tile_m, config.cluster_n),
                (spec.operands.b, config.tile_n, config.cluster_m),
            ):
                assert operand.major is Major.OUTER and tile % (16 * ctas) == 0


def sample(seed: int, count: int) -> dict[str, GemmSpec]:
    """Random legal configurations; every second one among those of its kind with the most accumulators."""
    rng, rows, found = random.Random(seed), kinds(), {}
    names = rng.sample(sorted(rows), k=min(count, len(rows))) + rng.choices(sorted(rows), k=max(0, count - len(rows)))
    for i, name in enumerate(names):
        legal = [s for s in configurations(rows[name]) if legality(s).ok]
        if i % 2 == 0:
            most = max(budget_of(s).accumulator_registers for s in legal)
            legal = [s for s in legal if budget_of(s).accumulator_registers == most]
        spec = rng.choice(legal)
        found[f"{name} {spec.config}"] = spec
    return found


@pytest.mark.parametrize("name", SAMPLED := sample(seed=7, count=SAMPLE))
def test_legal_configurations_compile_without_spills(name: str):
    spec = SAMPLED[name]
    now, budget = kernel_facts(spec), budget_of(spec)
    assert now["spill_bytes"] == 0 and now["wgmma_serialized"] == 0, now
    assert budget.smem_bytes - 1024 <= now["smem_bytes"] <= budget.smem_bytes


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["bf16 mkm", "elements of C and D", "elements of C and D, all mixins"])
@pytest.mark.parametrize("warpgroups", [1, 2, 3])
def test_operands_in_halves_compile_without_spills(name: str, warpgroups: int):
    """The most accumulators for one, two and three warpgroups, where addresses take the most registers.

    Ping-pong kernels that store D by element serialise wgmma on some tiles, with halves or without: none may be added.
    """
    legal = [s for s in configurations(in_halves(kinds()[name])) if legality(s).ok]
    spec = max(
        (s for s in legal if budget_of(s).mma_warpgroups == warpgroups),
        key=lambda s: budget_of(s).accumulator_registers,
    )
    now, plain = kernel_facts(spec), kernel_facts(replace(kinds()[name], config=spec.config))
    assert now["spill_bytes"] == 0, (spec.config, now)
    assert now["wgmma_serialized"] <= plain["wgmma_serialized"], (spec.config, now)


@pytest.mark.parametrize("mode", [SplitKMode.SERIAL, SplitKMode.STREAM])
def test_parts_with_reductions_and_c_need_registers(mode: SplitKMode):
    """Measured: 16 to 48 bytes of spills with 128 accumulators in two slabs of a shared tile, none with 112 or in one."""
    rows = {n: s for n, s in shipped().items() if n.startswith("sm_90a rms with C") and "split" not in n}
    assert len(rows) == 3
    for spec in rows.values():
        config = spec.config
        verdict = legality(split_spec(spec, mode))
        is_narrow = not config.pingpong and config.tile_m == 256
        assert legality(spec).ok and verdict.ok != is_narrow and (verdict.ok or "limit 112" in str(verdict.reason))
        assert legality(split_spec(replace(spec, config=replace(config, tile_n=112)), mode)).ok


@pytest.mark.parametrize("adapter", [VARLEN_M, GROUPED])
def test_parts_of_ragged_problems_need_registers(adapter: str):
    """Measured: 16 to 80 bytes of spills beyond, none within."""
    pingpong = GemmConfig(128, 128, pingpong=True, is_dynamic_persistent=True)
    cooperative = GemmConfig(128, 256, is_dynamic_persistent=True)

    def verdict(config: GemmConfig, adapter: str = adapter):
        return legality(split_spec(gemm(config, operands(), adapter=adapter), SplitKMode.SERIAL))

    assert verdict(pingpong).ok and verdict(cooperative, DENSE).ok
    for config in (replace(pingpong, tile_n=192), cooperative):
        assert "accumulator registers" in str(verdict(config).reason)
