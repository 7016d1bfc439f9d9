"""Block-scaled GEMMs of ragged problems (`cu_seqlens_m`, `cu_seqlens_k`), checked group by group against a float64 product.

One group of each case may have scales that are NaN: it must poison its own output and nobody else's. What blocks of scales are padded
with is random, and blocks that no group has are NaN.
"""

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Optional

import torch

import quack
from quack import SplitKMode
from quack.gemm_config import GemmConfig
from tests.cases import DTYPES, make_view, poison
from tests.reference import SIGNIFICANT_BITS
from tests.scaled_cases import E8M0, FORMATS, FOUR_BITS, ONE, PAIR, UNMIXED

NAN_SCALE = {E8M0: 0xFF, torch.float8_e4m3fn: 0x7F}


@dataclass(frozen=True)
class ScaledRaggedCase:
    """sizes: rows (ragged "m") or k (ragged "k") of each group; m, n, k: the extents that all groups share.

    nan_group: index of the group whose scales of A are NaN. exact: A_scale has the blocks of these groups and no more.
    order: a permutation of the groups, as `batch_idx_permute`. pool: groups pick their rows by index, of so many and one whose scales
    are NaN, which nan_group picks for all of its own.
    """

    name: str
    ragged: str
    sizes: tuple[int, ...]
    m: int = 0
    n: int = 136
    k: int = 0
    config: Optional[GemmConfig] = None
    out: str = "bf16"
    c: Optional[str] = None
    bias: bool = False
    alpha: float = 1.0
    beta: float = 1.0
    nan_group: Optional[int] = None
    exact: bool = False
    order: Optional[tuple[int, ...]] = None
    pool: Optional[int] = None
    splits: Optional[int] = 1
    mode: SplitKMode = SplitKMode.SERIAL
    dynamic: bool = False

    def __str__(self) -> str:
        extras = [
            str(v) for v in (self.c, self.order and "permuted", self.mode.value if self.splits != 1 else None) if v
        ]
        sizes = f"{len(self.sizes)}groups{sum(self.sizes)}"
        return " ".join(
            [self.name, self.ragged, sizes, f"{self.m}x{self.n}x{self.k}", str(self.config), self.out, *extras]
        )

    @property
    def offsets(self) -> list[int]:
        return [0, *itertools.accumulate(self.sizes)]


