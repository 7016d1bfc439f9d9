"""Grouped GEMMs (`gemm_grouped`) checked against float64, enumerated once for emulator and GPU.

The inputs of one problem of each case are NaN: it must poison its own output and nobody else's. Every operand is a view into a
buffer of NaN.
"""

import random
import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

import torch

from quack import gemm_grouped
from quack.gemm_config import GemmConfig
from tests.cases import DTYPES, Case, View, make_view, poison
from tests.reference import Reference, as_multiplied, check

PINGPONG = GemmConfig(128, 128, pingpong=True, cluster_m=1)
MIXED = ((200, 264, 136), (1, 16, 8), (64, 64, 64), (0, 16, 16), (130, 0, 24), (33, 72, 500), (300, 8, 304), (5, 40, 0))
LONG_FIRST = ((64, 64, 8), (64, 64, 1024), (128, 192, 8))


@dataclass(frozen=True)
class GroupedCase:
    """shapes: (M, N, K) of each problem. majors: of A, B and out, a letter each or one such word per problem.

    nan_problem: the one with NaN inputs. odd: problems whose pitch and address are not multiples of 16 bytes, of A and out.
    """

    shapes: tuple[tuple[int, int, int], ...]
    majors: tuple[str, ...] = ("kkn",)
    dtype: str = "bf16"
    out: str = "bf16"
    c: Optional[str] = None
    in_place: bool = False
    alpha: float = 1.0
    beta: float = 1.0
    bias: bool = False
    odd: tuple[int, ...] = ()
    fast_accum: bool = False
    dynamic: bool = False
    nan_problem: Optional[int] = None
    config: Optional[GemmConfig] = None

    def __str__(self) -> str:
        parts = [f"{len(self.shapes)}problems", *map(str, self.shapes[0]), *self.majors, self.dtype, self.out]
        parts += [name for name in ("c", "in_place", "bias", "odd", "dynamic", "fast_accum") if getattr(self, name)]
        return "-".join(parts) + (f"-{self.config}".replace(" ", "_") if self.config else "")


class GroupedTensors(NamedTuple):
    """One tensor per problem; C and bias are None or complete."""

    A: tuple[torch.Tensor, ...]
    B: tuple[torch.Tensor, ...]
    out: tuple[torch.Tensor, ...]
    C: Optional[tuple[torch.Tensor, ...]] = None
    bias: Optional[tuple[torch.Tensor, ...]] = None

    def flat(self) -> tuple[torch.Tensor, ...]:
        return tuple(tensor for family in self if family is not None for tensor in family)


