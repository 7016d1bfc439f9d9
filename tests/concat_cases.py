"""`concat_layout`: GEMMs whose operands are stored as two halves, checked against float64; shared by emulator and GPU.

What is stored is random; the reference puts it into logical order with an index vector of its own.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Optional

import torch

import quack
from quack.gemm_config import GemmConfig
from tests.cases import Case, CaseOperands, operands, poison
from tests.ragged_cases import RaggedCase, RaggedOperands
from tests.ragged_cases import run as run_ragged
from tests.ragged_cases import verify as verify_ragged
from tests.reference import check, reference

ALL = ("A", "B", "C", "bias", "out")
PINGPONG = GemmConfig(128, 128, pingpong=True, cluster_m=1)


@dataclass(frozen=True)
class ConcatCase:
    """A `Case` (its shapes and majors in logical terms) with the operands that are stored as halves."""

    case: Case
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{'+'.join(self.names)}-{self.case}"

    def dim(self, name: str) -> int:
        """The dimension that holds the halves, by the case's majors."""
        case = self.case
        inner = {
            "A": case.a_major == "k",
            "B": case.b_major == "n",
            "C": case.c_major == "n",
            "out": case.out_major == "n",
        }
        return -1 if name == "bias" else -2 if inner[name] else -1


def logical_index(extent: int, device: torch.device) -> torch.Tensor:
    """Where the elements 0, 1, 2, ... of a dimension lie in memory: 0, n/2, 1, n/2 + 1, ..."""
    return torch.tensor([j // 2 + j % 2 * (extent // 2) for j in range(extent)], device=device)


def in_logical_order(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    index = logical_index(tensor.shape[dim], tensor.device)
    return tensor.double().index_select(dim, index).to(tensor.dtype)  # double, because torch indexes no fp8


def launch(case: ConcatCase, t: CaseOperands) -> None:
    plain = case.case
    quack.gemm_tuned.fn(
        t.A, t.B, t.out.tensor, C=t.C, bias=t.bias, alpha=t.alpha, beta=t.beta, config=plain.config,
        fast_accum=plain.fast_accum, concat_layout=case.names,
    )  # fmt: skip


def prepare(case: ConcatCase, device: str) -> tuple[CaseOperands, Optional[torch.Tensor]]:
    """Operands with a poisoned output (or C in it), and a copy of C in logical order."""
    t = operands(case.case, device)
    C = t.C.clone() if t.C is not None else None
    poison(t.out.buffer)
    if C is not None:
        if case.case.in_place:
            t.out.tensor.copy_(C)
        if "C" in case.names:
            C = in_logical_order(C, case.dim("C"))
    return t, C


def verify(case: ConcatCase, t: CaseOperands, C: Optional[torch.Tensor]) -> None:
    """Against float64, and nothing written around the output."""

    def logical(name: str, tensor: Optional[torch.Tensor]) -> Optional[torch.Tensor]:
        return in_logical_order(tensor, case.dim(name)) if tensor is not None and name in case.names else tensor

    A, B = logical("A", t.A), logical("B", t.B)
    assert A is not None and B is not None
    expected = reference(case.case, replace(t, A=A, B=B, bias=logical("bias", t.bias)), C)
    out = logical("out", t.out.tensor)
    assert out is not None
    check(case.case, out, expected)
    written = t.out.buffer.view(torch.uint8).view(t.out.buffer.numel(), -1) != 0xFF
    assert not (written.any(1) & t.out.outside()).any(), "elements outside the output were written"


def _one_operand_each() -> Iterator[ConcatCase]:
    base = Case("concat", 202, 394, 136, pitch="padded", out_pitch="padded", config=PINGPONG)
    for a, b, out in (("k", "k", "n"), ("m", "n", "m")):
        case = replace(base, a_major=a, b_major=b, out_major=out)
        for name in ("A", "B", "out"):
            yield ConcatCase(case, (name,))
        yield ConcatCase(replace(case, c="bf16", c_pitch="padded", c_major=out, beta=0.5), ("C",))
        yield ConcatCase(replace(case, bias="bf16"), ("bias",))


def _together() -> Iterator[ConcatCase]:
    base = Case("concat", 200, 392, 136, c="bf16", bias="fp32", alpha=0.5, beta=-2.0)
    for a, b, out in itertools.product("km", "kn", "nm"):
        yield ConcatCase(replace(base, a_major=a, b_major=b, out_major=out, c_major=out), ALL)
    yield ConcatCase(replace(base, in_place=True), ("C", "out"))
    yield ConcatCase(replace(base, m=16), ALL)  # computed as D^T
    yield ConcatCase(replace(base, m=2, n=2, k=2), ALL)
    yield ConcatCase(replace(base, config=GemmConfig(128, 128, pingpong=True, swap_ab=True)), ALL)
    yield ConcatCase(replace(base, batch=3, bias_batched=True), ALL)
    yield ConcatCase(replace(base, batch=3, batching="interleaved", a_major="m", b_major="n"), ALL)
    yield ConcatCase(Case("concat", 136, 200, 272, a="e4m3", b="e5m2", out="e4m3"), ("A", "B", "out"))
    yield ConcatCase(Case("concat", 136, 200, 136, a="fp16", b="fp16", out="fp32"), ("A", "B", "out"))


def _odd_pitches() -> Iterator[ConcatCase]:
    odd = {"pitch": "odd", "out_pitch": "odd", "c_pitch": "odd"}
    yield ConcatCase(Case("concat", 66, 1001, 72), ("out",))
    yield ConcatCase(Case("concat", 130, 250, 71, c="bf16", bias="bf16", **odd), ALL)
    yield ConcatCase(Case("concat", 130, 250, 70, a_major="m", b_major="n", out_major="m", **odd), ("A", "B", "out"))
    yield ConcatCase(Case("concat", 4, 1, 64), ("A", "out"))  # one column: the rows are what is split
    yield ConcatCase(Case("concat", 1, 4, 64, out_major="m"), ("B", "out"))


def _configurations() -> Iterator[ConcatCase]:
    for cluster, (a, b) in itertools.product(((2, 1), (1, 2), (2, 2)), ("kk", "mn")):
        config = GemmConfig(128, 128, pingpong=True, cluster_m=cluster[0], cluster_n=cluster[1])
        yield ConcatCase(
            Case("concat", 394, 394, 136, a_major=a, b_major=b, pitch="padded", out_pitch="padded", config=config),
            ("A", "B", "out"),
        )
    for config in (
        GemmConfig(128, 256), GemmConfig(192, 128), GemmConfig(64, 16, pingpong=True, cluster_m=1),
        GemmConfig(128, 128, pingpong=True, is_dynamic_persistent=True),
    ):  # fmt: skip
        yield ConcatCase(Case("concat", 394, 392, 72, c="bf16", bias="bf16", config=config), ALL)


def cases() -> list[ConcatCase]:
    """Every operand alone and all together, both majors, edges, batches, clusters, unaligned outputs, fp8."""
    return [*_one_operand_each(), *_together(), *_odd_pitches(), *_configurations()]


@dataclass(frozen=True)
class RaggedConcatCase:
    """Groups whose batch-like operands are stored as halves; dims: where, for A, B, C and out."""

    case: RaggedCase
    dims: tuple[tuple[str, int], ...]
    bias: bool = False

    def __str__(self) -> str:
        names = [name for name, _ in self.dims] + (["bias"] if self.bias else [])
        return f"{'+'.join(names)}-{self.case}"


SIZES = (100, 37, 0, 200, 5)


def ragged_cases() -> list[RaggedConcatCase]:
    """varlen-M with halves of N or K in B, of N in bias, C and out; varlen-K with halves of M or N in C and out."""
    m = RaggedCase("m", SIZES, n=136, k=72, bias=True, nan_group=1)
    k = RaggedCase("k", SIZES, m=136, n=72, c="bf16", beta=0.5, bias=True, nan_group=1)
    return [
        RaggedConcatCase(m, (("B", -1),), bias=True),
        RaggedConcatCase(replace(m, b_major="n", config=PINGPONG), (("B", -2),)),
        RaggedConcatCase(replace(m, out_major="m"), (("out", -1),), bias=True),
        RaggedConcatCase(replace(m, out_major="m", c="bf16", c_major="m"), (("B", -1), ("C", -1), ("out", -1))),
        RaggedConcatCase(replace(m, dtype="e4m3", k=272), (("B", -1),)),
        RaggedConcatCase(k, (("C", -2), ("out", -2)), bias=True),
        RaggedConcatCase(replace(k, out_major="m"), (("out", -1),), bias=True),
        RaggedConcatCase(replace(k, m=74, n=131, odd=True, c=None, bias=False), (("out", -2),)),
    ]


def run_and_verify_ragged(case: RaggedConcatCase, t: RaggedOperands) -> None:
    """One launch, then the stored operands are replaced by logical ones and the groups checked as always."""
    names = [name for name, _ in case.dims] + (["bias"] if case.bias else [])
    run_ragged(t, concat_layout=tuple(names))
    for name, dim in case.dims:
        if name == "out":
            t.out.tensor.copy_(in_logical_order(t.out.tensor, dim))
        else:
            setattr(t, name, in_logical_order(getattr(t, name), dim))
    if case.bias and t.bias is not None:
        t.bias = in_logical_order(t.bias, -1)
    verify_ragged(t)
