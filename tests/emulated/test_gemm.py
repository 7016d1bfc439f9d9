"""quack's GEMMs in the emulator, against float64, with NaN around every operand: what tests/gpu runs on hardware."""

import pytest
import torch

import quack
from quack.gemm_config import GemmConfig
from tests.cases import Case, CaseOperands, operands, poison
from tests.reference import check, reference
from tests.schedules import EVERY_SCHEDULE

SMS = 4  # few, so that persistent kernels take several tiles per CTA
PINGPONG = GemmConfig(128, 128, pingpong=True)
COOPERATIVE = GemmConfig(128, 256)

SHAPES = {
    "interior": (256, 256, 128),
    "edges": (200, 264, 136),
    "one tile": (128, 128, 64),
    "less than a tile": (40, 24, 16),
    "odd": (131, 203, 77),
    "long k": (64, 64, 1000),
    "one row": (1, 136, 200),
    "one column": (136, 1, 200),
    "k = 1": (72, 80, 1),
}
CONFIGS = {
    "pingpong": PINGPONG,
    "cooperative": COOPERATIVE,
    "narrow": GemmConfig(128, 32, pingpong=True),
    "cluster 2x1": GemmConfig(128, 128, cluster_m=2, pingpong=True),
    "cluster 1x2": GemmConfig(128, 128, cluster_n=2),
    "three warpgroups": GemmConfig(192, 128),
    "not persistent": GemmConfig(128, 128, pingpong=True, is_persistent=False),
    "dynamic": GemmConfig(128, 128, pingpong=True, is_dynamic_persistent=True),
    "swapped": GemmConfig(128, 128, pingpong=True, swap_ab=True),
}


def cases() -> list[Case]:
    """Shapes with the heuristics' choice, configurations at the edges, and every kind of operand and epilogue once."""
    found = [Case(name, *shape) for name, shape in SHAPES.items()]
    found += [Case(name, 300, 392, 200, config=config) for name, config in CONFIGS.items()]
    found += [
        Case("majors", 200, 264, 136, a_major=a, b_major=b, out_major=out)
        for a, b, out in ("mkn", "knn", "mnn", "kkm", "mnm")
    ]
    found += [
        Case("batch", 136, 72, 80, batch=3),
        Case("batch interleaved", 136, 72, 80, batch=3, batching="interleaved"),
        Case("batch expanded", 136, 72, 80, batch=2, batching="expanded"),
        Case("fp16", 136, 200, 136, a="fp16", b="fp16", out="fp16"),
        Case("fp32 out", 136, 200, 136, out="fp32"),
        Case("fp8 out", 136, 200, 136, out="e4m3"),
        Case("fp8", 136, 200, 272, a="e4m3", b="e4m3"),
        Case("fp8 mixed", 136, 200, 272, a="e4m3", b="e5m2", fast_accum=True),
        Case("c", 200, 136, 136, c="bf16", alpha=0.5, beta=-2.0),
        Case("c fp32", 200, 136, 136, c="fp32", out="fp32", c_major="m"),
        Case("in place", 200, 136, 136, c="bf16", in_place=True),
        Case("bias", 200, 136, 136, bias="bf16", batch=2, bias_batched=True),
        Case("scalars on device", 200, 136, 136, c="bf16", alpha=0.5, beta=2.0, device_scalars=True),
        Case("odd pitch", 131, 75, 72, pitch="odd", out_pitch="odd"),
        Case("odd pitch with c", 131, 75, 72, c="bf16", c_pitch="odd", out_pitch="padded"),
    ]
    return found


def launch(case: Case, t: CaseOperands) -> None:
    quack.gemm_tuned.fn(
        t.A, t.B, t.out.tensor, C=t.C, bias=t.bias, alpha=t.alpha, beta=t.beta, config=case.config,
        fast_accum=case.fast_accum,
    )  # fmt: skip


@pytest.mark.parametrize("schedule, checks", [("eager", ()), ("latest", ("all",))], ids=["eager", "latest-checked"])
@pytest.mark.parametrize("case", cases(), ids=str)
def test_against_reference(case: Case, schedule: str, checks: tuple[str, ...]):
    t = operands(case, "cpu")
    C = t.C.clone() if t.C is not None else None
    poison(t.out.buffer)
    if case.in_place and C is not None:
        t.out.tensor.copy_(C)
    with quack.emulator.use("sm90", schedule=schedule, checks=checks, sms=SMS):
        launch(case, t)
    check(case, t.out.tensor, reference(case, t, C))
    written = t.out.buffer.view(torch.uint8).view(t.out.buffer.numel(), -1) != 0xFF
    assert not (written.any(1) & t.out.outside()).any(), "elements outside the output were written"


@pytest.mark.parametrize("name", ["pingpong", "cluster 2x1", "dynamic"])
def test_random_schedules_give_the_same_bits(name: str):
    case = Case("schedules", 300, 264, 136, c="bf16", bias="bf16", config=CONFIGS[name])
    t = operands(case, "cpu")
    results = set()
    for schedule in EVERY_SCHEDULE:
        poison(t.out.buffer)
        with quack.emulator.use("sm90", schedule=schedule, sms=SMS):
            launch(case, t)
        results.add(t.out.tensor.contiguous().view(torch.uint8).numpy().tobytes())
    assert len(results) == 1


@pytest.mark.parametrize("pingpong", [True, False])
def test_c_is_read_before_tma_may_refill_its_ring(pingpong: bool):
    """A race that an H200 lost, and that only the strict checker sees."""
    case = Case("refills", 200, 264, 72, c="fp32", out="fp32", config=GemmConfig(128, 128, pingpong=pingpong))
    t = operands(case, "cpu")
    with quack.emulator.use("sm90", schedule="latest", checks=("all", "refills"), sms=SMS):
        launch(case, t)
    check(case, t.out.tensor, reference(case, t, t.C))
