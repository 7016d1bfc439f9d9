"""GEMMs with an activation in the epilogue, against the plain quack.gemm in the same configuration and against torch.mm.

    python benchmarks/epilogue.py [--out FILE] [--rounds N] [--cases swiglu:MxNxK,...] [--rest SECONDS]

N counts the columns of the product. Benches `act_*` store postact alone (layout -) or preact and postact (layout store);
`dact_*` read the pre-activation, which has twice the columns of the product if the activation is gated, and store its gradient
and postact. The plain GEMM stores its product once, so the ratios count what the epilogue costs, further traffic included.
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
from quack.gemm_backward import backward_request
from quack.gemm_config import GemmConfig
from quack.gemm_forward import forward_request
from quack.gemm_operands import activation_of, apply_ref, postact_shape, preact_shape
from quack.runtime.plan import GemmRequest, prepare

import common
from common import Recorder, Replay, Row

Timing = tuple[int, float]  # rounds, rest: as `common.interleave` takes them
CASES = "swiglu:8192x28672x4096,gelu_tanh_approx:8192x14336x4096"
BACKWARD_CASES = "swiglu:8192x14336x4096,gelu_tanh_approx:8192x14336x4096"


@dataclass(frozen=True)
class ActivationCase:
    """(m, k) times (k, n), bf16."""

    activation: str
    m: int
    n: int
    k: int

    @classmethod
    def parse(cls, text: str) -> "ActivationCase":
        activation, _, extents = text.partition(":")
        return cls(activation, *map(int, extents.split("x")))

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k}"

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.n * self.k

    @property
    def function(self):
        return activation_of(self.activation)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


class Buffers:
    """As many sets as it takes to leave nothing useful in L2. x: pre-activations, of backward passes."""

    def __init__(self, case: ActivationCase, is_backward: bool, stores_second: bool):
        product = (case.m, case.n)
        wide = preact_shape(case.function, product) if is_backward else product
        narrow = product if is_backward else postact_shape(case.function, product)
        elements = case.m * case.k + case.n * case.k + case.m * (wide[1] * (2 if is_backward else 1) + narrow[1])
        self.count = common.cold_sets(2 * elements)
        sets = range(self.count)
        self.a = [normal(case.m, case.k) * case.k**-0.5 for _ in sets]
        self.b = [normal(case.n, case.k).mT for _ in sets]
        self.x = [normal(*wide) if is_backward else None for _ in sets]
        self.wide = [normal(*wide) if is_backward or stores_second else None for _ in sets]
        self.narrow = [normal(*narrow) for _ in sets]
        self.plain = normal(*product)  # written, never read


def configuration(request: GemmRequest) -> GemmConfig:
    """What the heuristics choose for it."""
    return prepare(request).spec.config


def forward(case: ActivationCase, stores_preact: bool, timing: Timing) -> list[Row]:
    """gemm_act, or gemm_gated."""
    t = Buffers(case, False, stores_preact)
    config = configuration(forward_request(t.a[0], t.b[0], t.wide[0], t.narrow[0], case.function))
    us = measure(
        t,
        config,
        timing,
        lambda i: quack.gemm_act_out(t.a[i], t.b[i], t.wide[i], t.narrow[i], activation=case.activation),
    )

    def postact(rows: slice) -> torch.Tensor:
        return apply_ref(case.function, t.a[0][rows].float() @ t.b[0].float())

    error = common.relative_error(t.narrow[0], postact)
    if stores_preact:
        error = max(error, common.relative_error(t.wide[0], lambda rows: t.a[0][rows].float() @ t.b[0].float()))
    return rows_of(f"act_{case.activation[:6]}", case, "store" if stores_preact else "-", config, us, error)


def backward(case: ActivationCase, timing: Timing) -> list[Row]:
    """gemm_dact, or gemm_dgated."""
    t = Buffers(case, True, True)
    config = configuration(backward_request(t.a[0], t.b[0], t.x[0], t.wide[0], t.narrow[0], case.function))
    us = measure(
        t, config, timing,
        lambda i: quack.gemm_dact_out(t.a[i], t.b[i], t.x[i], t.wide[i], t.narrow[i], case.activation),
    )  # fmt: skip

    def dx(rows: slice) -> torch.Tensor:
        x = t.x[0][rows].float().requires_grad_()
        return torch.autograd.grad(apply_ref(case.function, x), x, t.a[0][rows].float() @ t.b[0].float())[0]

    error = common.relative_error(t.narrow[0], lambda rows: apply_ref(case.function, t.x[0][rows].float()))
    error = max(error, common.relative_error(t.wide[0], dx))
    return rows_of(f"dact_{case.activation[:6]}", case, "store", config, us, error)


def measure(t: Buffers, config: GemmConfig, timing: Timing, fused) -> dict[str, float]:
    """Microseconds of all three; leaves the fused result of set 0 in place for checking."""
    plain = [torch.empty_like(t.plain) for _ in range(t.count)]
    replays = {
        "torch.mm": Replay(lambda i: torch.mm(t.a[i], t.b[i], out=plain[i]), t.count),
        "quack.gemm": Replay(lambda i: quack.gemm_tuned.fn(t.a[i], t.b[i], plain[i], config=config), t.count),
        "fused": Replay(fused, t.count),
    }
    us = common.interleave(replays, *timing)
    common.poison([tensor for tensor in (*t.wide, *t.narrow) if tensor is not None])
    replays["fused"].run()
    return us


def rows_of(
    bench: str, case: ActivationCase, layout: str, config: GemmConfig, us: dict[str, float], error: float
) -> list[Row]:
    """One row for each baseline."""
    return [
        Row(bench, str(case), "bf16", layout, str(config), us["fused"], baseline, us[baseline], error, case.flops)
        for baseline in ("quack.gemm", "torch.mm")
    ]


def main(argv: Optional[list[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cases", default=CASES, help="activation:MxNxK,... (default: %(default)s)")
    parser.add_argument("--backward-cases", default=BACKWARD_CASES, help="the same (default: %(default)s)")
    parser.add_argument("--rest", type=float, default=0.0, help="seconds of idling before each timed replay")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/epilogue.py needs a CUDA device")
    torch.backends.cuda.matmul.allow_tf32 = False  # the float32 reference
    recorder = Recorder(args.out or common.results_path("epilogue"))
    recorder.header()
    timing = (args.rounds, args.rest)
    todo = [(forward, (ActivationCase.parse(text), store)) for text in args.cases.split(",") for store in (False, True)]
    todo += [(backward, (ActivationCase.parse(text),)) for text in args.backward_cases.split(",") if text]
    for run, arguments in todo:
        for row in run(*arguments, timing):
            recorder.add(replace(row, bench=row.bench + "_rested") if args.rest else row)
        torch.cuda.empty_cache()
    return 0 if recorder.summary() else 1


if __name__ == "__main__":
    sys.exit(main())
