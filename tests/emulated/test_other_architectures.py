"""Kernels for sm_120a and sm_100a in the emulator, against float64, with NaN around every operand; three architectures in turn.

Not quack's own, which have files of tests of their own: small ones that the emulator was built with, `gemm_sm120` and `gemm_sm100`.
"""

import functools
import math
from typing import Any, NamedTuple, Union

import cutlass
import pytest
import torch
from cutlass import cute
from cutlass.cute import runtime as cute_runtime

import quack
from quack import emulator
from tests.cases import DTYPES, Case, CaseOperands, operands, poison
from tests.emulated.gemm_sm100 import Sm100Gemm
from tests.emulated.gemm_sm120 import Sm120Gemm
from tests.reference import check, reference
from tests.schedules import EVERY_SCHEDULE

SMS = 4  # few, so that persistent kernels take several tiles per CTA
CUTE_DTYPES = {
    "bf16": cutlass.BFloat16,
    "fp16": cutlass.Float16,
    "fp32": cutlass.Float32,
    "e4m3": cutlass.Float8E4M3FN,
    "e5m2": cutlass.Float8E5M2,
}
BF16, FP32 = cutlass.BFloat16, cutlass.Float32
TF32_BITS_CUT = 13  # of fp32


class Variant(NamedTuple):
    """A kernel for the PTX target of `arch`. a, out: names of its dtypes."""

    arch: str
    kernel: type
    a: str
    out: str
    tile: tuple[int, ...]
    options: dict[str, Any]

    def build(self) -> Union[Sm100Gemm, Sm120Gemm]:
        return self.kernel(*self.tile, CUTE_DTYPES[self.a], CUTE_DTYPES[self.out], **self.options)

    @property
    def cluster_size(self) -> int:
        return math.prod(self.options.get("cluster", ()))

    def case(self, name: str, m: int, n: int, k: int, **options: Any) -> Case:
        return Case(name, m, n, k, a=self.a, b=self.a, out=self.out, **options)


def sm120(
    tile: tuple[int, int, int], a: str = "bf16", out: str = "bf16", stages: int = 3, arch: str = "sm120"
) -> Variant:
    return Variant(arch, Sm120Gemm, a, out, tile, {"stages": stages})


def sm100(
    tile_n: int, cta_group: int, cluster: tuple[int, int], a: str = "bf16", out: str = "bf16", **options
) -> Variant:
    options |= {"cta_group": cta_group, "cluster": cluster}
    return Variant("sm100", Sm100Gemm, a, out, (128 * cta_group, tile_n), options)


VARIANTS = {
    "sm120": sm120((64, 64, 32)),
    "sm120 wide": sm120((64, 128, 64), "fp16", "fp32", stages=2),
    "sm120 tall": sm120((128, 32, 32), "fp16", "fp16", stages=4),
    "sm120 e4m3": sm120((64, 64, 64), "e4m3", "bf16"),
    "sm120 e5m2": sm120((32, 64, 128), "e5m2", "fp32", stages=2),
    "sm120 kernel for sm90": sm120((64, 64, 32), arch="sm90"),
    "sm100": sm100(64, 1, (1, 1)),
    "sm100 wide": sm100(256, 1, (1, 1), "fp16", "fp32", stages=2),
    "sm100 multicast": sm100(64, 1, (2, 2)),
    "sm100 tf32": sm100(96, 1, (1, 1), "fp32", "fp32"),
    "sm100 e4m3": sm100(64, 1, (1, 2), "e4m3", "bf16"),
    "sm100 clc": sm100(64, 1, (1, 2), is_dynamic=True),
    "sm100 pair": sm100(64, 2, (2, 1)),
    "sm100 pair wide": sm100(256, 2, (2, 1), "fp16", "fp16"),
    "sm100 pair multicast": sm100(64, 2, (4, 2), stages=2),
    "sm100 pair tf32": sm100(64, 2, (2, 1), "fp32", "fp32"),
    "sm100 pair e5m2": sm100(128, 2, (2, 1), "e5m2", "fp32"),
    "sm100 pair clc": sm100(64, 2, (2, 1), is_dynamic=True),
}
GRIDS = {
    "sm120": {
        "interior": (128, 192, 64),
        "edges": (136, 200, 104),
        "one tile": (64, 64, 32),
        "less than a tile": (40, 24, 16),
        "one row": (1, 72, 40),
        "odd": (131, 72, 72),
        "long k": (33, 40, 1000),
        "works wrap": (300, 264, 48),
    },
    "sm100": {
        "interior": (256, 128, 128),
        "edges": (200, 136, 136),
        "one tile": (128, 64, 64),
        "less than a tile": (40, 24, 16),
        "one row": (1, 72, 40),
        "odd": (131, 72, 72),
        "long k": (72, 40, 1000),
        "works wrap": (520, 328, 72),
    },
}  # fmt: skip
SEVERAL_TILES = {"sm120": (260, 72, 144), "sm100": (520, 136, 144)}  # for every CTA, so that all rings wrap
FULL_GRID = ("sm120", "sm100", "sm100 pair")
SCHEDULED = ("sm120", "sm100", "sm100 clc", "sm100 pair multicast", "sm100 pair clc")


def grid() -> list[tuple[str, Case]]:
    """Every shape and batches with three variants; edges with all."""
    found = [
        (name, VARIANTS[name].case(shape, *mnk)) for name in FULL_GRID for shape, mnk in GRIDS[name.split()[0]].items()
    ]
    found += [(name, v.case("edges", 300, 208, 144)) for name, v in VARIANTS.items() if name not in FULL_GRID]
    found += [(name, VARIANTS[name].case("batch", 136, 72, 80, batch=3, pitch="padded")) for name in FULL_GRID]
    found += [
        (name, VARIANTS[name].case("batch", 40, 136, 48, batch=2, batching="interleaved", out_pitch="padded"))
        for name in FULL_GRID
    ]
    return found


