"""Ragged GEMMs (`cu_seqlens_m`, `cu_seqlens_k`), plain and gathered, checked against float64, for emulator and GPU.

One group of each case holds NaN: it must poison its own output and nobody else's, although tiles overlap its neighbours.
In gathered cases (`pool`) A also has lines that no index names, and they are all NaN.
"""

import itertools
import zlib
from dataclasses import dataclass, replace
from typing import Any, Optional

import torch

import quack
from quack.gemm_config import GemmConfig
from tests.cases import DTYPES, Case, View, make_view, poison
from tests.reference import Reference, as_multiplied, check

PINGPONG = GemmConfig(128, 128, pingpong=True, cluster_m=1)
DYNAMIC = GemmConfig(128, 128, pingpong=True, is_dynamic_persistent=True)


@dataclass(frozen=True)
class RaggedCase:
    """sizes: rows (ragged "m") or k (ragged "k") of each group; m, n, k: the extents that all groups share.

    nan_group: index of the group whose A is NaN, None for none; gathered, its first line is.
    odd: neither pitch nor address of out are aligned.
    pool: gathered, from this many rows (ragged "m") or columns (ragged "k") that groups share; NaN ones come on top.
    """

    ragged: str
    sizes: tuple[int, ...]
    m: int = 0
    n: int = 0
    k: int = 0
    dtype: str = "bf16"
    out: str = "bf16"
    a_major: Optional[str] = None
    b_major: Optional[str] = None
    out_major: str = "n"
    odd: bool = False
    c: Optional[str] = None
    c_major: str = "n"
    alpha: float = 1.0
    beta: float = 1.0
    bias: bool = False
    fast_accum: bool = False
    nan_group: Optional[int] = None
    pool: Optional[int] = None
    config: Optional[GemmConfig] = None

    def __str__(self) -> str:
        parts = [f"varlen_{self.ragged}", f"{len(self.sizes)}groups{sum(self.sizes)}", f"{self.m}x{self.n}x{self.k}"]
        parts += [f"from{self.pool}"] if self.pool is not None else []
        parts += [self.dtype, self.out, f"{self.a_major or ''}{self.b_major or ''}{self.out_major}"]
        parts += [name for name in ("odd", "c", "bias", "fast_accum") if getattr(self, name)]
        parts += ["c_major=m"] if self.c_major == "m" else []
        return "-".join(parts) + (f"-{self.config}".replace(" ", "_") if self.config else "")

    @property
    def offsets(self) -> list[int]:
        return [0, *itertools.accumulate(self.sizes)]


class RaggedOperands:
    """Tensors of one case; `out` is a view into a buffer of NaN."""

    def __init__(self, case: RaggedCase, device: str) -> None:
        self.case = case
        groups, total = len(case.sizes), sum(case.sizes)
        generator = torch.Generator(device=device).manual_seed(zlib.crc32(str(case).encode()))
        dtype = DTYPES[case.dtype]

        def matrix(shape: tuple[Optional[int], int, int], last_is_unit: bool) -> torch.Tensor:
            tensor = make_view(shape, dtype, 2 if last_is_unit else 1, "padded", "outer", device).tensor
            return tensor.copy_(torch.randn(tensor.shape, generator=generator, device=device).to(dtype))

        lines = total if case.pool is None else case.pool + NAN_LINES
        if case.ragged == "m":
            self.A = matrix((None, lines, case.k), case.a_major != "m")
            self.B = matrix((groups, case.k, case.n), case.b_major == "n")
            shape: tuple[Optional[int], int, int] = (None, total, case.n)
        else:
            self.A = matrix((None, case.m, lines), False)
            self.B = matrix((None, total, case.n), True)
            shape = (groups, case.m, case.n)
        pitch = "odd" if case.odd else "padded"
        unit = 2 if case.out_major == "n" else 1
        self.out: View = make_view(shape, DTYPES[case.out], unit, pitch, "outer", device)
        self.C = None
        if case.c is not None:
            self.C = make_view(shape, DTYPES[case.c], 2 if case.c_major == "n" else 1, "padded", "outer", device).tensor
            self.C.copy_(torch.randn(self.C.shape, generator=generator, device=device))
        self.bias = None
        if case.bias:
            self.bias = torch.randn(groups, case.n, generator=generator, device=device).bfloat16()
        self.offsets = torch.tensor(case.offsets, dtype=torch.int32, device=device)
        self.indices = None
        nan_lines = (
            slice(*case.offsets[case.nan_group : case.nan_group + 2]) if case.nan_group is not None else slice(0)
        )
        if case.pool is not None:
            indices = torch.randint(0, case.pool, (total,), generator=generator, device=device)
            nan_lines, of_nan_group = slice(case.pool, None), nan_lines
            # The first line of the group is NaN: one of the last lines of A, and nobody else refers to any of those.
            indices[of_nan_group][:1] = case.pool
            self.indices = indices.int()
        (self.A[nan_lines] if case.ragged == "m" else self.A[:, nan_lines]).fill_(float("nan"))

    @property
    def logical_a(self) -> torch.Tensor:
        """A as if nothing were gathered."""
        if self.indices is None:
            return self.A
        return self.A[self.indices] if self.case.ragged == "m" else self.A[:, self.indices]

    def group(self, g: int) -> tuple[Any, ...]:
        """(A, B, C, bias, slice of out) of one group."""
        first, last = self.case.offsets[g : g + 2]
        bias = None if self.bias is None else self.bias[g]
        A = self.logical_a
        if self.case.ragged == "m":
            rows = slice(first, last)
            return A[rows], self.B[g], None if self.C is None else self.C[rows], bias, rows
        return A[:, first:last], self.B[first:last], None if self.C is None else self.C[g], bias, g


