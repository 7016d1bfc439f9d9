"""`gemm_grouped` on problems of different sizes, against a loop of torch.mm and against one dense GEMM with the same work.

    python benchmarks/grouped.py [--out FILE] [--rounds N] [--configs]

64 bf16 problems whose M, N and K are between 64 and 4096: "log", log-uniform multiples of 8, "powers", powers of two, and
"uniform", uniform multiples of 64. "same work": the time of one square GEMM, scaled to the work of the problems. Also: the
host time of a prepared call, and the memory that a call allocates besides its outputs.
"""

import argparse
import os
import random
import sys
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch

import quack

import common
from common import Recorder, Replay, Row

PROBLEMS, LEAST, MOST = 64, 64, 4096
CONFIGS = [
    quack.GemmConfig(*tile, pingpong=pingpong, cluster_m=m, cluster_n=n, is_dynamic_persistent=dynamic)
    for tile, pingpong in (((128, 256), False), ((256, 128), False), ((128, 192), True), ((128, 128), True))
    for m, n in ((1, 1), (2, 1), (1, 2))
    for dynamic in (True,)
]


def sizes(kind: str) -> list[tuple[int, int, int]]:
    """(M, N, K) of each problem. log, powers: mostly small, large ones make the work."""
    rng = random.Random(0)

    def one() -> int:
        if kind == "uniform":
            return 64 * rng.randint(LEAST // 64, MOST // 64)
        if kind == "powers":
            return 2 ** rng.randint(6, 12)
        return round(LEAST * (MOST / LEAST) ** rng.random() / 8) * 8

    return [(one(), one(), one()) for _ in range(PROBLEMS)]


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def bytes_allocated(call) -> int:
    """Device memory that a call asks for, all in all."""
    before = torch.cuda.memory_stats()["requested_bytes.all.allocated"]
    call()
    return torch.cuda.memory_stats()["requested_bytes.all.allocated"] - before


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--configs", action="store_true", help="time a list of configurations instead of the heuristic's"
    )
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/grouped.py needs a CUDA device")
    torch.backends.cuda.matmul.allow_tf32 = False  # the float32 reference
    recorder = Recorder(args.out or common.results_path("grouped"))
    recorder.header()
    for kind in ("log", "powers", "uniform"):
        measure(kind, recorder, args.rounds, args.configs)
        torch.cuda.empty_cache()
    if not args.configs:
        report_host_and_memory()
    return 0 if recorder.summary() else 1


def measure(kind: str, recorder: Recorder, rounds: int, all_configs: bool) -> None:
    """One distribution of sizes."""
    problems = sizes(kind)
    flops = sum(2.0 * m * n * k for m, n, k in problems)
    size = 2 * sum(m * k + n * k + m * n for m, n, k in problems)
    sets = range(common.cold_sets(size))
    a = [[normal(m, k) for m, n, k in problems] for _ in sets]
    w = [[normal(n, k).T for m, n, k in problems] for _ in sets]
    outs = [[normal(m, n) for m, n, k in problems] for _ in sets]
    side = round((flops / 2) ** (1 / 3) / 128) * 128
    dense_flops = 2.0 * side**3
    x, y, z = ([normal(side, side) for _ in range(common.cold_sets(6 * side * side))] for _ in range(3))
    replays = {
        "loop": Replay(lambda i: [torch.mm(p, q, out=o) for p, q, o in zip(a[i], w[i], outs[i])], len(sets)),
        "dense": Replay(lambda i: quack.gemm(x[i], y[i].T, out=z[i]), len(x)),
        "cublas": Replay(lambda i: torch.mm(x[i], y[i].T, out=z[i]), len(x)),
    }
    plans = [quack.grouped_plan(a[i], w[i], outs[i]) for i in sets]
    replays["quack"] = Replay(lambda i: plans[i](), len(sets))
    for config in CONFIGS if all_configs else ():
        pinned = [quack.grouped_plan(a[i], w[i], outs[i], config=config) for i in sets]
        replays[str(config)] = Replay(lambda i, pinned=pinned: pinned[i](), len(sets))
    us = common.interleave(replays, rounds)
    for o in outs:
        common.poison(o)
    replays["quack"].run()
    error = max(
        common.relative_error(outs[0][p], lambda rows, p=p: a[0][p][rows].float() @ w[0][p].float())
        for p in range(PROBLEMS)
    )
    if all_configs:
        for name, t in us.items():
            work = dense_flops if name in ("dense", "cublas") else flops
            print(f"{kind:8} {name:45} {t:9.1f} us {work / t * 1e-6:6.0f} TFLOP/s")
    shape = f"{PROBLEMS}:{kind}"
    names = {"loop": "loop of torch.mm", "dense": "quack.gemm, same work", "cublas": "torch.mm, same work"}
    for baseline, name in names.items():
        scaled = us[baseline] if baseline == "loop" else us[baseline] * flops / dense_flops
        recorder.add(Row("grouped", shape, "bf16", "kkn", "heuristic", us["quack"], name, scaled, error, flops))


def report_host_and_memory() -> None:
    """Host microseconds of 64 tiny problems, and what the calls allocate."""
    problems = sizes("log")
    a, w = [normal(m, k) for m, n, k in problems], [normal(n, k).T for m, n, k in problems]
    small = [[normal(64, 64) for _ in range(PROBLEMS)] for _ in range(3)]
    plan = quack.grouped_plan(small[0], small[1], small[2])
    dense = [normal(64, 64) for _ in range(3)]
    host = common.host_us(
        {
            "plan()": lambda: plan(),
            "plan(A_list, B_list)": lambda: plan(small[0], small[1]),
            "gemm_grouped(A_list, B_list, out_list)": lambda: quack.gemm_grouped(*small),
            "quack.gemm": lambda: quack.gemm(dense[0], dense[1], out=dense[2]),
            "loop of torch.mm": lambda: [torch.mm(p, q, out=o) for p, q, o in zip(*small)],
        }
    )
    for name, t in host.items():
        print(f"host: {name:40} {t:7.2f} us")
    operands = 2 * sum(m * k + n * k for m, n, k in problems)
    results = 2 * sum(m * n for m, n, k in problems)
    outs = quack.gemm_grouped(a, w)  # allocates what any first use of the streams needs
    del outs
    whole = bytes_allocated(lambda: quack.gemm_grouped(a, w))
    outs = [normal(m, n) for m, n, k in problems]
    tables = bytes_allocated(lambda: quack.gemm_grouped(a, w, outs))
    again = bytes_allocated(lambda: quack.gemm_grouped(a, w, outs))
    print(f"memory: operands {operands} B, outputs {results} B; a call allocates {whole} B,", end=" ")
    print(f"{tables} B with outputs given, {again} B when called again")


if __name__ == "__main__":
    sys.exit(main())
