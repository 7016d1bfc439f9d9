"""quack.gemm against cuBLAS, and against quack-kernels (a rival of the same import name) as a black box.

    python benchmarks/gemm.py                                   # default shapes, bf16 and both fp8 modes
    python benchmarks/gemm.py --shapes 4096x4096x4096 --layout tn,tt --dtype bf16
    python benchmarks/gemm.py --tune --shapes 8192x8192x8192 --dtype bf16
    python benchmarks/gemm.py --tune tile=128x256c,128x128p max_swizzle_size=1,4,16 raster=m,n
    python benchmarks/gemm.py --dtype bf16 --rest 0.05 --rounds 9                # not held back by the power limit
    python benchmarks/gemm.py --host-overhead --rival

Layouts are BLAS letters, A then B: `t` A is K-major, `n` A is M-major; `n` B is K-major, `t` B is N-major.
So A @ W.T is `tn` and A @ B of two contiguous matrices is `tt`. fp8 is measured in `tn` only; tf32 (fp32 operands, cuBLAS with
allow_tf32) not in `nt`, where no operand is K-major.
"""

import argparse
import itertools
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import torch

import common
from common import Recorder, Replay, Row

SHAPES = (
    "4096x4096x4096,8192x8192x8192,8192x14336x4096,8192x4096x14336,"
    "1024x1024x1024,2048x2048x2048,16384x4096x4096,128x8192x8192,16x8192x8192"
)
DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "tf32": torch.float32,
    "fp8_fast": torch.float8_e4m3fn,
    "fp8": torch.float8_e4m3fn,
}
LAYOUTS = ("tn", "nn", "nt", "tt")
ROUNDS, TUNE_ROUNDS = 25, 9

# What --tune tries: the product of these axes. A tile is MxN and c (cooperative) or p (ping-pong).
TUNE_AXES = {
    "tile": "128x256c,256x128c,128x192c,192x128c,128x128p,64x256p,128x128c,64x128p".split(","),
    "cluster": "1x1,2x1,1x2".split(","),
    "is_dynamic_persistent": "0,1".split(","),
    "max_swizzle_size": ["8"],
    "raster": ["m"],
    "swap_ab": ["0"],
}


@dataclass(frozen=True)
class Case:
    """One GEMM to measure, D (M,N) = A (M,K) @ B (K,N)."""

    m: int
    n: int
    k: int
    dtype: str
    layout: str

    @property
    def shape(self) -> str:
        return f"{self.m}x{self.n}x{self.k}"

    @property
    def is_fp8(self) -> bool:
        return self.dtype.startswith("fp8")

    def tensors(self, device: str = "cuda") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        def matrix(rows: int, columns: int, transposed: bool) -> torch.Tensor:
            shape = (columns, rows) if transposed else (rows, columns)
            drawn = torch.float32 if self.dtype == "tf32" else torch.bfloat16
            data = torch.randn(shape, device=device, dtype=drawn).to(DTYPES[self.dtype])
            return data.T if transposed else data

        out_dtype = torch.bfloat16 if self.is_fp8 else DTYPES[self.dtype]
        a = matrix(self.m, self.k, self.layout[0] == "n")
        b = matrix(self.k, self.n, self.layout[1] == "n")
        return a, b, torch.empty(self.m, self.n, device=device, dtype=out_dtype)

    def row(self, bench: str, config: str, us: float, baseline_us: float, rel_err: float) -> Row:
        flops = 2.0 * self.m * self.n * self.k
        names = self.shape, self.dtype, self.layout, config
        return Row(bench, *names, us, "cublas", baseline_us, rel_err, flops)


