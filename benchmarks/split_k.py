"""Split-K against cuBLAS: every mode, the numbers of parts that fill the device, and what `quack.gemm` chooses by itself.

python benchmarks/split_k.py [--out FILE] [--rounds N] [--shapes MxNxK,...] [--rest SECONDS]
python benchmarks/split_k.py --stream              # stream-K where the last wave is mostly empty, pinned and chosen
python benchmarks/split_k.py --sweep 256x256x65536   # pinned configurations, best first; compiles 12 kernels
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import Optional

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch

import quack
from quack import SplitKMode
from quack.gemm_config import GemmConfig

import common
from common import Recorder, Replay, Row

# Deep and small; memory-bound with few rows; a last wave that is partly empty.
SHAPES = "256x256x65536,128x8192x8192,16x8192x8192,512x512x8192,4096x4096x1024,1536x1536x4096"
PARTS = (2, 4, 8, 16, 33)
# Tile counts that are 1 to 45 % above a whole number of waves of 132 SMs with the pinned tile, then shapes where that is so
# with every tile: only there do the heuristics choose it.
PINNED_STREAMS = (
    ("2304x4608x4096", GemmConfig(128, 256)),  # 324 tiles, 2.45 waves
    ("2304x3840x4096", GemmConfig(128, 256)),  # 270, 2.05
    ("3072x3072x8192", GemmConfig(128, 256)),  # 288, 2.18
    ("3072x5888x4096", GemmConfig(128, 256)),  # 552, 4.18
    ("4352x4096x8192", GemmConfig(128, 256)),  # 544, 4.12
    ("2304x1920x4096", GemmConfig(128, 128, pingpong=True)),  # 270, 2.05
    ("1280x1792x8192", GemmConfig(128, 128, pingpong=True)),  # 140, 1.06
)
CHOSEN_STREAMS = "2560x1280x4096,1920x1792x8192,3328x1024x4096,2176x1536x16384,2176x3200x4096,1280x1280x16384"
# What one process can compile in minutes: SEPARATE has two kernels, the others one; the number of parts costs none. With 132
# SMs in GPCs of 16 and 18, only 32 clusters of four are resident, so a 33rd part would start when the others end.
SWEEP = (
    (GemmConfig(128, 128, cluster_m=2, cluster_n=2), SplitKMode.SEPARATE, (16, 31, 32, 33)),
    (GemmConfig(128, 128, pingpong=True, cluster_m=2, cluster_n=2), SplitKMode.SEPARATE, (16, 32, 33)),
    (GemmConfig(128, 128, 128, cluster_m=2, cluster_n=2), SplitKMode.SEPARATE, (32,)),
    (GemmConfig(128, 128, pingpong=True, cluster_m=2), SplitKMode.SEPARATE, (32, 33)),
    (GemmConfig(128, 256, cluster_m=2), SplitKMode.SEPARATE, (33, 64, 66)),
    (GemmConfig(128, 128, cluster_m=2, cluster_n=2), SplitKMode.PARALLEL, (16, 32)),
    (GemmConfig(128, 128, cluster_m=2, cluster_n=2), SplitKMode.SERIAL, (8, 16, 32)),
)


def sweep(shape: tuple[int, int, int], timing: tuple[int, float]) -> list[Row]:
    """One row for each of `SWEEP`, best first, and the heuristics' choice."""
    m, n, k = shape
    sets = range(common.cold_sets(2 * (m * k + k * n + m * n)))
    As = [torch.randn(m, k, device="cuda", dtype=torch.bfloat16) for _ in sets]
    Ws = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) for _ in sets]
    outs = [torch.empty(m, n, device="cuda", dtype=torch.bfloat16) for _ in sets]
    variants = {"heuristic": Replay(lambda i: quack.gemm(As[i], Ws[i].mT, out=outs[i]), len(sets))}
    for config, mode, parts in SWEEP:
        for split_k in parts:
            options = {"config": config, "split_k": split_k, "split_k_mode": mode}
            replay = Replay(lambda i, o=options: quack.gemm_tuned.fn(As[i], Ws[i].mT, outs[i], **o), len(sets))
            variants[f"{mode.value} {split_k} {config}"] = replay
    us = common.interleave(
        {"cublas": Replay(lambda i: torch.mm(As[i], Ws[i].mT, out=outs[i]), len(sets))} | variants, *timing
    )
    rows = []
    for name in sorted(variants, key=us.__getitem__):
        common.poison(outs)
        variants[name].run()
        error = common.relative_error(outs[0], lambda part: As[0][part].float() @ Ws[0].float().T)
        text = "x".join(map(str, shape))
        flops = 2.0 * m * n * k
        rows.append(Row("split_sweep", text, "bf16", "tn", name, us[name], "torch.mm", us["cublas"], error, flops))
    return rows