def run(t: RaggedOperands, **options: Any) -> None:
    """One launch into a poisoned buffer. options: further arguments."""
    case = t.case
    poison(t.out.buffer)
    quack.gemm_tuned.fn(
        t.A, t.B, t.out.tensor, C=t.C, bias=t.bias, alpha=case.alpha, beta=case.beta, config=case.config,
        fast_accum=case.fast_accum, A_idx=t.indices, **{f"cu_seqlens_{case.ragged}": t.offsets}, **options,
    )  # fmt: skip


def verify(t: RaggedOperands) -> None:
    """Every group against float64, and nothing written around the output."""
    case = t.case
    for g in range(len(case.sizes)):
        a, b, c, bias, where = t.group(g)
        got = t.out.tensor[where]
        if got.numel() == 0:
            continue
        if g == case.nan_group and case.sizes[g]:
            is_one_row = case.pool is not None and case.ragged == "m"
            poisoned = got[:1] if is_one_row else got
            assert poisoned.isnan().all(), f"group {g} is NaN, but its output is not"
            if not is_one_row or got.shape[0] == 1:
                continue
            a, got, c = a[1:], got[1:], None if c is None else c[1:]
        a, b = as_multiplied(a), as_multiplied(b)
        exact = case.alpha * (a @ b)
        size = abs(case.alpha) * (a**2 @ b**2).sqrt()
        if c is not None:
            exact, size = exact + case.beta * c.double(), size + (case.beta * c.double()).abs()
        if bias is not None:
            exact, size = exact + bias.double(), size + bias.double().abs()
        model = Case("ragged", *got.shape, a.shape[1], a=case.dtype, b=case.dtype, fast_accum=case.fast_accum)
        check(model, got, Reference(exact, size))
    written = t.out.buffer.view(torch.uint8).view(t.out.buffer.numel(), -1) != 0xFF
    assert not (written.any(1) & t.out.outside()).any(), "elements outside the output were written"


NAN_LINES = 3
SIZES = (100, 37, 0, 200, 5)
MANY = (13,) * 40 + (0, 0) + (150,)


def cases() -> list[RaggedCase]:
    """Sizes, layouts, dtypes, epilogues and configurations of both kinds."""
    m = [
        RaggedCase("m", SIZES, n=136, k=72, nan_group=1),
        RaggedCase("m", SIZES, n=264, k=136, nan_group=3, config=PINGPONG),
        RaggedCase("m", (100, 0, 300, 1, 64), n=264, k=136, nan_group=0, config=GemmConfig(128, 128)),
        RaggedCase(
            "m", (64, 192, 128), n=128, k=64, nan_group=2, config=GemmConfig(128, 256, cluster_m=1, cluster_n=2)
        ),
        RaggedCase("m", MANY, n=136, k=72, nan_group=7, config=GemmConfig(64, 64, pingpong=True, cluster_m=1)),
        RaggedCase("m", SIZES, n=264, k=72, nan_group=1, config=replace(DYNAMIC, cluster_m=1)),
        RaggedCase("m", MANY, n=136, k=72, nan_group=7, config=DYNAMIC),
        RaggedCase("m", (0, 0, 0), n=136, k=72, config=DYNAMIC),
        # Clusters of which one CTA has no rows at all, and then multiplies nothing.
        RaggedCase("m", MANY, n=136, k=72, nan_group=7, config=GemmConfig(64, 128, pingpong=True, cluster_m=2)),
        RaggedCase("m", MANY, n=136, k=72, nan_group=7, config=GemmConfig(64, 128, cluster_m=2)),
        RaggedCase("m", (0, 0, 17), n=72, k=64),
        RaggedCase("m", (33,), n=72, k=64),
        RaggedCase("m", (0, 0), n=72, k=64),
        RaggedCase("m", SIZES, n=136, k=0),
        RaggedCase("m", SIZES, n=1, k=1, nan_group=1),
        RaggedCase("m", SIZES, n=136, k=72, b_major="n", nan_group=1),
        RaggedCase("m", SIZES, n=136, k=72, out_major="m", nan_group=1),
        RaggedCase("m", SIZES, n=131, k=72, odd=True, nan_group=3),
        RaggedCase("m", SIZES, n=136, k=72, c="bf16", alpha=0.5, beta=-2.0, bias=True, nan_group=0),
        RaggedCase("m", SIZES, n=136, k=72, c="bf16", c_major="m", nan_group=1),
        RaggedCase("m", SIZES, n=136, k=72, dtype="fp16", out="fp32", nan_group=1),
        RaggedCase("m", SIZES, n=136, k=272, dtype="e4m3", out="bf16", nan_group=1),
    ]
    k = [
        RaggedCase("k", SIZES, m=136, n=72, nan_group=1),
        RaggedCase("k", SIZES, m=136, n=264, nan_group=3, config=PINGPONG),
        RaggedCase("k", SIZES, m=264, n=136, nan_group=0, config=GemmConfig(128, 128)),
        RaggedCase("k", SIZES, m=264, n=136, nan_group=1, config=DYNAMIC),
        RaggedCase("k", MANY, m=72, n=64, nan_group=7),
        RaggedCase("k", (0, 0), m=72, n=64),
        RaggedCase("k", SIZES, m=1, n=1, nan_group=1),
        RaggedCase("k", SIZES, m=136, n=72, c="fp32", out="fp32", alpha=0.5, beta=2.0, nan_group=1),
        RaggedCase("k", SIZES, m=75, n=131, odd=True, nan_group=4),
        RaggedCase("k", SIZES, m=72, n=136, dtype="fp16", out="fp16", out_major="m", bias=True, nan_group=1),
    ]
    return m + k + gathered_cases()


