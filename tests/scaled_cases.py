"""Block-scaled GEMMs that are checked against a float64 product of rescaled operands.

The reference multiplies with the scales as they were drawn, row by row, so it knows nothing of blocks of scales. Whatever those are
padded with is random.
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
from tests.cases import DTYPES, make_view
from tests.reference import SIGNIFICANT_BITS

E8M0, E4M3 = torch.float8_e8m0fnu, torch.float8_e4m3fn
FOUR_BITS = torch.tensor([s * v for s in (1, -1) for v in (0, 0.5, 1, 1.5, 2, 3, 4, 6)], dtype=torch.float64)
# By name: dtypes of A and B (None: fp4), of the scales, elements of K for each.
FORMATS = {
    "mxfp8": ("e4m3", "e4m3", E8M0, 32),
    "mxfp8 mixed": ("e5m2", "e4m3", E8M0, 32),
    "mxfp4": (None, None, E8M0, 32),
    "nvfp4": (None, None, E4M3, 16),
}
UNMIXED = tuple(FORMATS)
FORMATS |= {
    "mxfp8 x mxfp4": ("e4m3", None, E8M0, 32),
    "mxfp4 x mxfp8": (None, "e5m2", E8M0, 32),
}  # K is a multiple of 128
ONE = GemmConfig(128, 128, cluster_m=1, device_capacity=10)
PAIR = GemmConfig(256, 128, cluster_m=2, device_capacity=10)


@dataclass(frozen=True)
class ScaledCase:
    """out = alpha * (A * A_scale) @ (B * B_scale) + beta * C + bias. odd: rows of A do not begin at multiples of 16 bytes."""

    name: str
    m: int = 300
    n: int = 392
    k: int = 544
    batch: Optional[int] = None
    config: Optional[GemmConfig] = None
    out: str = "bf16"
    c: Optional[str] = None
    bias: Optional[str] = None
    alpha: float = 1.0
    beta: float = 1.0
    out_major: str = "n"
    odd: bool = False
    splits: Optional[int] = 1
    mode: SplitKMode = SplitKMode.SERIAL
    dynamic: bool = False

    def __str__(self) -> str:
        extras = [str(v) for v in (self.batch, self.c, self.bias, self.mode.value if self.splits != 1 else None) if v]
        return " ".join([self.name, f"{self.m}x{self.n}x{self.k}", str(self.config), self.out, *extras])


class ScaledOperands:
    """Of a case, on a device; `exact` and `size` as of `reference.Reference`."""

    def __init__(self, case: ScaledCase, device: str):
        self.case, self.device = case, device
        self.generator = torch.Generator(device=device).manual_seed(zlib.crc32(str(case).encode()))
        a, b, _, _ = FORMATS[case.name]
        self.A, a_values, self.A_scale = self.operand(a, case.m, case.odd)
        self.B, b_values, self.B_scale = self.operand(b, case.n, False)
        self.B = self.B.mT
        self.out = make_view(
            (case.batch, case.m, case.n), DTYPES[case.out], 2 if case.out_major == "n" else 1, "padded", "outer", device
        )
        self.exact = case.alpha * (a_values @ b_values.mT)
        self.size = abs(case.alpha) * (a_values.square() @ b_values.square().mT).sqrt()
        self.C = self.bias = None
        if case.c is not None:
            self.C = self.random(*self.exact.shape).to(DTYPES[case.c])
            self.exact = self.exact + case.beta * self.C.double()
            self.size = self.size + abs(case.beta) * self.C.double().abs()
        if case.bias is not None:
            self.bias = self.random(case.n).to(DTYPES[case.bias])
            self.exact = self.exact + self.bias.double()
            self.size = self.size + self.bias.double().abs()

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def codes(self, *shape: int, low: int = 0, high: int = 256) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self.generator, device=self.device, dtype=torch.uint8)

    def operand(self, dtype: Optional[str], rows: int, odd: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(as a call takes it, rescaled in float64, its scales in blocks)."""
        _, _, scale_dtype, block = FORMATS[self.case.name]
        k, batch = self.case.k, () if self.case.batch is None else (self.case.batch,)
        width = k if dtype is not None else k // 2
        pitch = width + 8 if odd else width
        if dtype is None:
            tensor = self.codes(*batch, rows, pitch)[..., :width]
            values = FOUR_BITS.to(self.device)[torch.stack((tensor & 15, tensor >> 4), -1).flatten(-2).long()]
            tensor = tensor.view(torch.float4_e2m1fn_x2)
        else:
            tensor = self.random(*batch, rows, pitch).to(DTYPES[dtype])[..., :width]
            values = tensor.double()
        count = k // block
        rows_padded, padded = -(-rows // 128) * 128, -(-count // 4) * 4
        if scale_dtype is E8M0:
            scales = self.codes(*batch, rows_padded, padded, low=120, high=133)
        else:
            scales = self.codes(*batch, rows_padded, padded, low=0x20, high=0x50)
        scales = scales.view(scale_dtype)
        factors = scales[..., :rows, :count].float().double()
        return tensor, values * factors.repeat_interleave(block, -1), quack.blocked_scales(scales)

    def run(self, **options: Any) -> None:
        case = self.case
        quack.gemm_blockscaled(
            self.A, self.B, self.A_scale, self.B_scale, self.out.tensor, alpha=case.alpha, C=self.C, beta=case.beta,
            bias=self.bias, config=case.config, dynamic_scheduler=case.dynamic, split_k=case.splits, split_k_mode=case.mode,
            **options,
        )  # fmt: skip

    def verify(self) -> None:
        """Sums are fp32: K additions lose at most 2^-23 of the size of the sum each; see `reference`."""
        out = self.out.tensor.double()
        unit = 2.0 ** -SIGNIFICANT_BITS[self.out.tensor.dtype]
        bound = unit * self.exact.abs() + (1e-5 + self.case.k * 2.0**-23) * self.size
        assert torch.isfinite(out).all()
        excess = ((out - self.exact).abs() - bound).max().item()
        assert excess <= 0, (
            f"{excess} over the bound, {((out - self.exact).abs() / self.size).max().item():.1e} of the size"
        )
        written = self.out.buffer.view(torch.uint8).view(self.out.buffer.numel(), -1) != 0xFF
        assert not (written.any(1) & self.out.outside()).any(), "elements outside the output were written"


def tiles() -> Iterator[ScaledCase]:
    """Every format with every kind of tile: a CTA's or a pair's, of whole blocks of columns or not, one in tensor memory or two."""
    formats = list(UNMIXED)
    configs = [
        ONE,
        PAIR,
        replace(ONE, tile_n=64),
        replace(PAIR, tile_n=192, cluster_n=2),
        replace(ONE, tile_n=256, cluster_m=2, cluster_n=2),
        replace(PAIR, tile_n=64, is_dynamic_persistent=True),
        replace(ONE, tile_n=192, cluster_m=2),
        replace(PAIR, tile_n=256, cluster_m=4),
        replace(ONE, tile_n=256, is_persistent=False),
    ]
    for i, config in enumerate(configs):
        for j in range(len(formats)):
            yield ScaledCase(formats[(i + j) % len(formats)], config=config)


def calls() -> Iterator[ScaledCase]:
    """Extents, epilogues, batches, schedules and copies."""
    full = {"c": "bf16", "bias": "bf16", "alpha": 0.25, "beta": -2.0}
    yield ScaledCase("nvfp4", 130, 72, 1056, batch=3, config=PAIR, **full)
    yield ScaledCase("mxfp8 mixed", 1, 8, 32, config=ONE)
    yield ScaledCase("nvfp4", 129, 136, 16 * 33, config=replace(PAIR, swap_ab=True), out="fp32", c="fp32")
    yield ScaledCase("mxfp4", 257, 200, 96, odd=True, config=replace(ONE, cluster_m=2))
    yield ScaledCase("mxfp8", 200, 264, 288, batch=2, out_major="m", config=replace(ONE, tile_n=192), **full)
    yield ScaledCase("nvfp4", 300, 264, 1024)
    yield ScaledCase("mxfp4", 7, 520, 2080, dynamic=True, splits=None)
    yield ScaledCase("mxfp8", 72, 392, 544, out="fp16", alpha=2.0**-8, dynamic=True)


def splits() -> Iterator[ScaledCase]:
    for i, mode in enumerate(SplitKMode):
        parts = None if mode is SplitKMode.STREAM else 3
        for j, config in enumerate((ONE, PAIR)):
            name = UNMIXED[(2 * i + j) % len(UNMIXED)]
            yield ScaledCase(name, 130, 600, 1088, splits=parts, mode=mode, config=config, c="bf16", bias="bf16")


def mixed() -> Iterator[ScaledCase]:
    """fp4 beside fp8, which lies in shared memory with gaps."""
    names = itertools.cycle(("mxfp8 x mxfp4", "mxfp4 x mxfp8"))
    full = {"c": "bf16", "bias": "bf16", "alpha": 0.25, "beta": -2.0}
    configs = [PAIR, ONE, replace(ONE, tile_n=192, cluster_m=2, cluster_n=2), replace(PAIR, tile_n=256, cluster_m=4)]
    configs += [replace(PAIR, tile_n=64, is_dynamic_persistent=True), replace(ONE, tile_n=256, is_persistent=False)]
    for config in (*configs, *configs[1::-1]):
        yield ScaledCase(next(names), k=640, config=config)
    yield ScaledCase("mxfp8 x mxfp4", 129, 136, 384, config=replace(PAIR, swap_ab=True), out="fp32", c="fp32")
    yield ScaledCase("mxfp4 x mxfp8", 130, 72, 1152, batch=3, **full)
    yield ScaledCase("mxfp8 x mxfp4", 7, 520, 2048, dynamic=True, splits=None)
    yield ScaledCase("mxfp8 x mxfp4", 130, 264, 1152, splits=None, mode=SplitKMode.STREAM, config=PAIR, **full)