class GroupedOperands:
    """Tensors of one case."""

    def __init__(self, case: GroupedCase, device: str) -> None:
        self.case = case
        generator = torch.Generator(device=device).manual_seed(zlib.crc32(str(case).encode()))
        dtype = DTYPES[case.dtype]
        self.outs: list[View] = []
        families: dict[str, list[torch.Tensor]] = {"A": [], "B": [], "C": [], "bias": []}

        def view(rows: int, cols: int, dtype: torch.dtype, cols_are_unit: bool, odd: bool, fill: bool) -> View:
            made = make_view(
                (None, rows, cols), dtype, 2 if cols_are_unit else 1, "odd" if odd else "padded", "outer", device
            )
            if fill:
                made.tensor.copy_(torch.randn(rows, cols, generator=generator, device=device).to(dtype))
            return made

        for i, (m, n, k) in enumerate(case.shapes):
            a_major, b_major, out_major = case.majors[i % len(case.majors)]
            odd = i in case.odd
            families["A"].append(view(m, k, dtype, a_major == "k", odd, True).tensor)
            families["B"].append(view(k, n, dtype, b_major == "n", False, True).tensor)
            if i == case.nan_problem:
                families["A"][-1].fill_(float("nan"))
            self.outs.append(view(m, n, DTYPES[case.out], out_major == "n", odd, case.in_place))
            if case.c is not None:
                families["C"].append(view(m, n, DTYPES[case.c], out_major == "n", False, True).tensor)
            if case.bias:
                families["bias"].append(torch.randn(n, generator=generator, device=device).bfloat16())
        outs = tuple(o.tensor for o in self.outs)
        if case.in_place:
            families["C"] = list(outs)
        self.before = [o.clone() for o in outs]
        self.tensors = GroupedTensors(
            tuple(families["A"]),
            tuple(families["B"]),
            outs,
            tuple(families["C"]) or None,
            tuple(families["bias"]) or None,
        )

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `gemm_grouped` and `grouped_plan`."""
        t, case = self.tensors, self.case
        return dict(
            A_list=t.A, B_list=t.B, out_list=t.out, C_list=t.C, bias_list=t.bias, alpha=case.alpha, beta=case.beta,
            fast_accum=case.fast_accum, dynamic_scheduler=case.dynamic, config=case.config,
        )  # fmt: skip


def run(t: GroupedOperands, **options: Any) -> None:
    """One call into poisoned buffers (or onto C). options: further arguments."""
    for out, before in zip(t.outs, t.before):
        poison(out.buffer)
        if t.case.in_place:
            out.tensor.copy_(before)
    gemm_grouped(**t.arguments(), **options)


def verify(t: GroupedOperands) -> None:
    """Every problem against float64, and nothing written around the outputs."""
    case, tensors = t.case, t.tensors
    for i, (m, n, k) in enumerate(case.shapes):
        got = tensors.out[i]
        if i == case.nan_problem and k and got.numel():
            assert got.isnan().all(), f"problem {i} is NaN, but its output is not"
        else:
            a, b = as_multiplied(tensors.A[i]), as_multiplied(tensors.B[i])
            exact, size = case.alpha * (a @ b), abs(case.alpha) * ((a * a) @ (b * b)).sqrt()
            if tensors.C is not None:
                c = t.before[i].double() if case.in_place else tensors.C[i].double()
                exact, size = exact + case.beta * c, size + (case.beta * c).abs()
            if tensors.bias is not None:
                exact, size = exact + tensors.bias[i].double(), size + tensors.bias[i].double().abs()
            model = Case("grouped", m, n, k, a=case.dtype, b=case.dtype, fast_accum=case.fast_accum)
            check(model, got, Reference(exact, size))
        written = t.outs[i].buffer.view(torch.uint8).view(t.outs[i].buffer.numel(), -1) != 0xFF
        assert not (written.any(1) & t.outs[i].outside()).any(), f"elements outside output {i} were written"


def many(count: int, seed: int = 0) -> tuple[tuple[int, int, int], ...]:
    """Random small problems, some of them empty."""
    rng = random.Random(seed)
    return tuple((rng.randrange(0, 150), rng.randrange(0, 20) * 8, rng.randrange(0, 12) * 8) for _ in range(count))


def cases() -> list[GroupedCase]:
    """Shapes, layouts, dtypes, epilogues, schedules and configurations."""
    return [
        GroupedCase(MIXED, nan_problem=0),
        GroupedCase(MIXED, nan_problem=6, config=PINGPONG),
        GroupedCase(MIXED, nan_problem=2, config=GemmConfig(128, 128), dynamic=True),
        GroupedCase(MIXED, nan_problem=0, config=GemmConfig(128, 64, cluster_m=1, cluster_n=2)),
        GroupedCase(MIXED, nan_problem=0, config=GemmConfig(64, 64, pingpong=True, cluster_m=1, swap_ab=True)),
        GroupedCase(LONG_FIRST, dynamic=True, nan_problem=0),
        GroupedCase(((200, 136, 264),)),
        GroupedCase(((0, 8, 8), (8, 0, 8))),
        GroupedCase(((33, 40, 0), (8, 8, 0)), bias=True),
        GroupedCase(many(40), nan_problem=3, config=GemmConfig(64, 64, pingpong=True, cluster_m=1)),
        GroupedCase(MIXED, majors=("mnn",), nan_problem=0),
        GroupedCase(MIXED, majors=("kkm",), nan_problem=2),
        GroupedCase(MIXED, majors=("kkn", "knn", "mkm"), nan_problem=5),
        GroupedCase(MIXED, c="bf16", alpha=0.5, beta=-2.0, bias=True, nan_problem=0),
        GroupedCase(MIXED, c="fp32", out="fp32", in_place=True, beta=2.0, nan_problem=6),
        GroupedCase(MIXED, odd=(0, 2, 5), nan_problem=6, bias=True),
        GroupedCase(MIXED, dtype="fp16", out="fp32", nan_problem=0),
        GroupedCase(((96, 64, 272), (17, 136, 64)), dtype="e4m3", nan_problem=1),
    ]
