"""Epilogues and commit policies as users write them, with their results in float64; for the emulator and the GPU."""

import math
from dataclasses import dataclass
from typing import NamedTuple, Optional

import cutlass.cute as cute
import torch

import quack
from quack import ops
from quack.runtime import call

NAN = float("nan")

softcap = quack.pointwise(lambda acc, cap: cap * ops.tanh(acc / cap))


@dataclass(frozen=True)
class RowMax(quack.EpilogueMixin):
    row_max: quack.RowPartials

    def begin(self, ctx):
        return ctx.row_state(-math.inf)

    def visit(self, ctx, state, frag):
        return ctx.reduce_rows(state, frag, ctx.within_columns(frag, frag.acc, -math.inf), ops.maximum)

    def end(self, ctx, state):
        ctx.store_rows(self.row_max, ctx.share_rows(state, ops.maximum))


@dataclass(frozen=True)
class Everything(quack.EpilogueMixin):
    """Every kind of port, and C. In columns that `every` divides the result is
    sign * (scale * acc + r[n] + c[m] * t[m, n] + C), elsewhere acc."""

    scale: quack.Scalar
    every: quack.Integer
    r: quack.RowVector
    c: quack.ColVector
    t: quack.TileInput
    copy: quack.TileOutput  # the accumulator
    row_sum: quack.RowPartials
    col_max: Optional[quack.ColPartials]
    half: Optional[quack.TileOutput] = None  # the larger of columns 2j and 2j + 1
    negate: bool = False
    needs_c = True

    def begin(self, ctx):
        return ctx.load_scalar(self.scale), ctx.load_integer(self.every), ctx.row_state(0.0)

    def visit(self, ctx, state, frag):
        scale, every, sums = state
        frag.put(self.copy, frag.mapped(lambda x: x))
        r, c, t = ctx.values(self.r, frag), ctx.values(self.c, frag), ctx.load_tile(self.t, frag)
        sign = -1.0 if self.negate else 1.0
        for v, (_, col) in enumerate(ctx.coordinates(frag)):
            changed = sign * (scale * frag.acc[v] + r[v] + c[v] * t[v] + frag.c[v])
            frag.acc[v] = ops.where(col % every == 0, changed, frag.acc[v])
        sums = ctx.reduce_rows(sums, frag, ctx.within_columns(frag, frag.acc, 0.0), add)
        if self.col_max is not None:
            ctx.reduce_cols(self.col_max, frag, ctx.within_rows(frag, frag.acc, -math.inf), ops.maximum)
        if self.half is not None:
            frag.put(self.half, ctx.layout.halve(frag.acc, ops.maximum))
        return scale, every, sums

    def end(self, ctx, state):
        ctx.store_rows(self.row_sum, ctx.share_rows(state[2], add))
        if self.col_max is not None:
            ctx.store_cols(self.col_max, ops.maximum)


def add(x, y):
    return x + y


class LowerTriangle(quack.DefaultCommit):
    """Subtiles above the diagonal are not stored; in those that it crosses, what is above it becomes 0."""

    @cute.jit
    def commit(self, ctx, io, frag, state):
        for v, (row, col) in enumerate(ctx.coordinates(frag)):
            frag.acc[v] = ops.where(col <= row, frag.acc[v], 0.0)
        if ctx.col + frag.subtile * io.epi_n < ctx.row + ctx.slab_rows[frag.slab] + ctx.layout.slab_m:
            state = quack.DefaultCommit.commit(self, ctx, io, frag, state)
        return state


def near(got: torch.Tensor, expected: torch.Tensor, rtol: float = 2**-8) -> None:
    """Up to one rounding of the output and 1e-5 of the typical sum."""
    assert got.shape == expected.shape
    if got.numel():
        size = expected[expected.isfinite()].abs().mean().item() if expected.isfinite().any() else 1.0
        rtol = rtol if got.dtype is not torch.float32 else 1e-5
        torch.testing.assert_close(got.double(), expected, rtol=rtol, atol=1e-4 * max(size, 1.0))


