"""`batch_idx_permute`: results do not depend on the order, and each role does see the permuted problem; emulator and GPU."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Union

import torch

import quack
from quack.gemm_config import GemmConfig
from tests.cases import Case, operands, poison
from tests.ragged_cases import RaggedCase, RaggedOperands
from tests.ragged_cases import run as run_ragged
from tests.ragged_cases import verify as verify_ragged
from tests.reference import check, reference

PINGPONG = GemmConfig(128, 128, pingpong=True, cluster_m=1)
SCHEDULES = {
    "static": PINGPONG,
    "dynamic": replace(PINGPONG, is_dynamic_persistent=True),
    "single": replace(PINGPONG, is_persistent=False),
    "cluster": GemmConfig(128, 128, cluster_m=2),
    "cluster dynamic": GemmConfig(128, 128, cluster_m=2, is_dynamic_persistent=True),
    "swapped": replace(PINGPONG, swap_ab=True),
}
SIZES = (100, 37, 0, 200, 5)
MANY = (13,) * 40 + (0, 0) + (150,)


@dataclass(frozen=True)
class OrderCase:
    """A batched or ragged problem and how its problems are permuted: "reversed", "longest" (first) or "random"."""

    case: Union[Case, RaggedCase]
    order: str = "random"

    def __str__(self) -> str:
        return f"{self.order}-{self.case}"

    def permutation(self, device: str) -> torch.Tensor:
        """int32 (problems,)."""
        if isinstance(self.case, Case):
            problems = self.case.batch or 0
        else:
            problems = len(self.case.sizes)
            if self.order == "longest":
                sizes = torch.tensor(self.case.sizes, device=device)
                return sizes.argsort(descending=True, stable=True).int()
        if self.order == "reversed":
            return torch.arange(problems - 1, -1, -1, dtype=torch.int32, device=device)
        return torch.randperm(problems, generator=torch.Generator().manual_seed(problems)).int().to(device)


def _cases() -> Iterator[OrderCase]:
    """Every scheduler with a batch; both ragged kinds, more groups than a warp has lanes, C and bias."""
    for name, config in SCHEDULES.items():
        case = Case(f"order {name}", 200, 264, 72, batch=5, c="bf16", bias="bf16", bias_batched=True, config=config)
        yield OrderCase(case, "reversed")
    yield OrderCase(Case("order", 72, 64, 64, batch=1))
    yield OrderCase(Case("order", 72, 64, 64, batch=70, out="fp32"))
    yield OrderCase(Case("order", 72, 64, 0, batch=3, bias="fp32", bias_batched=True))
    yield OrderCase(RaggedCase("k", SIZES, m=136, n=264, c="bf16", bias=True, nan_group=1), "longest")
    dynamic = GemmConfig(128, 128, pingpong=True, is_dynamic_persistent=True)
    yield OrderCase(RaggedCase("k", SIZES, m=264, n=136, nan_group=3, config=dynamic), "longest")
    yield OrderCase(RaggedCase("k", MANY, m=72, n=64, nan_group=7))
    yield OrderCase(RaggedCase("m", SIZES, n=264, k=72, c="bf16", bias=True, nan_group=1), "longest")
    yield OrderCase(RaggedCase("m", SIZES, n=264, k=72, nan_group=3, config=GemmConfig(128, 128)), "reversed")
    yield OrderCase(RaggedCase("m", MANY, n=136, k=72, nan_group=7))


def cases() -> list[OrderCase]:
    return list(_cases())


def run_and_verify(case: OrderCase, device: str) -> None:
    """One launch, checked like the same problem without a permutation."""
    permutation = case.permutation(device)
    if isinstance(case.case, RaggedCase):
        ragged = RaggedOperands(case.case, device)
        run_ragged(ragged, batch_idx_permute=permutation)
        verify_ragged(ragged)
        return
    t = operands(case.case, device)
    poison(t.out.buffer)
    quack.gemm_tuned.fn(
        t.A, t.B, t.out.tensor, C=t.C, bias=t.bias, config=case.case.config, batch_idx_permute=permutation
    )
    check(case.case, t.out.tensor, reference(case.case, t, t.C))
    written = t.out.buffer.view(torch.uint8).view(t.out.buffer.numel(), -1) != 0xFF
    assert not (written.any(1) & t.out.outside()).any(), "elements outside the output were written"


def run_and_verify_repeated(schedule: str, device: str) -> None:
    """A vector that names one problem again and again: exactly that one is computed, so all roles use the vector."""
    case = Case("repeated", 200, 136, 72, batch=4, c="bf16", bias="bf16", bias_batched=True, config=SCHEDULES[schedule])
    t = operands(case, device)
    poison(t.out.buffer)
    again = torch.full((4,), 2, dtype=torch.int32, device=device)
    quack.gemm_tuned.fn(t.A, t.B, t.out.tensor, C=t.C, bias=t.bias, config=case.config, batch_idx_permute=again)
    _assert_only_the_third(t.out.tensor)
    expected = reference(case, t, t.C)
    check(case, t.out.tensor[2], expected._replace(exact=expected.exact[2], size=expected.size[2]))


def run_and_verify_repeated_ragged(kind: str, device: str) -> None:
    """The same for groups; the repeated one is of average length, so that the number of tiles stays within bounds."""
    sizes = (40, 40, 40, 40)
    case = RaggedCase(kind, sizes, m=72, n=72, k=72, config=PINGPONG)
    t = RaggedOperands(case, device)
    again = torch.full((4,), 2, dtype=torch.int32, device=device)
    run_ragged(t, batch_idx_permute=again)
    out = t.out.tensor.unflatten(0, (4, 40)) if kind == "m" else t.out.tensor
    _assert_only_the_third(out)
    a, b, *_ = t.group(2)
    torch.testing.assert_close(out[2].double(), a.double() @ b.double(), rtol=1e-2, atol=1e-2)


def _assert_only_the_third(out: torch.Tensor) -> None:
    written = [not problem.isnan().any().item() for problem in out]
    assert written == [False, False, True, False], f"problems {[i for i, w in enumerate(written) if w]} were computed"