def stream(shape: tuple[int, int, int], config: Optional[GemmConfig], timing: tuple[int, float]) -> list[Row]:
    """Without and with stream-K, in the pinned configuration or in those the heuristics take; and what they choose."""
    m, n, k = shape
    sets = range(common.cold_sets(2 * (m * k + k * n + m * n)))
    As = [torch.randn(m, k, device="cuda", dtype=torch.bfloat16) for _ in sets]
    Ws = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) for _ in sets]
    outs = [torch.empty(m, n, device="cuda", dtype=torch.bfloat16) for _ in sets]

    def replay(**options: object) -> Replay:
        return Replay(lambda i: quack.gemm_tuned.fn(As[i], Ws[i].mT, outs[i], **options), len(sets))

    tile = "" if config is None else f" {config}"
    variants = {
        f"1{tile}": replay(config=config, split_k=1),
        f"stream{tile}": replay(config=config, split_k_mode=SplitKMode.STREAM),
        "heuristic": replay(),
    }
    us = common.interleave(
        {"cublas": Replay(lambda i: torch.mm(As[i], Ws[i].mT, out=outs[i]), len(sets))} | variants, *timing
    )
    rows = []
    for name, variant in variants.items():
        common.poison(outs)
        variant.run()
        error = common.relative_error(outs[0], lambda part: As[0][part].float() @ Ws[0].float().T)
        text, flops = "x".join(map(str, shape)), 2.0 * m * n * k
        rows.append(Row("stream_k", text, "bf16", "tn", name, us[name], "torch.mm", us["cublas"], error, flops))
    return rows


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
        if mode is SplitKMode.STREAM:
            variants[mode.value] = replay(split_k_mode=mode)
        else:
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
    parser.add_argument("--stream", action="store_true", help="instead: stream-K, with --shapes those chosen for")
    parser.add_argument("--sweep", metavar="SHAPES", help="instead: the pinned configurations of SWEEP")
    parser.add_argument("--rest", type=float, default=0.0, help="seconds of idling before each timed replay")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/split_k.py needs a CUDA device")
    torch.backends.cuda.matmul.allow_tf32 = False  # the float32 reference
    recorder = Recorder(args.out or common.results_path("split_k"))
    recorder.header()
    timing = (args.rounds, args.rest)
    if args.stream:
        chosen = CHOSEN_STREAMS if args.shapes == SHAPES else args.shapes
        jobs = [(text, partial(stream, config=config, timing=timing)) for text, config in PINNED_STREAMS]
        jobs += [(text, partial(stream, config=None, timing=timing)) for text in chosen.split(",")]
    else:
        measured = partial(sweep if args.sweep else measure, timing=timing)
        jobs = [(text, measured) for text in (args.sweep or args.shapes).split(",")]
    for text, job in jobs:
        m, n, k = map(int, text.split("x"))
        for row in job((m, n, k)):
            recorder.add(row)
        torch.cuda.empty_cache()
    return 0 if recorder.summary() else 1


if __name__ == "__main__":
    sys.exit(main())
