"""Split-K: every mode with every kind of problem and schedule, against float64, for emulator and GPU."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Optional, Union

import torch

import quack
from quack import SplitKMode
from quack.gemm_config import GemmConfig
from tests.cases import Case, CaseOperands, operands, poison
from tests.grouped_cases import GroupedCase, GroupedOperands
from tests.grouped_cases import run as run_grouped
from tests.grouped_cases import verify as verify_grouped
from tests.ragged_cases import RaggedCase, RaggedOperands
from tests.ragged_cases import run as run_ragged
from tests.ragged_cases import verify as verify_ragged
from tests.reference import check, reference

MODES = tuple(mode for mode in SplitKMode if mode is not SplitKMode.STREAM)  # those with a number of parts
SCHEDULES = {
    "static coop": GemmConfig(128, 128, cluster_m=1),
    "static pingpong": GemmConfig(64, 64, pingpong=True, cluster_m=1),
    "dynamic coop": GemmConfig(128, 64, cluster_m=1, is_dynamic_persistent=True),
    "dynamic pingpong": GemmConfig(64, 64, pingpong=True, cluster_m=1, is_dynamic_persistent=True),
    "cluster 2x1": GemmConfig(64, 128, pingpong=True, cluster_m=2),
    "cluster 1x2 dynamic": GemmConfig(128, 64, cluster_n=2, cluster_m=1, is_dynamic_persistent=True),
    "three warpgroups": GemmConfig(192, 112, cluster_m=1),
    "two slabs": GemmConfig(256, 64, cluster_m=1),
    "swapped": GemmConfig(64, 128, pingpong=True, cluster_m=1, swap_ab=True),
}
SIZES = (70, 0, 130, 5)
MANY = (3,) * 40 + (0, 0) + (70,)


@dataclass(frozen=True)
class SplitCase:
    """A problem of any kind, whose sums over K have this many parts; None with STREAM. is_reversed: with a permutation."""

    case: Union[Case, RaggedCase, GroupedCase]
    splits: Optional[int] = None
    is_reversed: bool = False

    def __str__(self) -> str:
        return f"{self.splits or 'reversed' * self.is_reversed}-{self.case}"


def cases() -> Iterator[SplitCase]:
    """All schedules, shapes whose parts are empty or uneven, all kinds of problems and epilogues."""
    for i, (name, config) in enumerate(SCHEDULES.items()):
        yield SplitCase(Case(f"split {name}", 136, 136, 200, c="bf16", bias="bf16", beta=0.5, config=config), 2 + i % 2)
    small = GemmConfig(64, 64, pingpong=True, cluster_m=1)
    wide = GemmConfig(128, 128, cluster_m=1)
    yield SplitCase(Case("split empty parts", 72, 72, 64, c="bf16", config=small), 4)
    yield SplitCase(Case("split k = 0", 72, 72, 0, c="bf16", bias="bf16", config=small), 3)
    yield SplitCase(Case("split deep", 64, 64, 1000, out="fp32", config=small), 4)
    yield SplitCase(Case("split more than clusters", 64, 64, 300, config=small), 1000)
    yield SplitCase(Case("split batch", 72, 72, 200, batch=3, bias="bf16", bias_batched=True, config=small), 3)
    yield SplitCase(
        Case("split odd", 131, 75, 272, pitch="odd", out_pitch="odd", c="bf16", c_pitch="odd", config=small), 2
    )
    yield SplitCase(Case("split out m-major", 136, 72, 200, out_major="m", c="fp32", c_major="m", config=wide), 2)
    yield SplitCase(Case("split in place", 136, 72, 200, c="bf16", in_place=True, alpha=0.5, config=wide), 2)
    yield SplitCase(Case("split fp8", 136, 72, 600, a="e4m3", b="e4m3", config=small), 2)
    yield SplitCase(Case("split fp8 fast", 136, 72, 600, a="e4m3", b="e5m2", fast_accum=True, config=wide), 2)
    for config in (wide, SCHEDULES["dynamic pingpong"]):
        yield SplitCase(RaggedCase("m", SIZES, n=72, k=200, c="bf16", bias=True, nan_group=1, config=config), 2)
        yield SplitCase(RaggedCase("k", SIZES, m=72, n=72, c="bf16", nan_group=3, config=config), 3)
    yield SplitCase(RaggedCase("m", MANY, n=72, k=200, odd=True, config=SCHEDULES["cluster 2x1"]), 2)
    yield SplitCase(RaggedCase("m", SIZES, n=72, k=200, pool=90, config=small), 2)
    yield SplitCase(RaggedCase("k", SIZES, m=72, n=64, pool=400, config=wide), 2)
    mixed = ((136, 72, 136), (1, 16, 8), (0, 16, 16), (33, 72, 500), (5, 40, 0))
    yield SplitCase(GroupedCase(mixed, c="bf16", bias=True, nan_problem=1, config=small), 2)
    yield SplitCase(GroupedCase(mixed, majors=("kkn", "mnm", "kkn", "mnm", "kkn"), dynamic=True, config=wide), 3)


def stream_cases() -> Iterator[SplitCase]:
    """Launches whose last wave would be partly empty, on the emulator's 4 SMs; on 132 every tile has many parts."""
    extents = {
        "static coop": (136, 300),
        "static pingpong": (136, 300),
        "cluster 2x1": (72, 300),
        "three warpgroups": (72, 300),
        "two slabs": (72, 300),
        "swapped": (136, 300),
    }
    for name, (m, n) in extents.items():
        config = SCHEDULES[name]
        yield SplitCase(Case(f"stream {name}", m, n, 200, c="bf16", bias="bf16", beta=0.5, config=config))
    small = GemmConfig(64, 64, pingpong=True, cluster_m=1)
    wide = GemmConfig(64, 64, cluster_m=1)
    yield SplitCase(Case("stream deep", 64, 64, 1000, out="fp32", c="fp32", config=small))
    yield SplitCase(Case("stream three tiles", 136, 64, 500, out="fp32", bias="bf16", config=small))
    yield SplitCase(Case("stream k = 0", 72, 300, 0, c="bf16", bias="bf16", config=small))
    yield SplitCase(Case("stream one k tile", 72, 300, 40, c="bf16", config=wide))
    yield SplitCase(Case("stream whole waves", 128, 128, 300, c="bf16", config=small))
    yield SplitCase(Case("stream batch", 72, 72, 200, batch=3, c="bf16", bias="bf16", bias_batched=True, config=small))
    yield SplitCase(
        Case("stream batch", 72, 130, 200, batch=3, bias="bf16", bias_batched=True, config=wide), None, True
    )
    odd = Case("stream odd", 131, 139, 272, pitch="odd", out_pitch="odd", c="bf16", c_pitch="odd", config=small)
    yield SplitCase(odd)
    yield SplitCase(Case("stream m-major", 136, 136, 200, out_major="m", c="fp32", c_major="m", config=wide))
    yield SplitCase(Case("stream in place", 136, 136, 200, c="bf16", in_place=True, alpha=0.5, config=small))
    yield SplitCase(Case("stream fp8", 136, 136, 600, a="e4m3", b="e4m3", config=small))
    yield SplitCase(Case("stream fp8 fast", 136, 136, 600, a="e4m3", b="e5m2", fast_accum=True, config=wide))