class Cublas:
    """torch.mm and torch._scaled_mm."""

    def __init__(self, case: Case):
        self.case, self.one = case, torch.ones((), device="cuda")

    def __call__(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
        if self.case.is_fp8:
            fast, one = self.case.dtype == "fp8_fast", self.one
            torch._scaled_mm(a, b, one, one, out_dtype=out.dtype, use_fast_accum=fast, out=out)
        else:
            torch.backends.cuda.matmul.allow_tf32 = self.case.dtype == "tf32"
            torch.mm(a, b, out=out)
            torch.backends.cuda.matmul.allow_tf32 = False  # for the float32 reference


def ours(case: Case):
    import quack

    if case.is_fp8:
        return lambda a, b, out: quack.gemm(a, b, out=out, fast_accum=case.dtype == "fp8_fast")
    return lambda a, b, out: quack.gemm(a, b, out=out)


def ours_pinned(case: Case, config):
    from quack.gemm_interface import gemm_tuned

    options = {"fast_accum": case.dtype == "fp8_fast"} if case.is_fp8 else {}
    return lambda a, b, out: gemm_tuned.fn(a, b, out, config=config, **options)


def rival(case: Case):
    from quack.gemm_interface import gemm

    return lambda a, b, out: gemm(a, b, out=out)


def chosen_config(a: torch.Tensor, b: torch.Tensor, fast_accum: bool) -> str:
    try:
        from quack.gemm_interface import explain_config

        return explain_config(a, b, fast_accum)
    except Exception as error:
        return f"default ({type(error).__name__} in explain_config)"


def candidates(overrides: list[str]) -> list:
    """GemmConfigs of the tuning grid; `axis=value,value` replaces the values of an axis."""
    from quack.gemm_config import GemmConfig, RasterOrder

    axes = dict(TUNE_AXES)
    for override in overrides:
        axis, _, values = override.partition("=")
        if axis not in axes or not values:
            raise SystemExit(f"--tune {override}: write AXIS=VALUE,... with AXIS one of {', '.join(axes)}")
        axes[axis] = values.split(",")
    configs = []
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values))
        tile, schedule = point["tile"][:-1], point["tile"][-1]
        tile_m, tile_n = map(int, tile.split("x"))
        cluster_m, cluster_n = map(int, point["cluster"].split("x"))
        config = GemmConfig(
            tile_m=tile_m,
            tile_n=tile_n,
            pingpong=schedule == "p",
            cluster_m=cluster_m,
            cluster_n=cluster_n,
            is_dynamic_persistent=point["is_dynamic_persistent"] == "1",
            max_swizzle_size=int(point["max_swizzle_size"]),
            raster=RasterOrder(point["raster"]),
            swap_ab=point["swap_ab"] == "1",
        )
        configs.append(config)
    return configs


class Bench:
    """Buffers and the cuBLAS baseline of one case; measures contenders against it."""

    def __init__(self, case: Case):
        self.case, tensors = case, case.tensors()
        sets = common.cold_sets(sum(t.numel() * t.element_size() for t in tensors))
        self.sets = [tensors, *(case.tensors() for _ in range(sets - 1))]
        self.baseline = self.replay(Cublas(case))

    def replay(self, gemm) -> Replay:
        return Replay(lambda i: gemm(*self.sets[i]), len(self.sets))

    def rel_err(self, replay: Replay) -> float:
        """Of what a replay writes into the first set's poisoned output."""
        a, b, out = self.sets[0]
        common.poison(out for _, _, out in self.sets)
        replay.run()
        b_float = b.float()
        return common.relative_error(out, lambda rows: a[rows].float() @ b_float)

    def measure(self, bench: str, contenders: dict[str, object], rounds: int, rest: float = 0.0) -> list[Row]:
        """Rows of the contenders, which are named by their configuration, fastest first. rest: as `common.interleave` takes it."""
        replays = {name: self.replay(gemm) for name, gemm in contenders.items()}
        times = common.interleave({"cublas": self.baseline, **replays}, rounds, rest)
        base = times.pop("cublas")
        errors = {name: self.rel_err(replays[name]) for name in replays}
        return [self.case.row(bench, n, times[n], base, errors[n]) for n in sorted(times, key=times.get)]


def tune(bench: Bench, overrides: list[str]) -> list[Row]:
    """Every legal candidate. One that is refused is named with the reason."""
    contenders = {}
    for config in candidates(overrides):
        gemm = ours_pinned(bench.case, config)
        try:
            gemm(*bench.sets[0])
        except ValueError as refusal:
            print(f"# {config}: {refusal}")
        else:
            contenders[str(config)] = gemm
    return bench.measure("gemm-tune", contenders, TUNE_ROUNDS)