def gathered_cases() -> list[RaggedCase]:
    """`A_idx` of both kinds: every tile height, both schedules, tails of M and K, epilogues, and a pool of one line."""
    cooperative = {m: GemmConfig(m, 128, cluster_m=1) for m in (64, 128, 192, 256)}
    m = [
        RaggedCase("m", SIZES, n=136, k=72, pool=50, nan_group=1),
        RaggedCase("m", SIZES, n=264, k=136, pool=900, nan_group=3, config=PINGPONG),
        RaggedCase("m", SIZES, n=136, k=131, pool=70, nan_group=0, config=cooperative[64]),
        RaggedCase("m", SIZES, n=136, k=136, pool=70, nan_group=4, config=cooperative[128]),
        RaggedCase("m", SIZES, n=136, k=72, pool=70, nan_group=1, config=cooperative[192]),
        RaggedCase("m", SIZES, n=136, k=136, pool=70, nan_group=3, config=cooperative[256]),
        RaggedCase("m", SIZES, n=136, k=200, pool=70, nan_group=3, config=replace(PINGPONG, tile_k=128)),
        RaggedCase("m", SIZES, n=136, k=136, pool=70, nan_group=3, config=replace(PINGPONG, cluster_m=2)),
        RaggedCase("m", SIZES, n=264, k=136, pool=70, nan_group=1, config=DYNAMIC),
        RaggedCase("m", MANY, n=136, k=72, pool=1, nan_group=7, config=GemmConfig(64, 64, pingpong=True, cluster_m=1)),
        RaggedCase("m", (0, 0), n=72, k=64, pool=5),
        RaggedCase("m", SIZES, n=136, k=0, pool=5),
        RaggedCase("m", SIZES, n=1, k=1, pool=5, nan_group=1),
        RaggedCase("m", SIZES, n=131, k=67, pool=40, odd=True, nan_group=3),
        RaggedCase("m", SIZES, n=136, k=72, pool=80, c="bf16", alpha=0.5, beta=-2.0, bias=True, nan_group=0),
        RaggedCase("m", SIZES, n=136, k=72, pool=80, dtype="fp16", out="fp32", b_major="n", nan_group=1),
        RaggedCase("m", SIZES, n=136, k=277, pool=80, dtype="e4m3", nan_group=1),
        RaggedCase("m", SIZES, n=136, k=272, pool=80, dtype="e5m2", fast_accum=True, nan_group=1, config=PINGPONG),
    ]
    k = [
        RaggedCase("k", SIZES, m=136, n=72, pool=60, nan_group=1),
        RaggedCase("k", SIZES, m=136, n=264, pool=900, nan_group=3, config=PINGPONG),
        RaggedCase("k", SIZES, m=75, n=136, pool=60, nan_group=0, config=cooperative[64]),
        RaggedCase("k", SIZES, m=136, n=136, pool=60, nan_group=4, config=cooperative[128]),
        RaggedCase("k", SIZES, m=264, n=136, pool=60, nan_group=1, config=cooperative[192]),
        RaggedCase("k", SIZES, m=267, n=136, pool=60, nan_group=3, config=cooperative[256]),
        RaggedCase("k", SIZES, m=136, n=136, pool=60, nan_group=3, config=replace(PINGPONG, tile_k=128)),
        RaggedCase("k", SIZES, m=264, n=136, pool=60, nan_group=1, config=DYNAMIC),
        RaggedCase("k", MANY, m=72, n=64, pool=1, nan_group=7),
        RaggedCase("k", (0, 0), m=72, n=64, pool=5),
        RaggedCase("k", SIZES, m=1, n=1, pool=5, nan_group=1),
        RaggedCase("k", SIZES, m=136, n=72, pool=60, c="fp32", out="fp32", alpha=0.5, beta=2.0, nan_group=1),
        RaggedCase("k", SIZES, m=72, n=136, pool=60, dtype="fp16", out="fp16", out_major="m", bias=True, nan_group=1),
    ]
    return m + k
