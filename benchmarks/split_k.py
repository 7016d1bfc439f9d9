"""Split-K against cuBLAS: every mode, the numbers of parts that fill the device, and what `quack.gemm` chooses by itself.

python benchmarks/split_k.py [--out FILE] [--rounds N] [--shapes MxNxK,...] [--rest SECONDS]
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch

import quack
from quack import SplitKMode

import common
from common import Recorder, Replay, Row

# Deep and small; memory-bound with few rows; a last wave that is partly empty.
SHAPES = "256x256x65536,128x8192x8192,16x8192x8192,512x512x8192,4096x4096x1024,1536x1536x4096"
PARTS = (2, 4, 8, 16, 33)


def measure(shape: tuple[int, int, int], timing: tuple[int, float]) -> list[Row]:
    """One row a mode, with its best number of parts, then the one without a split and the heuristics' choice."""
    m, n, k = shape
    sets = range(common.cold_sets(2 * (m * k + k * n + m * n)))
    As = [torch.randn(m, k, device="cuda", dtype=torch.bfloat16) for _ in sets]
    Ws = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) for _ in sets]
    outs = [torch.empty(m, n, device="cuda", dtype=torch.bfloat16) for _ in sets]

    def replay(**options: object) -> Replay:
        return Replay(lambda i: quack.gemm(As[i], Ws[i].mT, out=outs[i], **options), len(sets))

    variants = {"heuristic": replay(), "1": replay(split_k=1)}
    for mode in SplitKMode:
        variants |= {f"{mode.value} {parts}": replay(split_k=parts, split_k_mode=mode) for parts in PARTS}
    cublas = {"cublas": Replay(lambda i: torch.mm(As[i], Ws[i].mT, out=outs[i]), len(sets))}
    us = common.interleave(cublas | variants, *timing)
    shown = ["heuristic", "1"]
    shown += [
        min((name for name in variants if name.startswith(mode.value)), key=us.__getitem__) for mode in SplitKMode
    ]
    rows = []
    for name in shown:
        common.poison(outs)
        variants[name].run()
        error = common.relative_error(outs[0], lambda part: As[0][part].float() @ Ws[0].float().T)
        text = "x".join(map(str, shape))
        rows.append(
            Row("split_k", text, "bf16", "tn", name, us[name], "torch.mm", us["cublas"], error, 2.0 * m * n * k)
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--rest", type=float, default=0.0, help="seconds of idling before each timed replay")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/split_k.py needs a CUDA device")
    torch.backends.cuda.matmul.allow_tf32 = False  # the float32 reference
    recorder = Recorder(args.out or common.results_path("split_k"))
    recorder.header()
    for text in args.shapes.split(","):
        m, n, k = map(int, text.split("x"))
        for row in measure((m, n, k), (args.rounds, args.rest)):
            recorder.add(row)
        torch.cuda.empty_cache()
    return 0 if recorder.summary() else 1


if __name__ == "__main__":
    sys.exit(main())
