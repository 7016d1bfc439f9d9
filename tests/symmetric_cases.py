"""`gemm_symmetric` against float64: what is enumerated here runs in the emulator and on the GPU.

A case is a `Case` with m = n, whose operands are made symmetric: B becomes A.mT (or diag(w) @ A.mT), C equals its transpose.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

import quack
from quack.gemm_config import GemmConfig
from tests.cases import Case, CaseOperands, operands, poison
from tests.reference import check, reference

SMALL = GemmConfig(64, 64, pingpong=True, cluster_m=1)  # many tiles for few rows
LARGE = GemmConfig(128, 128, pingpong=True, cluster_m=1)
CONFIGS = {
    "64": SMALL,
    "64 2x1": replace(SMALL, cluster_m=2),
    "64 1x2": replace(SMALL, cluster_n=2),
    "128": LARGE,
    "128 2x1": replace(LARGE, cluster_m=2),
    "128 1x2": replace(LARGE, cluster_n=2),
    "cooperative": GemmConfig(128, 128, cluster_m=1),
    "cooperative 1x2": GemmConfig(128, 128, cluster_m=1, cluster_n=2),
    "dynamic": replace(SMALL, is_dynamic_persistent=True),
    "dynamic 2x1": replace(SMALL, cluster_m=2, is_dynamic_persistent=True),
    "dynamic 1x2": replace(SMALL, cluster_n=2, is_dynamic_persistent=True),
    "single": replace(SMALL, is_persistent=False),
    "single 2x1": replace(SMALL, cluster_m=2, is_persistent=False),
    "strips": replace(SMALL, max_swizzle_size=4),
}


@dataclass(frozen=True)
class SymmetricCase:
    """weighted: B = diag(w) @ A.mT with powers of two, a tensor of its own; otherwise B is A.mT."""

    case: Case
    weighted: bool = False

    def __str__(self) -> str:
        return str(self.case) + ("-weighted" if self.weighted else "")


def symmetric(group: str, m: int, k: int, weighted: bool = False, **options) -> SymmetricCase:
    return SymmetricCase(Case(group, m, m, k, **options), weighted)


def cases() -> Iterator[SymmetricCase]:
    """Every schedule over several strips, every way to store, every epilogue."""
    for name, config in CONFIGS.items():
        yield symmetric(name, 330, 72, config=config)
    for name in ("64", "64 2x1", "cooperative 1x2"):
        config = CONFIGS[name]
        for m in (200, 193):  # whole 16-byte chunks, and by element
            yield symmetric(name, m, 72, config=config, c="bf16", alpha=0.5, beta=-2.0)
            yield symmetric(name, m, 72, config=config, c="bf16", in_place=True, beta=0.5)
        yield symmetric(name, 200, 72, config=config, batch=2, c="fp32", out="fp32", in_place=True)
    for m in (1, 7, 64, 65, 128, 129):
        yield symmetric("edge", m, 64, config=SMALL)
    yield symmetric("k = 1", 136, 1, config=SMALL)
    yield symmetric("k = 0", 136, 0, config=SMALL, c="bf16", beta=2.0)
    for a, out in (("bf16", "bf16"), ("bf16", "fp32"), ("fp16", "fp16"), ("bf16", "fp16")):
        yield symmetric("dtype", 200, 136, a=a, b=a, out=out, c=out, config=LARGE)
    for a_major, out_major, c_major in ("mnn", "kmn", "knm", "mmm"):
        majors = dict(a_major=a_major, out_major=out_major, c_major=c_major)
        yield symmetric("majors", 200, 72, c="bf16", config=SMALL, **majors)
        yield symmetric("majors", 197, 72, c="bf16", config=LARGE, **majors)
    for pitch in ("padded", "odd"):
        yield symmetric(pitch, 200, 72, pitch=pitch, out_pitch=pitch, c_pitch=pitch, c="fp32", config=SMALL)
        yield symmetric(pitch, 200, 72, out_pitch=pitch, out="fp32", batch=2, batching="interleaved", config=LARGE)
    yield symmetric("scalars on device", 200, 72, c="bf16", alpha=0.5, beta=2.0, device_scalars=True, config=SMALL)
    yield symmetric("weighted", 200, 136, weighted=True, config=LARGE)
    yield symmetric("weighted", 200, 136, weighted=True, c="bf16", in_place=True)
    for m, k in ((64, 64), (136, 72), (200, 136)):  # the heuristics' choice
        yield symmetric("chosen", m, k)
        yield symmetric("chosen", m, k, c="bf16", in_place=True, batch=2)


def symmetric_operands(case: SymmetricCase, device: str) -> CaseOperands:
    t = operands(case.case, device)
    t.B = t.A.mT
    if case.weighted:
        generator = torch.Generator().manual_seed(case.case.seed)
        weights = 2.0 ** torch.randint(-2, 3, (case.case.k, 1), generator=generator)
        t.B = (t.A.float().mT * weights.to(device)).to(t.A.dtype)
    if t.C is not None:
        values = t.C.clone()
        t.C.copy_(values.triu() + values.triu(1).mT)
    return t


def run(case: SymmetricCase, t: CaseOperands, C: torch.Tensor | None) -> torch.Tensor:
    """One launch into a poisoned buffer (C, if in place); returns a copy of the result."""
    poison(t.out.buffer)
    if case.case.in_place and C is not None:
        t.out.tensor.copy_(C)
    out = quack.gemm_symmetric(t.A, t.B, t.C, t.out.tensor, alpha=t.alpha, beta=t.beta, config=case.case.config)
    assert out is t.out.tensor
    return out.clone()


def verify(case: SymmetricCase, t: CaseOperands, C: torch.Tensor | None, out: torch.Tensor) -> None:
    """Right, the same bits on both sides of the diagonal, and nothing written around it."""
    check(case.case, out, reference(case.case, t, C))
    assert torch.equal(out, out.mT), "not symmetric"
    written = t.out.buffer.view(torch.uint8).view(t.out.buffer.numel(), -1) != 0xFF
    assert not (written.any(1) & t.out.outside()).any(), "elements outside the output were written"


def run_and_verify(case: SymmetricCase, device: str) -> None:
    t = symmetric_operands(case, device)
    C = t.C.clone() if t.C is not None else None
    inputs = t.A.clone(), t.B.clone()
    verify(case, t, C, run(case, t, C))
    assert torch.equal(t.A, inputs[0]) and torch.equal(t.B, inputs[1])
    assert C is None or case.case.in_place or torch.equal(t.C, C)


def check_that_mirrors_are_copies(config: GemmConfig, device: str) -> None:
    """A product that is not symmetric gives itself away: of two mirrored tiles one is computed, the other its copy."""
    a, b = (torch.randn(330, 72, device=device).bfloat16() for _ in range(2))
    exact = a.double() @ b.double().mT
    out = quack.gemm_symmetric(a, b.mT, config=config, out_dtype=torch.float32)
    tile, computed = config.tile_m, 0
    for i in range(0, 330, tile):
        for j in range(0, i + 1, tile):
            here, there = out[i : i + tile, j : j + tile], out[j : j + tile, i : i + tile]
            errors = [
                ((x.double() - y).norm() / y.norm()).item()
                for x, y in ((here, exact[i : i + tile, j : j + tile]), (there, exact[j : j + tile, i : i + tile]))
            ]
            assert min(errors) < 1e-5
            if i != j:
                assert torch.equal(here, there.mT) and max(errors) > 0.1
                computed += 1
    assert computed > 2
