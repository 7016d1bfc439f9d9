"""The command line: which GEMM, which configurations, with or without counts."""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, Optional

from ..arch import ARCHES
from ..gemm_config import Dtype, GemmConfig
from ..heuristics.model import tuning_of
from ..runtime.spec import UnsupportedGemm
from .count import count
from .lines import Roof, roof
from .problem import Problem
from .report import as_dict, report

PROGRAM = "python -m quack.roofline"
DTYPES = {dtype.value.removeprefix("fp8_"): dtype for dtype in Dtype}
CONFIG = re.compile(r"(\d+)x(\d+)(?:x(\d+))?(pp)?(?:cl(\d)x(\d))?")


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 2 for what is not legal."""
    options = _parser().parse_args(list(arguments))
    m, n, k = options.shape
    problem = Problem(options.arch, m, n, k, options.dtype, options.out, options.c)
    try:
        configs = [config(options.arch) for config in options.config] if options.config else [None]
        roofs = [_roof(problem, config, options.count) for config in configs]
    except UnsupportedGemm as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    print(
        json.dumps([as_dict(r) for r in roofs], indent=1)
        if options.format == "json"
        else "\n\n".join(map(report, roofs))
    )
    return 0


def _roof(problem: Problem, config: Optional[GemmConfig], is_counted: bool) -> Roof:
    spec, shape = problem.configured(config)
    return roof(spec, shape, count(problem, spec) if is_counted else None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="What a tile takes of an SM, in clocks.", allow_abbrev=False
    )
    parser.add_argument("--arch", choices=list(ARCHES), required=True)
    parser.add_argument("--shape", type=_or_usage(_shape), required=True, metavar="MxNxK")
    parser.add_argument(
        "--config", type=_or_usage(parse_config), nargs="+", metavar="MxN[xK][pp][clMxN]",
        help="tiles instead of the one the heuristics choose; pp: ping-pong; cl2x1: the cluster (default: what suits most)",
    )  # fmt: skip
    for name, what in (("--dtype", "of A and B"), ("--out", "of D and C")):
        parser.add_argument(name, type=_or_usage(_dtype), default=Dtype.BF16, metavar="|".join(DTYPES), help=what)
    parser.add_argument("--c", action="store_true", help="add C")
    parser.add_argument(
        "--count", action="store_true", help="run the kernel in the emulator and count beside each line"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text")
    return parser


def parse_config(text: str) -> Callable[[str], GemmConfig]:
    """The configuration for an arch, whose usual cluster stands in for one not given; ValueError if it is none."""
    match = CONFIG.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no configuration: expected for example 256x256, 128x128x64pp or 128x256cl2x1")
    tile_m, tile_n, tile_k, pingpong, *given = match.groups()

    def on(arch: str) -> GemmConfig:
        cluster_m, cluster_n = map(int, given) if all(given) else tuning_of(arch).clusters[0]
        k = int(tile_k) if tile_k else None
        return GemmConfig(
            int(tile_m), int(tile_n), k, pingpong=bool(pingpong), cluster_m=cluster_m, cluster_n=cluster_n
        )

    return on


def _shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", text):
        raise ValueError(f"{text!r} is no shape: expected for example 8192x8192x4096")
    return tuple(map(int, text.split("x")))


def _dtype(text: str) -> Dtype:
    if text not in DTYPES:
        raise ValueError(f"{text!r} is no dtype: expected one of {', '.join(DTYPES)}")
    return DTYPES[text]


def _or_usage(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """The messages of ValueErrors for argparse."""

    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed
