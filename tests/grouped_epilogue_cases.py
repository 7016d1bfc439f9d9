"""Grouped GEMMs with epilogues, checked against float64 for emulator and GPU.

Problems are those of `epilogue_act_cases`, whose outputs are views into buffers of NaN: what a problem writes outside of its own
shows. The inputs of one problem of a case are NaN: they must poison its own outputs and nobody else's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional, Union

import torch

import quack
from quack import GemmConfig, SplitKMode
from tests.cases import poison
from tests.epilogue_act_cases import ActCase, Backward, Forward
from tests.user_epilogue_cases import Everything, near

Shape = tuple[int, int, int]
SHAPES: tuple[Shape, ...] = (
    (136, 264, 72), (1, 16, 8), (64, 64, 64), (0, 16, 16), (130, 0, 24), (33, 72, 200), (70, 8, 104), (5, 40, 0),
)  # fmt: skip
FEW: tuple[Shape, ...] = ((136, 72, 136), (1, 16, 8), (33, 200, 72))
SMALL = GemmConfig(64, 64, pingpong=True, cluster_m=1)
PINGPONG = GemmConfig(128, 128, pingpong=True, cluster_m=1)
COOPERATIVE = GemmConfig(128, 128, cluster_m=1)
CLUSTER = GemmConfig(128, 64, cluster_m=2)
SWAPPED = GemmConfig(64, 64, pingpong=True, cluster_m=1, swap_ab=True)
GRADIENT = GemmConfig(
    128, 256, cluster_m=1
)  # one of those that leave registers for an activation's gradient and row sums


@dataclass(frozen=True)
class ActGroup:
    """act: what every problem computes, with extents of its own. odd: problems whose outputs have neither aligned pitch nor address;
    nan: the one with NaN inputs."""

    act: ActCase
    shapes: tuple[Shape, ...] = SHAPES
    odd: tuple[int, ...] = ()
    nan: Optional[int] = None
    config: Optional[GemmConfig] = None
    dynamic: bool = False
    split: Optional[SplitKMode] = None  # in two parts

    def __str__(self) -> str:
        parts = [f"{len(self.shapes)}problems", str(self.act), "odd" * bool(self.odd), "dynamic" * self.dynamic]
        parts += [str(self.config).replace(" ", "_") if self.config else "", self.split.value if self.split else ""]
        return "-".join(part for part in parts if part)

    def problems(self) -> list[ActCase]:
        return [
            replace(self.act, m=m, n=n, k=k, odd=i in self.odd, majors=f"{'km'[i % 2 and k > 0]}{self.act.majors[1:]}")
            for i, (m, n, k) in enumerate(self.shapes)
        ]

    def options(self) -> dict[str, Any]:
        found: dict[str, Any] = {"config": self.config, "dynamic_scheduler": self.dynamic}
        return found | ({"split_k": 2, "split_k_mode": self.split} if self.split else {})


class Group:
    """Tensors of a case, problem by problem."""

    kind: type[Union[Forward, Backward]]

    def __init__(self, case: ActGroup, device: str) -> None:
        self.case = case
        self.problems: list[Any] = [self.kind(problem, device) for problem in case.problems()]
        if case.nan is not None:
            self.problems[case.nan].A.fill_(float("nan"))

    def of(self, name: str) -> Optional[list[torch.Tensor]]:
        """The tensors of all problems, those of views."""
        found = [getattr(problem, name) for problem in self.problems]
        return None if found[0] is None else [getattr(x, "tensor", x) for x in found]

    def poison(self, *names: str) -> None:
        for problem in self.problems:
            for name in names:
                if getattr(problem, name) is not None:
                    poison(getattr(problem, name).buffer)

    def verify(self, *poisoned: str) -> None:
        """poisoned: outputs that NaN inputs must reach."""
        for i, problem in enumerate(self.problems):
            if i != self.case.nan:
                problem.verify()
                continue
            for name in poisoned:
                if getattr(problem, name) is not None:
                    assert getattr(problem, name).tensor.isnan().all(), f"problem {i} is NaN, but its {name} is not"


class ForwardGroup(Group):
    """Of `gemm_grouped_act`."""

    kind = Forward

    def arguments(self) -> dict[str, Any]:
        stores = self.case.act.store
        return dict(
            A_list=self.of("A"), B_list=self.of("B"), C_list=self.of("C"), bias_list=self.of("bias"),
            activation=self.case.act.activation, preact_out_list=self.of("preact") if stores else None,
            postact_out_list=self.of("postact"), store_preact=stores, **self.case.options(),
        )  # fmt: skip

    def run(self) -> None:
        self.poison("preact", "postact")
        preact, postact = quack.gemm_grouped_act(**self.arguments())
        assert (preact is None) == (not self.case.act.store)
        assert all(got is given for got, given in zip(postact, self.of("postact") or ()))

    def check(self) -> None:
        self.verify("preact", "postact")


class BackwardGroup(Group):
    """Of `gemm_grouped_dact`."""

    kind = Backward

    def arguments(self) -> dict[str, Any]:
        act = self.case.act
        return dict(
            A_list=self.of("A"), B_list=self.of("B"), PreAct_list=self.of("x"), activation=act.activation,
            dx_out_list=self.of("dx"), postact_out_list=self.of("postact"), colvec_scale_list=self.of("scale"),
            colvec_reduce=act.reduce, store_postact=act.store, **self.case.options(),
        )  # fmt: skip

    def run(self) -> None:
        self.poison("dx", "postact")
        self.take(quack.gemm_grouped_dact(**self.arguments()))

    def take(self, results: Sequence[Any]) -> None:
        """What a call returned."""
        assert (results[1] is None) == (not self.case.act.store) and len(results) == 2 + self.case.act.reduce
        for i, problem in enumerate(self.problems):
            problem.sums = results[2][i] if self.case.act.reduce else None

    def check(self) -> None:
        self.verify("dx")


def forward_groups() -> list[ActGroup]:
    found = []
    for name in ("gelu_tanh_approx", "swiglu"):
        found += [
            ActGroup(ActCase(name), nan=0),
            ActGroup(ActCase(name, False, bias=True), nan=0),
            ActGroup(ActCase(name, bias=True, c="bf16"), nan=5, config=PINGPONG),
            ActGroup(ActCase(name, False), nan=2, config=COOPERATIVE, dynamic=True),
            ActGroup(ActCase(name), odd=(0, 2, 5), nan=6),
            ActGroup(ActCase(name, False, post="fp32"), ((136, 138, 72), (33, 70, 72), (1, 2, 8)), (0, 1), nan=0),
            ActGroup(ActCase(name, c="fp32", bias=True), FEW, config=SMALL, split=SplitKMode.SERIAL),
            ActGroup(ActCase(name, bias=True), FEW, config=SMALL, split=SplitKMode.PARALLEL, dynamic=True),
            ActGroup(ActCase(name, bias=True), SHAPES, config=SMALL, split=SplitKMode.SEPARATE),
            ActGroup(ActCase(name, False), FEW, config=CLUSTER),
        ]
    found += [
        ActGroup(ActCase("silu", bias=True, c="bf16"), nan=0, config=SWAPPED),
        ActGroup(ActCase("relu", False, bias=True), FEW, config=SWAPPED, split=SplitKMode.SERIAL),
        ActGroup(ActCase("silu"), ((0, 16, 8), (8, 0, 8))),
        ActGroup(ActCase("tanh", dtype="fp16", out="fp32", post="fp16"), nan=2),
    ]
    return found


def backward_groups() -> list[ActGroup]:
    found = []
    for name in ("gelu_tanh_approx", "swiglu"):
        everything = ActCase(name, scale="fp32", reduce=True)
        found += [
            ActGroup(everything, nan=0),
            ActGroup(everything, ((136, 520, 40), (1, 16, 8), (33, 272, 24)), config=GRADIENT),
            ActGroup(ActCase(name), nan=5, config=PINGPONG),
            ActGroup(ActCase(name, False, scale="bf16"), nan=2, dynamic=True, config=SMALL),
            ActGroup(ActCase(name, reduce=True), odd=(0, 5), nan=0),
            ActGroup(ActCase(name, False), FEW, config=SMALL, split=SplitKMode.SERIAL),
            ActGroup(everything, FEW, split=SplitKMode.SEPARATE),
        ]
    return [*found, ActGroup(ActCase("silu"), nan=0, config=SWAPPED)]


# ---- what users write ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EveryGroup:
    """`Everything` on every problem: each kind of port."""

    shapes: tuple[Shape, ...] = SHAPES
    half: bool = False
    col: bool = True
    dtype: torch.dtype = torch.bfloat16
    config: Optional[GemmConfig] = None
    dynamic: bool = False
    split: Optional[SplitKMode] = None

    def __str__(self) -> str:
        parts = [f"{len(self.shapes)}problems", str(self.dtype)[6:], "half" * self.half, "dynamic" * self.dynamic]
        parts += [str(self.config).replace(" ", "_") if self.config else "", self.split.value if self.split else ""]
        return "-".join(part for part in parts if part)


EVERY = (
    EveryGroup(),
    EveryGroup(((136, 70, 72), (33, 130, 40), (1, 2, 8)), half=True, dtype=torch.float32),
    EveryGroup(half=True, config=GemmConfig(128, 96, pingpong=True, cluster_m=1), dynamic=True),
    EveryGroup(half=True, config=COOPERATIVE),
    *(EveryGroup(FEW, half=True, config=SMALL, split=mode) for mode in SplitKMode if mode is not SplitKMode.STREAM),
)


class EveryOperands:
    """Tensors of an `EveryGroup`; `run` computes and `verify` compares all outputs."""

    def __init__(self, case: EveryGroup, device: str) -> None:
        generator = torch.Generator(device=device).manual_seed(1)
        self.case, shapes = case, case.shapes

        def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
            return torch.randn(*shape, device=device, generator=generator).to(dtype)

        self.A, self.B = [normal(m, k) for m, _, k in shapes], [normal(k, n) for _, n, k in shapes]
        self.C = [normal(m, n, dtype=case.dtype) for m, n, _ in shapes]
        self.r = [normal(n, dtype=torch.float32) for _, n, _ in shapes]
        self.c = [normal(m) for m, _, _ in shapes]
        self.t = [normal(m, n, dtype=torch.float32) for m, n, _ in shapes]
        self.outs = [torch.full((m, n), float("nan"), device=device, dtype=case.dtype) for m, n, _ in shapes]
        self.half = [torch.full((m, n // 2), float("nan"), device=device) for m, n, _ in shapes]
        self.scale = torch.tensor([0.5], device=device)

    def arguments(self) -> dict[str, Any]:
        case = self.case
        mixin = Everything(
            self.scale, 3, self.r, self.c, self.t, col_max=case.col or None, half=self.half if case.half else None
        )
        split: dict[str, Any] = {} if case.split is None else {"split_k": 2, "split_k_mode": case.split}
        return dict(
            A_list=self.A, B_list=self.B, out_list=self.outs, C_list=self.C, epilogue=mixin, config=case.config,
            dynamic_scheduler=case.dynamic, **split,
        )  # fmt: skip

    def run(self) -> Any:
        return quack.gemm_grouped(**self.arguments())

    def verify(self, results: Any) -> None:
        outs, copies, row_sums, *rest = results
        col_max = rest.pop(0) if self.case.col else None
        halves = rest.pop(0) if self.case.half else None
        assert not rest
        for i, (m, n, _) in enumerate(self.case.shapes):
            product = self.A[i].double() @ self.B[i].double()
            changed = 0.5 * product + self.r[i].double() + self.c[i].double()[:, None] * self.t[i].double()
            is_changed = torch.arange(n, device=product.device) % 3 == 0
            expected = torch.where(is_changed, changed + self.C[i].double(), product)
            assert outs[i] is self.outs[i] and copies[i].shape == (m, n)
            near(outs[i], expected)
            near(copies[i], product)
            if not m * n:
                continue
            size = expected.abs().sum(-1).amax().item()
            torch.testing.assert_close(row_sums[i].double().sum(-1), expected.sum(-1), rtol=0, atol=1e-5 * size)
            if col_max is not None:
                near(col_max[i].amax(0), expected.amax(0))
            if halves is not None:
                assert halves[i] is self.half[i]
                near(halves[i], torch.maximum(expected[:, ::2], expected[:, 1::2]))
