"""The kernel for sm_120a (mma.sync, 99 KB of shared memory, no clusters), compiled for Hopper, against Hopper's own (wgmma).

    python benchmarks/sm120.py                                     # bf16, fp16, fp8; square shapes
    python benchmarks/sm120.py --shapes 8192x8192x8192 --dtype bf16

No GeForce is at hand: this says whether the main loop keeps the tensor cores busy. mma.sync reaches about 0.62 of wgmma's rate
on Hopper; the aim is half of what GemmSm90 reaches.
"""

import argparse
import sys
from pathlib import Path

import torch

import gemm as dense
from quack import GemmConfig
from quack.gemm_interface import gemm_tuned
from quack.runtime.device import kernels_of

import common

ROUNDS = 15
DTYPES = ("bf16", "fp16", "fp8")
TILES = (  # tile_m, tile_n, bytes of tile_k, pingpong
    (128, 128, 64, True),
    (128, 128, 128, True),
    (256, 128, 64, False),
    (128, 128, 128, False),
    (128, 64, 128, True),
)


def warp_mma(case: dense.Case, config: GemmConfig):
    options = {"fast_accum": True} if case.is_fp8 else {}

    def call(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
        with kernels_of("sm_120a"):
            gemm_tuned.fn(a, b, out, config=config, **options)

    return call


def contenders(case: dense.Case) -> dict[str, object]:
    """GemmSm90 as the heuristics choose it, and GemmSm120 with each tile."""
    size = dense.DTYPES[case.dtype].itemsize
    found: dict[str, object] = {"GemmSm90": dense.ours(case)}
    for tile_m, tile_n, k_bytes, pingpong in TILES:
        config = GemmConfig(tile_m, tile_n, k_bytes // size, pingpong=pingpong, cluster_m=1)
        found[f"GemmSm120 {config}"] = warp_mma(case, config)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="default benchmarks/results/<date>-<gpu>-sm120.jsonl; appended to")
    parser.add_argument("--shapes", default="4096x4096x4096,8192x8192x8192")
    parser.add_argument("--dtype", default=",".join(DTYPES), help=f"some of {','.join(dense.DTYPES)}")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False  # the float32 reference
    recorder = common.Recorder(args.out or common.results_path("sm120"))
    recorder.header()
    for dtype in args.dtype.split(","):
        for shape in args.shapes.split(","):
            case = dense.Case(*map(int, shape.split("x")), dtype, "tn")
            bench = dense.Bench(case)
            rows = bench.measure("sm120", contenders(case), ROUNDS)
            hopper = next(row for row in rows if row.config == "GemmSm90")
            for row in rows:
                recorder.add(row)
            best = next(row for row in rows if row is not hopper)
            print(f"# {shape} {dtype}: the best of GemmSm120 reaches {hopper.us / best.us:.2f} of GemmSm90", flush=True)
            del bench
            torch.cuda.empty_cache()
    return int(not recorder.summary())


if __name__ == "__main__":
    sys.exit(main())
