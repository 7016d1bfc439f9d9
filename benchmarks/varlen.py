"""Ragged GEMMs against torch._grouped_mm: `cu_seqlens_m` (MoE forward), the same with `A_idx`, and `cu_seqlens_k` (weight
gradient).

    python benchmarks/varlen.py [--out FILE] [--rounds N] [--shapes E:totalxNxK,...] [--rest SECONDS]

Expert loads are uniform random weights in [0.1, 1.1], normalised; the offsets stay on the device.
"""

import argparse
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch

import quack

import common
from common import Recorder, Replay, Row

Timing = tuple[int, float]  # rounds, rest: as `common.interleave` takes them
SHAPES = "8:16384x14336x4096,64:32768x2048x2048,128:16384x1536x4096"


@dataclass(frozen=True)
class Shape:
    """`experts` groups share `total` rows; every group multiplies (rows, k) by (k, n)."""

    experts: int
    total: int
    n: int
    k: int

    @classmethod
    def parse(cls, text: str) -> "Shape":
        experts, _, extents = text.partition(":")
        return cls(int(experts), *map(int, extents.split("x")))

    def __str__(self) -> str:
        return f"{self.experts}:{self.total}x{self.n}x{self.k}"

    @property
    def flops(self) -> float:
        return 2.0 * self.total * self.n * self.k

    def offsets(self) -> torch.Tensor:
        """(experts + 1,) int32 on the GPU."""
        weights = torch.rand(self.experts, generator=torch.Generator().manual_seed(self.experts)) + 0.1
        ends = (weights.cumsum(0) / weights.sum() * self.total).round().int()
        return torch.cat([torch.zeros(1, dtype=torch.int32), ends]).cuda()


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def forward(shape: Shape, timing: Timing) -> Row:
    """x (total, K) times weight (E, N, K)^T per group."""
    return multiply_experts("varlen_m", shape, timing, None)


def gathered(shape: Shape, timing: Timing) -> Row:
    """The same on rows picked at random from x (total / 4, K), as top-4 routing does; torch copies them first."""
    index = torch.randperm(shape.total, device="cuda").remainder(shape.total // 4).int()
    return multiply_experts("gather_m", shape, timing, index)


def multiply_experts(bench: str, shape: Shape, timing: Timing, index: Optional[torch.Tensor]) -> Row:
    """index (total,): which row of x each row is; None: x has them in order."""
    cu, tokens = shape.offsets(), shape.total if index is None else shape.total // 4
    size = 2 * (tokens * shape.k + shape.total * shape.n + shape.experts * shape.n * shape.k)
    sets = range(common.cold_sets(size))
    xs, weights = [normal(tokens, shape.k) for _ in sets], [normal(shape.experts, shape.n, shape.k) for _ in sets]
    outs = [normal(shape.total, shape.n) for _ in sets]

    def rows_of(x: torch.Tensor) -> torch.Tensor:
        return x if index is None else x[index]

    replays = {
        "torch": Replay(lambda i: torch._grouped_mm(rows_of(xs[i]), weights[i].mT, offs=cu[1:]), len(sets)),
        "quack": Replay(
            lambda i: quack.gemm(xs[i], weights[i].mT, out=outs[i], cu_seqlens_m=cu, A_idx=index), len(sets)
        ),
    }
    us = common.interleave(replays, *timing)
    common.poison(outs)
    replays["quack"].run()
    expert = torch.repeat_interleave(torch.arange(shape.experts, device="cuda"), cu.diff().long())

    def reference(rows: slice) -> torch.Tensor:
        a = rows_of(xs[0])[rows]
        experts = expert[rows].unique_consecutive().tolist()
        return torch.cat([a[expert[rows] == e].float() @ weights[0][e].float().T for e in experts])

    error = common.relative_error(outs[0], reference)
    return row(bench, shape, us, error, "torch._grouped_mm" if index is None else "index and _grouped_mm")


def weight_gradient(shape: Shape, timing: Timing) -> Row:
    """x (total, K)^T times dy (total, N) per group: (E, K, N)."""
    cu = shape.offsets()
    size = 2 * (shape.total * (shape.k + shape.n) + shape.experts * shape.n * shape.k)
    sets = range(common.cold_sets(size))
    xs, dys = [normal(shape.total, shape.k) for _ in sets], [normal(shape.total, shape.n) for _ in sets]
    outs = [normal(shape.experts, shape.k, shape.n) for _ in sets]
    replays = {
        "torch": Replay(lambda i: torch._grouped_mm(xs[i].mT, dys[i], offs=cu[1:]), len(sets)),
        "quack": Replay(lambda i: quack.gemm(xs[i].mT, dys[i], out=outs[i], cu_seqlens_k=cu), len(sets)),
    }
    us = common.interleave(replays, *timing)
    common.poison(outs)
    replays["quack"].run()
    bounds = cu.tolist()

    def reference(experts: slice) -> torch.Tensor:
        return torch.stack(
            [xs[0][bounds[e] : bounds[e + 1]].float().T @ dys[0][bounds[e] : bounds[e + 1]].float()
             for e in range(experts.start, min(experts.stop, shape.experts))]
        )  # fmt: skip

    error = common.relative_error(outs[0], reference, rows=8)
    return row("varlen_k", shape, us, error)


def row(bench: str, shape: Shape, us: dict[str, float], error: float, baseline: str = "torch._grouped_mm") -> Row:
    return Row(bench, str(shape), "bf16", "-", "heuristic", us["quack"], baseline, us["torch"], error, shape.flops)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--rest", type=float, default=0.0, help="seconds of idling before each timed replay")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/varlen.py needs a CUDA device")
    torch.backends.cuda.matmul.allow_tf32 = False  # the float32 reference
    recorder = Recorder(args.out or common.results_path("varlen"))
    recorder.header()
    for text in args.shapes.split(","):
        for measure in (forward, gathered, weight_gradient):
            result = measure(Shape.parse(text), (args.rounds, args.rest))
            recorder.add(replace(result, bench=result.bench + "_rested") if args.rest else result)
            torch.cuda.empty_cache()
    return 0 if recorder.summary() else 1


if __name__ == "__main__":
    sys.exit(main())