class EverythingCase(NamedTuple):
    """groups: rows of each group of a ragged problem (varlen_m), then m is their sum; batch: of a dense one."""

    m: int
    n: int
    k: int
    batch: Optional[int] = None
    groups: tuple[int, ...] = ()
    negate: bool = False
    half: bool = False
    dtype: torch.dtype = torch.bfloat16
    config: Optional[quack.GemmConfig] = None
    split: Optional[quack.SplitKMode] = None  # in three parts

    def __str__(self) -> str:
        kind = f"b{self.batch}" if self.batch else "varlen" if self.groups else "dense"
        options = "-".join(name for name in ("negate", "half") if getattr(self, name))
        tile = "" if self.config is None else "-" + str(self.config).replace(" ", "-")
        split = "" if self.split is None else f"-{self.split.value}"
        return f"{kind}-{self.m}x{self.n}x{self.k}-{str(self.dtype)[6:]}-{options}{tile}{split}"


SMALL, PINGPONG, COOPERATIVE, TALL = (
    quack.GemmConfig(64, 64, pingpong=True, cluster_m=1),
    quack.GemmConfig(128, 96, pingpong=True, cluster_m=1),
    quack.GemmConfig(128, 192, cluster_m=1),
    quack.GemmConfig(256, 96, cluster_m=1),
)
EVERYTHING = (
    EverythingCase(200, 328, 96),
    EverythingCase(200, 322, 96, half=True, dtype=torch.float32),  # columns by element
    EverythingCase(129, 264, 40, batch=3, negate=True, half=True),
    EverythingCase(301, 136, 72, groups=(100, 0, 1, 200), half=True),
    EverythingCase(300, 520, 64, negate=True, config=PINGPONG),
    EverythingCase(300, 520, 64, half=True, config=COOPERATIVE),
    EverythingCase(300, 520, 64, half=True, config=TALL),
    EverythingCase(64, 72, 0),
    *(
        EverythingCase(200, 200, 264, half=True, config=SMALL, split=mode)
        for mode in quack.SplitKMode
        if mode is not quack.SplitKMode.STREAM
    ),
    EverythingCase(129, 136, 200, batch=3, config=SMALL, split=quack.SplitKMode.SEPARATE),
    EverythingCase(301, 136, 200, groups=(100, 0, 1, 200), config=SMALL, split=quack.SplitKMode.SEPARATE),
)


def run_everything(case: EverythingCase, device: str) -> None:
    """Compute and compare all outputs."""
    torch.manual_seed(1)
    batch = (case.batch,) if case.batch else ()

    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    groups = (len(case.groups),) if case.groups else ()
    A, B = normal(*batch, case.m, case.k), normal(*batch, *groups, case.k, case.n)
    t, C = normal(*batch, case.m, case.n, dtype=torch.float32), normal(*batch, case.m, case.n, dtype=case.dtype)
    r, c = normal(*batch, case.n, dtype=torch.float32), normal(*batch, case.m)
    half = torch.full((*batch, case.m, case.n // 2), NAN, device=device) if case.half else None
    out = torch.full((*batch, case.m, case.n), NAN, device=device, dtype=case.dtype)
    scale, every = torch.tensor([0.5], device=device), 3
    ragged = {}
    if case.groups:
        offsets = torch.tensor([0, *case.groups]).cumsum(0)
        ragged["cu_seqlens_m"] = offsets.to(device, torch.int32)
        product = torch.cat([A[i:j].double() @ B[g].double() for g, (i, j) in enumerate(zip(offsets, offsets[1:]))])
    else:
        product = A.double() @ B.double()

    col_max = None if case.groups else True
    mixin = Everything(scale, every, r, c, t, col_max=col_max, half=half, negate=case.negate)
    split = {} if case.split is None else {"split_k": 3, "split_k_mode": case.split}
    got = quack.gemm_tuned.fn(A, B, out, C, config=case.config, epilogue=mixin, **ragged, **split)

    if case.split is not None:
        assert next(reversed(call._calls.values())).plan.split is not None
    sign = -1.0 if case.negate else 1.0
    changed = sign * (0.5 * product + r.double().unsqueeze(-2) + c.double().unsqueeze(-1) * t.double() + C.double())
    expected = torch.where(torch.arange(case.n, device=device) % every == 0, changed, product)
    D, copy, row_sum, *rest = got
    assert D is out and copy.dtype is case.dtype
    near(D, expected)
    near(copy, product)
    size = expected.abs().sum(-1).amax().item()
    torch.testing.assert_close(row_sum.double().sum(-1), expected.sum(-1), rtol=0, atol=1e-5 * size)
    if not case.groups:
        near(rest.pop(0).amax(-2), expected.amax(-2))
    if case.half:
        assert rest.pop(0) is half
        near(half, torch.maximum(expected[..., ::2], expected[..., 1::2]))
    assert not rest
