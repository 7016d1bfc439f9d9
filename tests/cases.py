"""Every GEMM that is checked against a reference, enumerated once; tests and benchmarks share it.

A `Case` is plain data. `operands(case, device)` allocates its tensors: inputs and the output are views into larger
buffers of NaN, so a kernel that reads or writes outside its operands is noticed.
"""

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Optional, Union

import torch

from quack import emulator, heuristics
from quack.gemm_config import GemmConfig, RasterOrder
from quack.runtime.legality import legality
from quack.runtime.plan import GemmRequest, describe_request
from quack.runtime.spec import GemmSpec, UnsupportedGemm

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}
H200_SMS = 132
GUARD = 256  # NaN elements before and after the memory of every operand; keeps 16-byte alignment for every dtype
NAN_BYTE = 0xFF  # a NaN in every dtype of DTYPES, and not the one that conversions produce
TMA_BYTES = 16


@dataclass(frozen=True)
class Case:
    """out = alpha * A @ B + beta * C + bias.

    batch:  None is 2-D. `a_major` is "k" or "m", `b_major` "k" or "n", `out_major` and `c_major` "n" or "m".
    pitch:  step between rows (or columns) of A and B: "dense", "padded" (multiple of 16 bytes with NaN in between) or
            "odd" (neither step nor address are multiples of 16 bytes). `out_pitch` and `c_pitch` likewise.
    batching: "outer", "interleaved" (batch is the middle dimension in memory) or "expanded" (A has batch stride 0).
    c:      dtype of C or None; in_place: C is out. bias: dtype or None; bias_batched: (L, N).
    config: pinned tile configuration; None leaves the choice to the heuristics.
    """

    group: str
    m: int
    n: int
    k: int
    batch: Optional[int] = None
    a: str = "bf16"
    b: str = "bf16"
    out: str = "bf16"
    a_major: str = "k"
    b_major: str = "k"
    out_major: str = "n"
    c_major: str = "n"
    pitch: str = "dense"
    out_pitch: str = "dense"
    c_pitch: str = "dense"
    batching: str = "outer"
    c: Optional[str] = None
    in_place: bool = False
    alpha: float = 1.0
    beta: float = 1.0
    device_scalars: bool = False
    bias: Optional[str] = None
    bias_batched: bool = False
    fast_accum: bool = False
    config: Optional[GemmConfig] = None

    def __str__(self) -> str:
        shown = [self.group, "x".join(str(e) for e in (self.batch, self.m, self.n, self.k) if e is not None)]
        shown += [f"{self.a}.{self.b}.{self.out}", f"{self.a_major}{self.b_major}{self.out_major}"]
        implied = {"group", "m", "n", "k", "batch", "a", "b", "out", "a_major", "b_major", "out_major"}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in implied and value != field.default:
                shown.append(field.name if value is True else f"{field.name}={value}".replace(" ", "_"))
        return "-".join(shown)

    @property
    def seed(self) -> int:
        return zlib.crc32(str(self).encode())

    @property
    def is_fp8(self) -> bool:
        return DTYPES[self.a].itemsize == 1


# ---- tensors ----------------------------------------------------------------------------------------------------------


class View(NamedTuple):
    """`tensor` lives in the flat `buffer`, whose other elements are NaN."""

    tensor: torch.Tensor
    buffer: torch.Tensor

    def outside(self) -> torch.Tensor:
        """Mask of the elements of `buffer` that do not belong to `tensor`."""
        mask = torch.ones_like(self.buffer, dtype=torch.bool)
        first = (self.tensor.data_ptr() - self.buffer.data_ptr()) // self.buffer.element_size()
        if self.tensor.numel():
            mask.as_strided(self.tensor.shape, self.tensor.stride(), first).fill_(False)
        return mask


@dataclass
class CaseOperands:
    """The tensors of one case. `c` is `out` if the case is in place."""

    A: torch.Tensor
    B: torch.Tensor
    out: View
    C: Optional[torch.Tensor]
    bias: Optional[torch.Tensor]
    alpha: Union[float, torch.Tensor]
    beta: Union[float, torch.Tensor]

    def request(self, case: Case) -> GemmRequest:
        return GemmRequest(
            self.A, self.B, self.out.tensor, self.C, self.bias, self.alpha, self.beta, case.fast_accum, case.config
        )