def host_overhead(bench_name: str, make, config: str) -> Row:
    """Host time per call of a GEMM too small to matter, against torch.mm."""
    case = Case(256, 256, 256, "bf16", "tn")
    a, b, out = case.tensors()
    calls = {"cublas": partial(torch.mm, a, b, out=out), "contender": partial(make(case), a, b, out)}
    times = common.host_us(calls)
    common.poison([out])
    calls["contender"]()
    error = common.relative_error(out, lambda rows: a[rows].float() @ b.float())
    return case.row(bench_name, config, times["contender"], times["cublas"], error)


def run_rival(args: argparse.Namespace, out: Path) -> int:
    """The same shapes in a process where `quack` is the rival's: the repository is not on its path."""
    if not os.environ.get("QUACK_RIVALS"):
        raise SystemExit("--rival: QUACK_RIVALS is not set; source .gpu/activate_site.sh first")
    path = f"{os.environ['QUACK_RIVALS']}:{os.environ.get('QUACK_SITE', '')}"
    command = [sys.executable, __file__, "--as-rival", "--out", str(out), "--shapes", args.shapes]
    command += ["--dtype", args.dtype, "--layout", args.layout, *["--host-overhead"] * args.host_overhead]
    return subprocess.call(command, env={**os.environ, "PYTHONPATH": path, "QUACK_COMMIT": common.commit()})


def cases(args: argparse.Namespace) -> list[Case]:
    found = []
    for dtype, shape, layout in itertools.product(
        args.dtype.split(","), args.shapes.split(","), args.layout.split(",")
    ):
        sizes = shape.split("x")
        readable = dtype in DTYPES and layout in LAYOUTS and len(sizes) == 3 and all(map(str.isdigit, sizes))
        if not readable:
            raise SystemExit(f"cannot read {dtype} {shape} {layout}: want {list(DTYPES)}, MxNxK, {LAYOUTS}")
        case = Case(*map(int, sizes), dtype, layout)
        skip = case.is_fp8 and (layout != "tn" or args.as_rival)  # the rival has no accumulation switch to match
        skip |= dtype == "tf32" and layout == "nt"
        if not skip:
            found.append(case)
    return found


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="default benchmarks/results/<date>-<gpu>-gemm.jsonl; appended to")
    parser.add_argument("--shapes", default=SHAPES, help="MxNxK,... (default: %(default)s)")
    parser.add_argument("--dtype", default="bf16,fp8_fast,fp8", help=f"some of {','.join(DTYPES)}")
    parser.add_argument("--layout", default="tn", help=f"some of {','.join(LAYOUTS)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--rest", type=float, default=0.0, help="seconds of idling before each timed replay (not with --tune)"
    )
    parser.add_argument("--tune", nargs="*", metavar="AXIS=V,...", help="time a grid of GemmConfigs per shape")
    parser.add_argument("--host-overhead", action="store_true", help="host cost per call, and nothing else")
    parser.add_argument("--rival", action="store_true", help="then measure quack-kernels in its own process")
    parser.add_argument("--as-rival", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    todo = cases(args)
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gemm.py needs a CUDA device")
    torch.backends.cuda.matmul.allow_tf32 = False  # the float32 reference
    recorder = Recorder(args.out or common.results_path("gemm"))
    recorder.header()
    make, name = (rival, "gemm-rival") if args.as_rival else (ours, "gemm")
    version = f"quack-kernels {metadata.version('quack-kernels')}" if args.as_rival else ""
    if args.host_overhead:
        recorder.add(host_overhead(f"{name}-host", make, version or "256^3, us are host time"))
        todo = []
    for case in todo:
        bench = Bench(case)
        if args.tune is not None:
            rows = tune(bench, args.tune)
        else:
            config = version or chosen_config(*bench.sets[0][:2], case.dtype == "fp8_fast")
            suffix = "-rested" if args.rest else ""
            rows = bench.measure(name + suffix, {config: make(case)}, args.rounds, args.rest)
        for row in rows:
            recorder.add(row)
        del bench
        torch.cuda.empty_cache()
    failed = not recorder.summary()
    if args.rival:
        failed |= run_rival(args, recorder.path) != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
