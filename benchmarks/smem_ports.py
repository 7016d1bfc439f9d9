"""How many bytes shared memory moves a clock beside wgmma: what TMA writes and what wgmma reads, of the cycles that SMs are active.

    python benchmarks/smem_ports.py [--shape MxNxK] [--out FILE]        needs ncu and its permission to read counters

If reads and writes shared a port of 128 bytes a clock, both together could not exceed that. Narrow tiles ask for more: 128 x 128 of
two warpgroups in turn for 96 and 64 bytes a clock at the MMA's full rate, 64 x 256 for 80 and 80, 64 x 128 for 96 and 96.
"""

import argparse
import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch

from quack.gemm_config import GemmConfig
from quack.gemm_interface import gemm_tuned

import common

CONFIGS = {
    "64x128 ping-pong 2x2": GemmConfig(64, 128, pingpong=True, cluster_m=2, cluster_n=2),
    "64x256 ping-pong 2x1": GemmConfig(64, 256, pingpong=True, cluster_m=2),
    "64x256 ping-pong 2x2": GemmConfig(64, 256, pingpong=True, cluster_m=2, cluster_n=2),
    "128x128 ping-pong 2x1": GemmConfig(128, 128, pingpong=True, cluster_m=2),
    "128x128 ping-pong 2x2": GemmConfig(128, 128, pingpong=True, cluster_m=2, cluster_n=2),
    "128x256 cooperative 2x1": GemmConfig(128, 256, cluster_m=2),
}
WORD = 4  # bytes of a bank, which the counters count
READ, WRITTEN = "l1tex__data_bank_reads.sum", "l1tex__data_bank_writes.sum"
MMA, ACTIVE, TIME = "sm__inst_executed_pipe_tensor_op_gmma.sum", "sm__cycles_active.sum", "gpu__time_duration.sum"
WARPS, MMA_M, MMA_K = 4, 64, 16  # that execute one wgmma; its extents, N being the tile's
FLOPS_PER_CLOCK = 4096  # of an SM, dense 16-bit
KERNEL = "kernel_cutlass"  # how names of CuTe DSL's kernels begin


def launch_all(m: int, n: int, k: int) -> None:
    """What ncu watches: every configuration once, on random data."""
    A, W = (torch.randn(rows, k, device="cuda", dtype=torch.bfloat16) for rows in (m, n))
    out = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
    for config in CONFIGS.values():
        gemm_tuned.fn(A, W.T, out, config=config)
    torch.cuda.synchronize()


def counters(shape: str) -> list[dict[str, float]]:
    """Of each configuration's launch."""
    metrics = ",".join((READ, WRITTEN, MMA, ACTIVE, TIME))
    watched = [sys.executable, __file__, "--launch", "--shape", shape]
    ncu = [
        shutil.which("ncu") or "ncu",
        "--clock-control",
        "none",
        "--csv",
        "--kernel-name",
        f"regex:{KERNEL}",
        "--metrics",
        metrics,
    ]
    printed = subprocess.run([*ncu, *watched], check=True, stdout=subprocess.PIPE, text=True).stdout
    table = "\n".join(line for line in printed.splitlines() if line.startswith('"'))
    launches: dict[str, dict[str, float]] = {}
    for row in csv.DictReader(io.StringIO(table)):
        launches.setdefault(row["ID"], {})[row["Metric Name"]] = float(row["Metric Value"].replace(",", ""))
    found = list(launches.values())
    assert len(found) == len(CONFIGS), f"{len(found)} launches of {len(CONFIGS)}:\n{printed}"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="8448x8192x8192")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--launch", action="store_true", help="only launch, for ncu")
    arguments = parser.parse_args()
    if arguments.launch:
        return launch_all(*map(int, arguments.shape.split("x")))
    print("bytes a clock and SM        read  written     both     MMA busy   us")
    for (name, config), found in zip(CONFIGS.items(), counters(arguments.shape)):
        clocks = found[ACTIVE]
        read, written = WORD * found[READ] / clocks, WORD * found[WRITTEN] / clocks
        flops = found[MMA] / WARPS * 2 * MMA_M * config.tile_n * MMA_K
        busy = flops / FLOPS_PER_CLOCK / clocks
        print(f"{name:26} {read:6.1f} {written:8.1f} {read + written:8.1f} {busy:10.1%} {found[TIME] / 1e3:8.1f}")
        if arguments.out is not None:
            row = {
                "bench": "smem_ports", "shape": arguments.shape, "dtype": "bf16", "config": name, "read_bytes_per_clk": round(read, 1),
                "written_bytes_per_clk": round(written, 1), "mma_busy": round(busy, 4), "us": round(found[TIME] / 1e3, 1),
                "commit": common.commit(),
            }  # fmt: skip
            with arguments.out.open("a") as out:
                out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