def poison(tensor: torch.Tensor) -> None:
    """Fill a contiguous tensor with a NaN that no arithmetic produces."""
    tensor.view(torch.uint8).fill_(NAN_BYTE)


def make_view(
    shape: tuple[Optional[int], int, int],
    dtype: torch.dtype,
    unit: int,
    pitch: str,
    batching: str,
    device: str,
    fill: bool = True,
) -> View:
    """A (batch, rows, cols) view, or (rows, cols) if batch is None. unit: 1 if rows are contiguous, 2 if cols are."""
    batch, rows, cols = shape
    length, lines = (cols, rows) if unit == 2 else (rows, cols)
    per_16_bytes = TMA_BYTES // dtype.itemsize
    step, shift = max(length, 1), 0  # as torch strides empty tensors
    if pitch == "padded":
        step = (-(-length // per_16_bytes) + 1) * per_16_bytes
    elif pitch == "odd":
        step, shift = (length | 1) + 2, 1
    count = batch or 1
    line_stride, batch_stride = step, step * lines
    if batching == "interleaved":
        line_stride, batch_stride = step * count, step
    elif batching == "expanded":
        batch_stride = 0
    used = step * max(lines, 1) * (1 if batching == "expanded" else max(count, 1))
    buffer = torch.empty(2 * GUARD + used, dtype=dtype, device=device)
    if fill:
        poison(buffer)
    strides = (line_stride, 1) if unit == 2 else (1, line_stride)
    if batch is None:
        return View(buffer.as_strided((rows, cols), strides, GUARD + shift), buffer)
    return View(buffer.as_strided((batch, rows, cols), (batch_stride, *strides), GUARD + shift), buffer)


def operands(case: Case, device: str = "cuda", fill: bool = True) -> CaseOperands:
    """Tensors of `case` with normal random values; the output holds NaN, or C if the case is in place.

    fill=False leaves all memory uninitialised: for rules about layouts only.
    """
    generator = torch.Generator(device=device).manual_seed(case.seed) if fill else None

    def randomise(tensor: torch.Tensor, scale: float = 1.0) -> None:
        if fill and tensor.numel():
            values = torch.randn(tensor.shape, generator=generator, device=device) * scale
            tensor.copy_(values.to(tensor.dtype))

    def matrix(rows: int, cols: int, dtype: str, cols_unit: bool, pitch: str, batching: str) -> View:
        unit = 2 if cols_unit else 1
        return make_view((case.batch, rows, cols), DTYPES[dtype], unit, pitch, batching, device, fill)

    inner = "outer" if case.batching == "expanded" else case.batching
    a = matrix(case.m, case.k, case.a, case.a_major == "k", case.pitch, case.batching).tensor
    b = matrix(case.k, case.n, case.b, case.b_major == "n", case.pitch, inner).tensor
    out = matrix(case.m, case.n, case.out, case.out_major == "n", case.out_pitch, inner)
    randomise(a[:1] if case.batching == "expanded" and case.batch else a)
    randomise(b)
    c = None
    if case.c is not None:
        c = out.tensor
        if not case.in_place:
            c = matrix(case.m, case.n, case.c, case.c_major == "n", case.c_pitch, inner).tensor
        randomise(c, 4.0)
    bias = None
    if case.bias is not None:
        shape = (case.batch, case.n) if case.bias_batched and case.batch is not None else (case.n,)
        bias = torch.empty(shape, dtype=DTYPES[case.bias], device=device)
        randomise(bias, 4.0)
    alpha: Union[float, torch.Tensor] = case.alpha
    beta: Union[float, torch.Tensor] = case.beta
    if case.device_scalars:
        alpha = torch.tensor([case.alpha], device=device)
        beta = torch.tensor(case.beta, dtype=torch.bfloat16, device=device)
    return CaseOperands(a, b, out, c, bias, alpha, beta)


# ---- legality ---------------------------------------------------------------------------------------------------------


def spec_of(case: Case) -> Optional[GemmSpec]:
    """What `quack` compiles for `case` on an H200, None if there is nothing to compute; `UnsupportedGemm` if illegal."""
    with emulator.use("sm90"):
        shape, base, swapped, _ = describe_request(operands(case, "cpu", fill=False).request(case))
    if 0 in (shape.m, shape.n, shape.batch):
        return None
    base, swapped = replace(base, arch="sm_90a"), replace(swapped, arch="sm_90a")
    if case.config is None:
        return heuristics.choose(base, shape, H200_SMS, swapped)
    chosen = swapped if case.config.swap_ab else base
    spec = replace(chosen, config=case.config.with_tile_k(chosen.operands.a.dtype))
    legality(spec).require()
    return spec


def is_legal(case: Case) -> bool:
    try:
        spec_of(case)
    except UnsupportedGemm:
        return False
    return True


# ---- enumeration ------------------------------------------------------------------------------------------------------


def _major_cases() -> Iterator[Case]:
    for a, b, out, c in itertools.product("km", "kn", "nm", "nm"):
        yield Case("major", 264, 328, 200, a_major=a, b_major=b, out_major=out, c_major=c, c="bf16", beta=0.5)
    for a, b, out in itertools.product("km", "kn", "nm"):
        yield Case("major", 392, 200, 136, a="fp16", b="fp16", out="fp16", a_major=a, b_major=b, out_major=out)


def _shape_cases() -> Iterator[Case]:
    for extent in (128, 256, 512, 1024, 2048):
        yield Case("square", extent, extent, extent)
    ragged = ((136, 264, 72), (1000, 1000, 1000), (2048, 1016, 520), (127, 1024, 256), (1031, 256, 512), (72, 2040, 88))
    for m, n, k in ragged:
        yield Case("ragged", m, n, k)
        yield Case("ragged", m, n, k, a="fp16", b="fp16", out="fp32", b_major="n", out_pitch="padded", pitch="padded")
    yield Case("deep", 64, 64, 16384, out="fp32")
    yield Case("deep", 256, 128, 8192)
    yield Case("wide", 24, 16384, 512)
    yield Case("tall", 16384, 24, 512)


def _tiny_cases() -> Iterator[Case]:
    tiny = (
        (1, 1, 1), (1, 128, 64), (1, 4096, 512), (128, 1, 64), (64, 64, 1), (64, 64, 8), (1, 1, 2048), (3, 5, 7),
        (8, 8, 8), (16, 16, 16), (1, 50257, 256), (2, 2, 0), (64, 128, 0), (0, 64, 64), (64, 0, 64), (0, 0, 0),
    )  # fmt: skip
    for m, n, k in tiny:
        yield Case("tiny", m, n, k)
    for m, n, k in ((1, 1, 1), (1, 96, 64), (96, 1, 64), (64, 64, 1), (1, 64, 1), (64, 1, 8)):
        # Extents of 1 whose stride is no multiple of anything, and a contiguous mode that is only nominal.
        yield Case("tiny", m, n, k, pitch="odd", out_pitch="odd")
        yield Case("tiny", m, n, k, a_major="m", b_major="n", out_major="m", c="bf16", c_major="n", bias="bf16")
    yield Case("tiny", 72, 136, 0, c="bf16", beta=0.5, bias="fp32")
    yield Case("tiny", 72, 135, 0, c="bf16", in_place=True, alpha=3.0, bias="bf16")
    yield Case("tiny", 0, 64, 64, c="bf16", bias="fp32")
    yield Case("tiny", 40, 72, 64, batch=0)
    yield Case("tiny", 40, 72, 0, batch=3, bias="bf16")
    for m, n, k in ((64, 64, 1), (1, 1, 16), (1, 128, 48), (72, 88, 0)):
        yield Case("tiny", m, n, k, a="e4m3", b="e4m3")


def _odd_cases() -> Iterator[Case]:
    for a, b, out in itertools.product("km", "kn", "nm"):
        yield Case("odd", 129, 331, 33, a_major=a, b_major=b, out_major=out)
    for out, b in (("bf16", "k"), ("bf16", "n"), ("fp32", "k")):
        yield Case("odd", 64, 50257, 256, out=out, b_major=b)
    yield Case("odd", 50257, 64, 256, a_major="m")
    yield Case("odd", 129, 1001, 257, out="e4m3", out_major="m")
    yield Case("odd", 129, 1001, 257, a="fp16", b="fp16", out="fp16", c="fp32", beta=-0.5, bias="fp16")
    yield Case("odd", 257, 515, 96, c="bf16", in_place=True, beta=0.5)
    # C and out differ in whether TMA can address them.
    yield Case("odd", 136, 264, 64, out_pitch="odd", c="bf16")
    yield Case("odd", 136, 264, 64, c_pitch="odd", c="bf16", c_major="m")
    yield Case("odd", 136, 264, 64, c_pitch="odd", out_pitch="odd", c="fp32", bias="bf16", alpha=2.0)
    for pitch in ("padded", "odd"):
        yield Case("odd", 200, 328, 136, pitch=pitch, out_pitch=pitch)
        yield Case("odd", 200, 328, 136, pitch=pitch, out_pitch=pitch, a_major="m", b_major="n", out_major="m")
    yield Case("odd", 200, 328, 145, a="e4m3", b="e5m2", pitch="odd", out_pitch="odd")
    yield Case("odd", 129, 333, 65, batch=3, c="bf16", bias="fp32", bias_batched=True)


def _batch_cases() -> Iterator[Case]:
    for batch, batching in itertools.product((1, 3, 16), ("outer", "interleaved", "expanded")):
        yield Case("batch", 200, 264, 128, batch=batch, batching=batching)
    for a, b, out in itertools.product("km", "kn", "nm"):
        yield Case("batch", 136, 200, 72, batch=4, a_major=a, b_major=b, out_major=out, batching="interleaved")
    yield Case("batch", 128, 256, 64, batch=300)
    yield Case("batch", 136, 200, 72, batch=5, pitch="padded", out_pitch="padded")
    yield Case("batch", 136, 200, 72, batch=5, pitch="odd", out_pitch="odd", batching="interleaved")
    yield Case("batch", 137, 200, 71, batch=5, batching="expanded", a_major="m")
    yield Case("batch", 136, 200, 72, batch=5, c="fp32", c_major="m", beta=2.0, bias="bf16", bias_batched=True)
    yield Case("batch", 136, 200, 72, batch=5, bias="fp32")
    yield Case("batch", 16, 200, 72, batch=5, bias="fp32", bias_batched=True, c="bf16", in_place=True)
    yield Case("batch", 192, 256, 256, batch=4, a="e4m3", b="e4m3", batching="interleaved")


def _dtype_cases() -> Iterator[Case]:
    for ab, out, major in itertools.product(("bf16", "fp16"), ("bf16", "fp16", "fp32", "e4m3"), "nm"):
        yield Case("dtype", 272, 400, 256, a=ab, b=ab, out=out, out_major=major)
    yield Case("dtype", 272, 400, 256, out="e5m2")
    for (a, b), out, fast in itertools.product(
        itertools.product(("e4m3", "e5m2"), repeat=2), ("bf16", "fp16", "fp32", "e4m3"), (False, True)
    ):
        yield Case("fp8", 272, 400, 512, a=a, b=b, out=out, fast_accum=fast)
    for fast in (False, True):
        yield Case("fp8", 512, 768, 4096, a="e4m3", b="e4m3", out="fp32", fast_accum=fast)
        yield Case("fp8", 1024, 1024, 2048, a="e4m3", b="e4m3", fast_accum=fast, c="bf16", bias="fp32", alpha=0.5)
        yield Case("fp8", 16, 1024, 1024, a="e5m2", b="e4m3", fast_accum=fast, out_major="m")
    for k in (64, 128, 256, 384, 640):  # 0 to 5 partial sums: every exit of the promotion loop
        yield Case("fp8", 136, 272, k, a="e4m3", b="e4m3", out="fp32")


def _epilogue_cases() -> Iterator[Case]:
    base = Case("epilogue", 264, 392, 192)
    for c, out in itertools.product(("bf16", "fp16", "fp32"), repeat=2):
        yield replace(base, c=c, out=out, beta=0.5)
    yield replace(base, c="e4m3", beta=0.25)
    for device_scalars in (False, True):
        yield replace(base, alpha=-0.75, device_scalars=device_scalars)
        yield replace(base, c="bf16", beta=-1.5, device_scalars=device_scalars)
        yield replace(base, c="bf16", in_place=True, alpha=0.5, beta=0.25, device_scalars=device_scalars)
    yield replace(base, alpha=0.0, c="fp32", out="fp32")
    yield replace(base, c="bf16", beta=0.0)
    yield replace(base, c="bf16", beta=-1.0, out="fp32", c_major="m")
    for bias, out in itertools.product(("bf16", "fp16", "fp32"), ("bf16", "fp32")):
        yield replace(base, bias=bias, out=out)
    yield replace(base, m=16, bias="fp32", c="bf16", alpha=2.0, beta=0.5)  # computed as D^T: the bias becomes a column
    yield replace(base, m=3, n=1000, bias="bf16")
    yield replace(base, c="bf16", in_place=True, out_pitch="padded", bias="bf16")
    yield replace(base, c="fp32", out="fp32", in_place=True, out_major="m")
    yield replace(base, c="bf16", bias="bf16", alpha=1.5, beta=0.5, device_scalars=True, out="e4m3")


def _config_cases() -> Iterator[Case]:
    tiles_n = (16, 32, 48, 64, 96, 128, 160, 192, 208, 224, 256)
    for tile_m, tile_n, pingpong in itertools.product((64, 128, 192, 256), tiles_n, (False, True)):
        # Alternate what else the tile has to fit: nothing, or C and a bias.
        extra = {"c": "bf16", "bias": "fp32", "beta": 0.5} if (tile_n // 16 + pingpong) % 2 else {}
        config = GemmConfig(tile_m, tile_n, pingpong=pingpong, cluster_m=1)
        yield Case("tile", 520, 776, 320, config=config, **extra)
    shapes = ((520, 1288, 320), (64, 48, 64))  # many clusters; less than one
    for (m, n, k), cluster, pingpong in itertools.product(
        shapes, ((1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4)), (False, True)
    ):
        config = GemmConfig(128, 128, pingpong=pingpong, cluster_m=cluster[0], cluster_n=cluster[1])
        yield Case("cluster", m, n, k, config=config)
    for a, b, cluster in itertools.product("km", "kn", ((2, 1), (1, 2), (2, 2))):
        config = GemmConfig(128, 256, cluster_m=cluster[0], cluster_n=cluster[1])
        yield Case("cluster", 776, 1032, 328, a_major=a, b_major=b, config=config)
    schedules = ({}, {"is_dynamic_persistent": True}, {"is_persistent": False})
    for schedule, pingpong, cluster_m in itertools.product(schedules, (False, True), (1, 2)):
        config = GemmConfig(128, 64, pingpong=pingpong, cluster_m=cluster_m, **schedule)
        yield Case("schedule", 2000, 2040, 256, config=config)  # several waves
        yield Case("schedule", 136, 200, 192, batch=7, c="bf16", bias="bf16", config=config)
    for raster, swizzle in itertools.product(RasterOrder, (1, 3, 8)):
        config = GemmConfig(64, 64, pingpong=True, cluster_m=1, raster=raster, max_swizzle_size=swizzle)
        yield Case("raster", 1100, 1304, 128, config=config)
    for tile_k, pingpong, (tile_m, tile_n) in itertools.product(
        (64, 128), (False, True), ((64, 128), (128, 128), (128, 256), (256, 128))
    ):
        yield Case("tile_k", 520, 776, 328, config=GemmConfig(tile_m, tile_n, tile_k, pingpong, cluster_m=1))
    for pingpong, cluster_m, odd in itertools.product((False, True), (1, 2), (0, 1)):
        config = GemmConfig(128, 64, pingpong=pingpong, cluster_m=cluster_m, swap_ab=True)
        yield Case("swap", 40, 1032 + odd, 256, c="bf16", bias="fp32", alpha=0.5, config=config)
    for tile, pingpong, fast in itertools.product(
        ((64, 64), (64, 256), (128, 64), (128, 128), (128, 192), (128, 256), (256, 128), (192, 64)),
        (False, True),
        (False, True),
    ):
        config = GemmConfig(*tile, pingpong=pingpong, cluster_m=1)
        yield Case("tile", 392, 520, 896, a="e4m3", b="e4m3", fast_accum=fast, config=config)


@functools.cache
def gemm_cases() -> tuple[Case, ...]:
    """All cases. Illegal combinations of pinned configurations are left out; everything else must be legal."""
    cases = [
        case
        for source in (
            _major_cases, _shape_cases, _tiny_cases, _odd_cases, _batch_cases, _dtype_cases, _epilogue_cases,
            _config_cases,
        )
        for case in source()
        if case.config is None or is_legal(case)
    ]  # fmt: skip
    assert len({str(case) for case in cases}) == len(cases), "two cases with one name"
    return tuple(cases)