@functools.cache
def compiled(name: str):
    """A variant, for all shapes."""

    def operand(dtype: str):
        divisibility = 16 // DTYPES[dtype].itemsize
        strides = (cute.sym_int64(divisibility=divisibility), 1, cute.sym_int64(divisibility=divisibility))
        shape = tuple(cute.sym_int() for _ in strides)
        return cute_runtime.make_fake_tensor(CUTE_DTYPES[dtype], shape, strides, assumed_align=16)

    variant = VARIANTS[name]
    return cute.compile(
        variant.build(),
        operand(variant.a),
        operand(variant.a),
        operand(variant.out),
        cutlass.Int32(1),
        cute_runtime.make_fake_stream(use_tvm_ffi_env_stream=True),
        options=emulator.compile_options(variant.arch),
    )


def inputs(case: Case) -> CaseOperands:
    """On the CPU; fp32 numbers that are exact in tf32."""
    found = operands(case, "cpu")
    for tensor in (found.A, found.B):
        if tensor.dtype is torch.float32:
            tensor.view(torch.int32).bitwise_and_(-1 << TF32_BITS_CUT)
    return found


def run(
    name: str, case: Case, t: CaseOperands, schedule: str = "latest", checks: tuple[str, ...] = ()
) -> emulator.Report:
    """D = A @ B, into an output of NaN that has no elements around it overwritten."""
    poison(t.out.buffer)
    batched = [x.unsqueeze(0) if x.ndim == 2 else x for x in (t.A, t.B, t.out.tensor)]
    a, b, d = batched[0].permute(1, 2, 0), batched[1].permute(2, 1, 0), batched[2].permute(1, 2, 0)
    size = VARIANTS[name].cluster_size
    sms = max(SMS, size)
    report = emulator.launch(compiled(name), a, b, d, sms // size, schedule=schedule, checks=checks, sms=sms)
    written = t.out.buffer.view(torch.uint8).view(t.out.buffer.numel(), -1) != 0xFF
    assert not (written.any(1) & t.out.outside()).any(), "elements outside the output were written"
    return report


@pytest.mark.parametrize("schedule", ["eager", "latest"])
@pytest.mark.parametrize("name, case", grid(), ids=str)
def test_against_reference(name: str, case: Case, schedule: str):
    t = inputs(case)
    run(name, case, t, schedule)
    check(case, t.out.tensor, reference(case, t, None))


@pytest.mark.parametrize("name", VARIANTS)
def test_all_checkers_pass(name: str):
    case = VARIANTS[name].case("checked", *SEVERAL_TILES[name.split()[0]])
    t = inputs(case)
    run(name, case, t, checks=("all",))
    check(case, t.out.tensor, reference(case, t, None))


@pytest.mark.parametrize("name", SCHEDULED)
def test_random_schedules_give_the_same_bits(name: str):
    case = VARIANTS[name].case("schedules", *SEVERAL_TILES[name.split()[0]])
    t = inputs(case)
    results = set()
    for schedule in EVERY_SCHEDULE:
        run(name, case, t, schedule)
        results.add(t.out.tensor.contiguous().view(torch.uint8).numpy().tobytes())
    assert len(results) == 1


def test_persistent_kernels_launch_few_ctas():
    case = VARIANTS["sm120"].case("works wrap", *GRIDS["sm120"]["works wrap"])
    assert run("sm120", case, inputs(case)).kernels[0].grid == (SMS, 1, 1)
    case = VARIANTS["sm100 pair"].case("works wrap", *GRIDS["sm100"]["works wrap"])
    assert run("sm100 pair", case, inputs(case)).kernels[0].grid == (SMS, 1, 1)
    assert run("sm100 pair clc", case, inputs(case)).kernels[0].grid[0] > SMS


def test_architectures_in_turn():
    """Kernels of three architectures in one process, each twice: same bits, whatever ran before."""
    case = Case("in turn", 136, 72, 80)
    t = inputs(case)
    expected = reference(case, t, None)
    results: dict[str, set[bytes]] = {}
    for name in 2 * ("sm90", "sm120", "sm100", "sm120 kernel for sm90", "sm100 pair"):
        if name == "sm90":
            poison(t.out.buffer)
            with emulator.use("sm90", sms=SMS):
                quack.gemm_tuned.fn(t.A, t.B, t.out.tensor)
        else:
            assert run(name, case, t).arch == VARIANTS[name].arch
        check(case, t.out.tensor, expected)
        results.setdefault(name, set()).add(t.out.tensor.contiguous().view(torch.uint8).numpy().tobytes())
    assert all(len(bits) == 1 for bits in results.values())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sm120Gemm(128, 128, 64, BF16, BF16, 3),  # 128 KB of shared memory
        lambda: Sm120Gemm(48, 64, 32, BF16, BF16, 2),
        lambda: Sm100Gemm(128, 256, BF16, FP32, stages=5),
        lambda: Sm100Gemm(128, 64, BF16, BF16, cta_group=2, cluster=(2, 1)),
        lambda: Sm100Gemm(256, 64, BF16, BF16, cta_group=2, cluster=(1, 2)),
    ],
)
def test_kernels_that_do_not_fit_are_refused(make):
    with pytest.raises(ValueError, match="shared memory|tile|cluster"):
        make()