Operands = Union[CaseOperands, RaggedOperands, GroupedOperands]


class Run:
    """The tensors of a case. `launch` may be called any number of times."""

    def __init__(self, split: SplitCase, mode: SplitKMode, device: str):
        self.case = split.case
        self.options: dict[str, Any] = {"split_k": split.splits, "split_k_mode": mode}
        if split.is_reversed:
            self.options["batch_idx_permute"] = torch.arange(split.case.batch, dtype=torch.int32, device=device).flip(0)
        self.operands: Any
        if isinstance(self.case, Case):
            self.operands = operands(self.case, device)
            self.C = None if self.operands.C is None else self.operands.C.clone()
        elif isinstance(self.case, RaggedCase):
            self.operands = RaggedOperands(self.case, device)
        else:
            self.operands = GroupedOperands(self.case, device)

    def launch(self) -> None:
        """Into poisoned memory."""
        t = self.operands
        if isinstance(self.case, RaggedCase):
            run_ragged(t, **self.options)
        elif isinstance(self.case, GroupedCase):
            run_grouped(t, **self.options)
        else:
            poison(t.out.buffer)
            if self.case.in_place:
                t.out.tensor.copy_(self.C)
            quack.gemm_tuned.fn(
                t.A, t.B, t.out.tensor, C=t.C, bias=t.bias, alpha=t.alpha, beta=t.beta, config=self.case.config,
                fast_accum=self.case.fast_accum, **self.options,
            )  # fmt: skip

    def verify(self) -> None:
        """Against float64, and nothing written around the output."""
        t = self.operands
        if isinstance(self.case, RaggedCase):
            verify_ragged(t)
        elif isinstance(self.case, GroupedCase):
            verify_grouped(t)
        else:
            check(self.case, t.out.tensor, reference(self.case, t, self.C))
            written = t.out.buffer.view(torch.uint8).view(t.out.buffer.numel(), -1) != 0xFF
            assert not (written.any(1) & t.out.outside()).any(), "elements outside the output were written"

    def outputs(self) -> list[torch.Tensor]:
        """Bits of everything that was written."""
        if isinstance(self.case, GroupedCase):
            return [out.tensor.contiguous().view(torch.uint8) for out in self.operands.outs]
        return [self.operands.out.tensor.contiguous().view(torch.uint8)]

    def bits(self) -> bytes:
        return b"".join(out.cpu().numpy().tobytes() for out in self.outputs())