class ScaledRaggedOperands:
    """Of a case, on a device; `exact` and `size` of every group as of `reference.Reference`."""

    def __init__(self, case: ScaledRaggedCase, device: str = "cpu"):
        self.case, self.device = case, device
        self.generator = torch.Generator(device=device).manual_seed(zlib.crc32(str(case).encode()))
        a, b, _, _ = FORMATS[case.name]
        groups, total = len(case.sizes), sum(case.sizes)
        self.offsets = torch.tensor(case.offsets, dtype=torch.int32, device=device)
        self.order = None if case.order is None else torch.tensor(case.order, dtype=torch.int32, device=device)
        if case.ragged == "m":
            lines = total if case.pool is None else case.pool + 1
            a_shape, b_shape, d_shape = (lines, case.k), (groups, case.n, case.k), (total, case.n)
        else:
            a_shape, b_shape, d_shape = (case.m, total), (case.n, total), (groups, case.m, case.n)
        self.A, a_values, a_factors, a_scales = self.operand(a, a_shape)
        self.B, b_values, b_factors, b_scales = self.operand(b, b_shape)
        self.B = self.B.mT
        self.indices = None
        if case.pool is not None:
            self.indices = torch.randint(0, case.pool, (total,), generator=self.generator, device=device).int()
            a_scales[case.pool :].fill_(NAN_SCALE[self.scale_dtype])
            if case.nan_group is not None:
                self.indices[slice(*case.offsets[case.nan_group : case.nan_group + 2])] = case.pool
        elif case.nan_group is not None:
            _, _, _, block = FORMATS[case.name]
            unit = 1 if case.ragged == "m" else block
            first, last = (offset // unit for offset in case.offsets[case.nan_group : case.nan_group + 2])
            where = a_scales[first:last] if case.ragged == "m" else a_scales[:, first:last]
            where.fill_(NAN_SCALE[self.scale_dtype])
        ragged = {f"cu_seqlens_{case.ragged}": self.offsets}
        self.A_scale = self.blocks(a_scales, **(ragged if case.pool is None else {}))
        self.B_scale = self.blocks(b_scales, **(ragged if case.ragged == "k" else {}))
        self.a, self.b = a_values * a_factors, b_values * b_factors
        if self.indices is not None:
            self.a = self.a[self.indices.long()]
        self.out = make_view(
            d_shape if len(d_shape) == 3 else (None, *d_shape), DTYPES[case.out], 2, "padded", "outer", device
        )
        self.C = self.bias = None
        if case.c is not None:
            self.C = torch.randn(d_shape, generator=self.generator, device=device).to(DTYPES[case.c])
        if case.bias:
            self.bias = torch.randn(groups, case.n, generator=self.generator, device=device).bfloat16()

    @property
    def scale_dtype(self) -> torch.dtype:
        return FORMATS[self.case.name][2]

    def codes(self, *shape: int, low: int = 0, high: int = 256) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self.generator, device=self.device, dtype=torch.uint8)

    def some_scales(self, *shape: int) -> torch.Tensor:
        low, high = (120, 133) if self.scale_dtype is E8M0 else (0x20, 0x50)
        return self.codes(*shape, low=low, high=high)

    def operand(self, dtype: Optional[str], shape: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
        """(as a call takes it, its elements, what each is multiplied by, its scales in bytes); before anything is NaN."""
        _, _, scale_dtype, block = FORMATS[self.case.name]
        if dtype is None:
            tensor = self.codes(*shape[:-1], shape[-1] // 2)
            values = FOUR_BITS.to(self.device)[torch.stack((tensor & 15, tensor >> 4), -1).flatten(-2).long()]
            tensor = tensor.view(torch.float4_e2m1fn_x2)
        else:
            tensor = torch.randn(shape, generator=self.generator, device=self.device).to(DTYPES[dtype])
            values = tensor.double()
        scales = self.some_scales(*shape[:-1], shape[-1] // block)
        factors = scales.view(scale_dtype).float().double().repeat_interleave(block, -1)
        return tensor, values, factors, scales

    def blocks(self, scales: torch.Tensor, **offsets: torch.Tensor) -> torch.Tensor:
        """Blocked; padding is random, blocks that nobody needs are NaN."""
        blocked = quack.blocked_scales(scales.view(self.scale_dtype), **offsets).view(torch.uint8).clone()
        used = quack.blocked_scales(torch.full_like(scales, 1).view(self.scale_dtype), **offsets).view(torch.uint8)
        is_needed = (used == 1).flatten(-2).any(-1)
        blocked[is_needed] = torch.where(
            used[is_needed] == 1, blocked[is_needed], self.some_scales(*used[is_needed].shape)
        )
        blocked[~is_needed] = NAN_SCALE[self.scale_dtype]
        if self.case.exact and offsets:
            blocked = blocked[is_needed].contiguous()
        return blocked.view(self.scale_dtype)

    def run(self, **options: Any) -> None:
        case = self.case
        poison(self.out.buffer)
        quack.gemm_blockscaled(
            self.A, self.B, self.A_scale, self.B_scale, self.out.tensor, alpha=case.alpha, C=self.C, beta=case.beta,
            bias=self.bias, config=case.config, dynamic_scheduler=case.dynamic, split_k=case.splits, split_k_mode=case.mode,
            batch_idx_permute=self.order, A_idx=self.indices, **{f"cu_seqlens_{case.ragged}": self.offsets}, **options,
        )  # fmt: skip

    def group(self, g: int) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """(A, B, where in C and out) of one group."""
        first, last = self.case.offsets[g : g + 2]
        if self.case.ragged == "m":
            return self.a[first:last], self.b[g], slice(first, last)
        return self.a[:, first:last], self.b[:, first:last], g

    def verify(self) -> None:
        """As `ScaledOperands.verify`, group by group."""
        case = self.case
        for g, size in enumerate(case.sizes):
            a, b, where = self.group(g)
            got = self.out.tensor[where].double()
            if g == case.nan_group and size:
                assert got.isnan().all(), f"the scales of group {g} are NaN, but its output is not"
                continue
            exact, magnitude = case.alpha * (a @ b.mT), abs(case.alpha) * (a.square() @ b.square().mT).sqrt()
            if self.C is not None:
                exact = exact + case.beta * self.C[where].double()
                magnitude = magnitude + (case.beta * self.C[where].double()).abs()
            if self.bias is not None:
                exact, magnitude = exact + self.bias[g].double(), magnitude + self.bias[g].double().abs()
            unit = 2.0 ** -SIGNIFICANT_BITS[self.out.tensor.dtype]
            bound = unit * exact.abs() + (1e-5 + a.shape[1] * 2.0**-23) * magnitude
            assert torch.isfinite(got).all(), f"group {g}"
            assert not ((got - exact).abs() > bound).any(), f"group {g}: {(got - exact).abs().max().item()}"
        written = self.out.buffer.view(torch.uint8).view(self.out.buffer.numel(), -1) != 0xFF
        assert not (written.any(1) & self.out.outside()).any(), "elements outside the output were written"


SIZES = (100, 37, 0, 260, 5)
MANY = (13,) * 15 + (0,) * 18 + (3, 150)


def rows() -> Iterator[ScaledRaggedCase]:
    """cu_seqlens_m: every format, tiles of one CTA and of two, clusters, schedules, epilogues."""
    formats = itertools.cycle(UNMIXED)
    full = {"c": "bf16", "bias": True, "alpha": 0.25, "beta": -2.0}
    configs = [ONE, PAIR, replace(PAIR, tile_n=256, is_dynamic_persistent=True), replace(ONE, tile_n=192, cluster_n=2)]
    for config in configs:
        for _ in range(2):
            yield ScaledRaggedCase(next(formats), "m", SIZES, n=200, k=544, nan_group=3, config=config)
    yield ScaledRaggedCase("nvfp4", "m", MANY, n=72, k=544, nan_group=7, config=replace(ONE, cluster_m=2))
    two = replace(PAIR, cluster_m=4, fallback_cluster=(2, 1))  # clusters of two shapes
    yield ScaledRaggedCase("mxfp8", "m", (300, 37, 600), n=136, k=160, nan_group=1, config=two)
    yield ScaledRaggedCase("mxfp8", "m", MANY, n=72, k=288, nan_group=0, config=PAIR, exact=True)
    yield ScaledRaggedCase("mxfp4", "m", SIZES, n=136, k=96, nan_group=1, config=ONE, exact=True, **full)
    yield ScaledRaggedCase(
        "nvfp4", "m", SIZES, n=136, k=544, nan_group=0, out="fp32", order=(3, 0, 4, 1, 2), config=PAIR
    )
    yield ScaledRaggedCase("mxfp8 mixed", "m", (0, 0, 17), n=72, k=64)
    yield ScaledRaggedCase("nvfp4", "m", (0, 0, 0), n=72, k=64)
    yield ScaledRaggedCase("mxfp4", "m", SIZES, n=264, k=544, dynamic=True, **full)
    yield ScaledRaggedCase("mxfp8 x mxfp4", "m", SIZES, n=136, k=640, nan_group=3, config=PAIR)
    yield ScaledRaggedCase("mxfp4 x mxfp8", "m", SIZES, n=136, k=384, nan_group=0, config=replace(ONE, cluster_n=2))
    for mode in (SplitKMode.SERIAL, SplitKMode.PARALLEL, SplitKMode.SEPARATE):
        yield ScaledRaggedCase("nvfp4", "m", SIZES, n=136, k=800, nan_group=3, splits=3, mode=mode, config=ONE)


def sums() -> Iterator[ScaledRaggedCase]:
    """cu_seqlens_k: groups end after any instruction of a k tile, and are empty; the same tiles."""
    formats = itertools.cycle(UNMIXED)
    full = {"c": "bf16", "bias": True, "alpha": 0.25, "beta": -2.0}
    sizes = {name: tuple(units * (32 if "fp8" in name else 64) for units in (5, 1, 0, 9, 4)) for name in FORMATS}
    configs = [ONE, PAIR, replace(PAIR, tile_n=256, is_dynamic_persistent=True), replace(ONE, tile_n=192, cluster_n=2)]
    configs += [replace(PAIR, tile_n=192, cluster_m=4), replace(ONE, tile_n=256, cluster_m=2), replace(ONE, tile_n=64)]
    for i, config in enumerate(configs):
        for _ in range(2 if i < 4 else 1):
            name = next(formats)
            yield ScaledRaggedCase(name, "k", sizes[name], m=200, n=264, nan_group=(1, 3)[i % 2], config=config)
    yield ScaledRaggedCase(
        "nvfp4", "k", (64,) * 11 + (0,) * 22 + (64, 128), m=72, n=72, nan_group=7, config=ONE, exact=True
    )
    yield ScaledRaggedCase(
        "mxfp8", "k", (32,) * 11 + (0,) * 22 + (32, 96), m=136, n=72, nan_group=0, config=PAIR, exact=True
    )
    yield ScaledRaggedCase("mxfp4", "k", sizes["mxfp4"], m=136, n=136, nan_group=1, config=ONE, exact=True, **full)
    order = (3, 0, 4, 1, 2)
    yield ScaledRaggedCase(
        "nvfp4", "k", sizes["nvfp4"], m=136, n=136, nan_group=0, out="fp32", order=order, config=PAIR
    )
    two = replace(ONE, tile_n=192, cluster_m=2, cluster_n=2, fallback_cluster=(1, 1))
    yield ScaledRaggedCase("nvfp4", "k", (192, 0, 64, 320), m=520, n=264, nan_group=2, config=two)
    yield ScaledRaggedCase("mxfp4", "k", sizes["mxfp4"], m=264, n=136, dynamic=True, **full)
    yield ScaledRaggedCase("mxfp8 x mxfp4", "k", (256, 128, 0, 384), m=136, n=136, nan_group=1, config=PAIR)
    for mode in (SplitKMode.SERIAL, SplitKMode.PARALLEL, SplitKMode.SEPARATE):
        yield ScaledRaggedCase(
            "mxfp8", "k", (160, 64, 0, 352), m=136, n=136, nan_group=3, splits=3, mode=mode, config=ONE
        )


def gathers() -> Iterator[ScaledRaggedCase]:
    """A_idx with cu_seqlens_m: rows of other tokens' blocks, tails of rows and of K, tiles of one CTA and of two."""
    full = {"c": "bf16", "bias": True, "alpha": 0.25, "beta": -2.0}
    one, pair = (replace(config, use_tma_gather=True) for config in (ONE, PAIR))
    configs = [one, pair, replace(pair, tile_n=256, is_dynamic_persistent=True), replace(one, tile_n=192, cluster_m=2)]
    for i, name in enumerate(UNMIXED):
        for config in (configs[i], configs[i - 2]):
            yield ScaledRaggedCase(name, "m", SIZES, n=200, k=544, nan_group=3, pool=300, config=config)
    yield ScaledRaggedCase("nvfp4", "m", MANY, n=72, k=544, nan_group=7, pool=1, config=replace(one, cluster_m=2))
    yield ScaledRaggedCase("mxfp8", "m", MANY, n=72, k=288, nan_group=0, pool=130, config=pair)
    yield ScaledRaggedCase("nvfp4", "m", SIZES, n=136, k=272, pool=5, **full)
    yield ScaledRaggedCase("mxfp8 x mxfp4", "m", SIZES, n=136, k=640, nan_group=1, pool=70, config=one)
    yield ScaledRaggedCase("mxfp4", "m", (0, 0, 0), n=72, k=64, pool=5)
    order = (3, 0, 4, 1, 2)
    yield ScaledRaggedCase(
        "mxfp4", "m", SIZES, n=136, k=544, nan_group=4, out="fp32", order=order, pool=70, config=pair
    )
    for mode in (SplitKMode.SERIAL, SplitKMode.PARALLEL, SplitKMode.SEPARATE):
        yield ScaledRaggedCase(
            "mxfp8", "m", SIZES, n=136, k=544, nan_group=3, pool=300, splits=3, mode=mode, config=one
        )
