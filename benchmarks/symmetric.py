"""quack.gemm_symmetric, D = A @ A.mT, against torch.mm, which computes both halves.

    python benchmarks/symmetric.py                              # M x M x K, bf16
    python benchmarks/symmetric.py --shapes 4096x4096x4096 --tune
    python benchmarks/symmetric.py --layout tn,nt --dtype fp16

Layouts are BLAS letters: `tn` A is K-major (A @ A.mT), `nt` A is M-major (A.mT @ A of a contiguous A). TFLOP/s count both
halves. --tune times every triangular configuration and the whole product, which the model only predicts.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch

import gemm
import quack
from quack.gemm_config import GemmConfig
from quack.runtime.plan import GemmRequest
from quack.runtime.symmetric import prepare_symmetric

import common
from common import Recorder

SHAPES = "8192x8192x8192,8192x8192x2048,4096x4096x4096,2048x2048x2048,1024x1024x1024,512x512x512"
LAYOUTS = ("tn", "nt")
TUNE_CONFIGS = [
    GemmConfig(
        tile, tile, pingpong=pingpong, cluster_m=m, cluster_n=n, max_swizzle_size=strip, is_dynamic_persistent=dynamic
    )
    for tile, pingpong in ((128, True), (64, True), (128, False))
    for m, n in ((1, 1), (2, 1), (1, 2))
    for strip in (4, 8, 16)
    for dynamic in (False, True)
]


class SymmetricCase(gemm.Case):
    """One product of a matrix and its transpose: B is a view of A."""

    def tensors(self, device: str = "cuda") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        a, _, out = super().tensors(device)
        return a, a.mT, out


def symmetric(config: GemmConfig | None = None):
    return lambda a, b, out: quack.gemm_symmetric(a, b, out=out, config=config)


def chosen(case: SymmetricCase) -> str:
    """The configuration that a call uses, and whether it computes half of the tiles or all."""
    spec = prepare_symmetric(GemmRequest(*case.tensors())).spec
    return f"{'half' if 'symmetric' in spec.plan else 'whole'} {spec.config}"


def contenders(case: SymmetricCase, tune: bool) -> dict[str, object]:
    found = {chosen(case): symmetric()}
    if tune:
        found |= {f"half {config}": symmetric(config) for config in TUNE_CONFIGS}
        found["quack.gemm"] = gemm.ours(case)
    return found


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="default benchmarks/results/<date>-<gpu>-symmetric.jsonl; appended to")
    parser.add_argument("--shapes", default=SHAPES, help="MxMxK,... (default: %(default)s)")
    parser.add_argument("--dtype", default="bf16", help="bf16, fp16")
    parser.add_argument("--layout", default="tn", help=f"some of {','.join(LAYOUTS)}")
    parser.add_argument("--tune", action="store_true", help="time every configuration per shape")
    args = parser.parse_args(argv)
    args.as_rival = False
    for value, legal in ((args.dtype, ("bf16", "fp16")), (args.layout, LAYOUTS)):
        if not set(value.split(",")) <= set(legal):
            parser.error(f"cannot read {value}: want some of {', '.join(legal)}")
    return args


def cases(args: argparse.Namespace) -> list[SymmetricCase]:
    found = [SymmetricCase(c.m, c.n, c.k, c.dtype, c.layout) for c in gemm.cases(args)]
    for case in found:
        if case.m != case.n:
            raise SystemExit(f"{case.shape}: a symmetric result is square, write MxMxK")
    return found


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    todo = cases(args)
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/symmetric.py needs a CUDA device")
    torch.backends.cuda.matmul.allow_tf32 = False  # the float32 reference
    recorder = Recorder(args.out or common.results_path("symmetric"))
    recorder.header()
    for case in todo:
        bench = gemm.Bench(case)
        rounds = gemm.TUNE_ROUNDS if args.tune else gemm.ROUNDS
        for row in bench.measure("symmetric", contenders(case, args.tune), rounds):
            recorder.add(row)
        del bench
        torch.cuda.empty_cache()
    return int(not recorder.summary())


if __name__ == "__main__":
    sys.exit(main())
