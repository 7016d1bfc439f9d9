"""Reductions, norms and stochastic rounding in the epilogue, checked against float64, for emulator and GPU.

Outputs and partial results are poisoned with NaN, so whatever is not written, or read without being written, shows.
"""

import contextlib
import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Optional

import torch

import quack
import quack.runtime.epilogue as host_epilogue
from quack.activation_ref import reference as activation_reference
from quack.gemm_config import GemmConfig
from quack.gemm_operands import activation_of
from quack.gemm_reduction import gemm_reduce
from quack.rms_final_reduce import rms_final_reduce, rms_final_reduce_ref
from quack.rounding import RoundingMode
from quack.runtime.row_sum import sum_rows
from tests.cases import DTYPES, Case, View, make_view, poison
from tests.philox import round_stochastically
from tests.reference import Reference, accumulation_error, check

WIDE = GemmConfig(128, 192, pingpong=True, cluster_m=1)  # ping-pong, two slabs a warpgroup
TURNS = GemmConfig(128, 128, pingpong=True, cluster_m=1)  # the same; log-sum-exp and rounding need registers
TALL = GemmConfig(256, 128, cluster_m=1)  # cooperative, two slabs a warpgroup, interleaved
THREE = GemmConfig(192, 64, cluster_m=1)  # three warpgroups share a tile
FLAT = GemmConfig(128, 128, cluster_m=1)
SMALL = GemmConfig(64, 64, pingpong=True, cluster_m=1)
NARROW = GemmConfig(64, 16, pingpong=True, cluster_m=1)
SWAPPED = GemmConfig(128, 64, pingpong=True, cluster_m=1, swap_ab=True)
DYNAMIC = GemmConfig(128, 128, pingpong=True, is_dynamic_persistent=True)
SIZES = (100, 37, 0, 200, 5)


@dataclass(frozen=True)
class NormCase:
    """act(rows * (A @ B) + beta * C + bias) * columns, and reductions of that before `columns`; what is None is not there.

    kind:  "reduce" (`gemm_reduce`), "rms" (`gemm_rms`) or "norm_act" (`gemm_norm_act`).
    sizes: rows of each group (`cu_seqlens_m`), k of each (`cu_seqlens_k`) if ragged is "k"; `gathered`: A_idx.
    odd:   neither pitch nor address of out are aligned.
    """

    kind: str
    m: int
    n: int
    k: int
    batch: Optional[int] = None
    sizes: Optional[tuple[int, ...]] = None
    ragged: str = "m"
    gathered: bool = False
    dtype: str = "bf16"
    out: str = "bf16"
    c: Optional[str] = None
    bias: bool = False
    row: Optional[str] = None
    col: Optional[str] = None
    columns: Optional[str] = None
    rows: Optional[str] = None
    activation: Optional[str] = None
    store_preact: bool = False
    out_major: str = "n"
    odd: bool = False
    config: Optional[GemmConfig] = None

    def __str__(self) -> str:
        shown = [self.kind, "x".join(str(e) for e in (self.batch, self.m, self.n, self.k) if e is not None)]
        shown += [] if self.sizes is None else [f"varlen_{self.ragged}"]
        for name in ("dtype", "out", "c", "row", "col", "columns", "rows", "activation", "out_major"):
            value = getattr(self, name)
            if value != getattr(type(self), name, None):
                shown.append(f"{name}={value}")
        shown += [name for name in ("gathered", "bias", "store_preact", "odd") if getattr(self, name)]
        return "-".join(shown) + (f"-{self.config}".replace(" ", "_") if self.config else "")

    @property
    def is_gated(self) -> bool:
        return self.activation in ("swiglu", "swiglu_oai", "reglu", "geglu", "glu")


@contextlib.contextmanager
def poisoned_partials() -> Iterator[None]:
    """The partial results that calls allocate hold NaN."""
    allocate = host_epilogue.allocate_partials

    def poisoned(*arguments: Any) -> torch.Tensor:
        return allocate(*arguments).fill_(float("nan"))

    host_epilogue.allocate_partials = poisoned
    try:
        yield
    finally:
        host_epilogue.allocate_partials = allocate


class NormOperands:
    """Tensors of one case; outputs are views into buffers of NaN."""

    def __init__(self, case: NormCase, device: str) -> None:
        self.case = case
        generator = torch.Generator(device=device).manual_seed(zlib.crc32(str(case).encode()))
        lead: tuple[int, ...] = () if case.batch is None else (case.batch,)
        is_ragged_m, is_ragged_k = case.sizes is not None and case.ragged == "m", case.ragged == "k"
        groups = len(case.sizes or ())
        b_lead = (groups,) if is_ragged_m else lead
        out_lead = (groups,) if is_ragged_k else lead

        def random(*shape: int, dtype: str = case.dtype) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=device).to(DTYPES[dtype])

        self.A = random(*lead, case.k, case.m).mT if is_ragged_k else random(*lead, case.m, case.k)
        self.B = random(*b_lead, case.k, case.n) if is_ragged_k else random(*b_lead, case.n, case.k).mT
        self.indices = None
        if case.gathered:
            self.indices = torch.randint(0, case.m, (case.m,), generator=generator, device=device).int()
        self.C = None if case.c is None else random(*out_lead, case.m, case.n, dtype=case.c)
        vectors = {"bias": ("fp32" if case.bias else None, case.n), "columns": (case.columns, case.n)}
        self.bias, self.columns = (
            None if dtype is None else random(*b_lead, extent, dtype=dtype) for dtype, extent in vectors.values()
        )
        self.rows = None if case.rows is None else random(*lead, case.m, dtype=case.rows)
        self.offsets = None
        if case.sizes is not None:
            offsets = [0, *itertools.accumulate(case.sizes)]
            self.offsets = torch.tensor(offsets, dtype=torch.int32, device=device)

        def output(columns: int) -> View:
            unit, pitch = 2 if case.out_major == "n" else 1, "odd" if case.odd else "padded"
            shape = (out_lead[0] if out_lead else None, case.m, columns)
            return make_view(shape, DTYPES[case.out], unit, pitch, "outer", device)

        self.out = output(case.n // 2 if case.is_gated else case.n)
        self.preact = output(case.n) if case.store_preact else None
        self.results: dict[str, Optional[torch.Tensor]] = {}

    @property
    def ragged_arguments(self) -> dict[str, Any]:
        arguments = {} if self.offsets is None else {f"cu_seqlens_{self.case.ragged}": self.offsets}
        return arguments if self.indices is None else arguments | {"A_idx": self.indices}

    def product(self) -> Reference:
        """A @ B in float64, and the typical magnitude of its terms."""
        A, B, case = self.A.double(), self.B.double(), self.case
        if self.indices is not None:
            A = A[self.indices]
        if self.offsets is None:
            return Reference(A @ B, (A**2 @ B**2).sqrt())
        spans = list(itertools.pairwise([0, *itertools.accumulate(case.sizes or ())]))
        if case.ragged == "m":
            parts = [(A[first:last], B[g]) for g, (first, last) in enumerate(spans)]
            join = torch.cat
        else:
            parts = [(A[:, first:last], B[first:last]) for first, last in spans]
            join = torch.stack
        return Reference(join([a @ b for a, b in parts]), join([(a**2 @ b**2).sqrt() for a, b in parts]))

    def per_row(self, vector: torch.Tensor) -> torch.Tensor:
        """A vector of N, or one of each group, to multiply the output with."""
        if self.offsets is None or self.case.ragged == "k" or vector.dim() == 1:
            return vector.double().unsqueeze(-2)
        sizes = torch.tensor(self.case.sizes, device=vector.device)
        return vector.double().repeat_interleave(sizes, dim=0)


def run(t: NormOperands, **options: Any) -> None:
    """One launch into poisoned buffers."""
    case = t.case
    for view in (t.out, t.preact):
        if view is not None:
            poison(view.buffer)
    options |= t.ragged_arguments
    with poisoned_partials():
        if case.kind == "reduce":
            _, row, col = gemm_reduce(
                t.A, t.B, t.C, t.bias, row=case.row, col=case.col, out=t.out.tensor, config=case.config, **options
            )
            t.results = {"row": row, "col": col}
        elif case.kind == "rms":
            _, rstd = quack.gemm_rms(
                t.A, t.B, t.C, norm_weight=t.columns, out=t.out.tensor, config=case.config, eps=EPS, **options
            )
            t.results = {"rstd": rstd}
        else:
            preact = None if t.preact is None else t.preact.tensor
            quack.gemm_norm_act_tuned.fn(
                t.A, t.B, preact, t.out.tensor, t.C, t.rows, case.activation, config=case.config, **options
            )


EPS = 1e-3


def verify(t: NormOperands) -> None:
    """Every output against float64, and nothing written around the outputs."""
    case, (exact, size) = t.case, t.product()
    if t.rows is not None:
        scale = t.rows.double().unsqueeze(-1)
        exact, size = exact * scale, size * scale.abs()
    for term in (t.C, None if t.bias is None else t.per_row(t.bias)):
        if term is not None:
            exact, size = exact + term.double(), size + term.double().abs()
    model = Case("norm", *exact.shape[-2:], case.k, a=case.dtype, b=case.dtype)
    for name, dim in (("row", -1), ("col", -2)):
        kind = getattr(case, name)
        if kind is not None:
            check_reduction(kind, t.results[name], Reference(exact, size), dim, accumulation_error(model))
    if case.kind == "rms":
        check_rstd(t.results["rstd"], Reference(exact, size), accumulation_error(model))
    if t.preact is not None:
        check(model, t.preact.tensor, Reference(exact, size))
    if t.columns is not None:
        exact, size = exact * t.per_row(t.columns), size * t.per_row(t.columns).abs()
    if case.activation is None:
        check(model, t.out.tensor, Reference(exact, size))
    else:
        check_activation(t, Reference(exact, size))
    for view in (t.out, t.preact):
        if view is not None:
            written = view.buffer.view(torch.uint8).view(view.buffer.numel(), -1) != 0xFF
            assert not (written.any(1) & view.outside()).any(), "elements outside an output were written"


def check_reduction(kind: str, got: Optional[torch.Tensor], expected: Reference, dim: int, acc: float) -> None:
    """|x| errs by acc * size; adding rounds each partial sum in fp32."""
    x, size = expected
    assert got is not None and got.dtype is torch.float32
    reduced = {
        "sum": lambda: (x.sum(dim), acc * size.sum(dim) + 2e-6 * x.abs().sum(dim)),
        "sum_of_squares": lambda: (x.square().sum(dim), 2 * acc * (x.abs() * size).sum(dim) + 2e-6 * x.square().sum(dim)),
        "max": lambda: (x.amax(dim), 8 * acc * size.amax(dim) + 1e-6 * x.abs().amax(dim)),
        "log_sum_exp": lambda: (x.logsumexp(dim), 8 * acc * size.amax(dim) + 2e-6 * x.abs().amax(dim) + 2e-6),
    }  # fmt: skip
    exact, bound = reduced[kind]()
    assert got.shape == exact.shape, f"{tuple(got.shape)} instead of {tuple(exact.shape)}"
    worse = ~((got.double() - exact).abs() <= bound)  # NaN is worse, too
    assert not worse.any(), (
        f"{kind}: {int(worse.sum())} of {worse.numel()} wrong, first at {worse.nonzero()[0].tolist()}"
    )


def check_rstd(got: Optional[torch.Tensor], expected: Reference, acc: float) -> None:
    x, size = expected
    mean, error = x.square().mean(-1), 2 * acc * (x.abs() * size).mean(-1)
    exact = (mean + EPS).rsqrt()
    assert got is not None and got.dtype is torch.float32 and got.shape == exact.shape
    bound = exact * (0.5 * error / (mean + EPS) + 4e-6)
    assert ((got.double() - exact).abs() <= bound).all(), "rstd beyond its bound"


def check_activation(t: NormOperands, expected: Reference) -> None:
    """Activations have relative and absolute errors of at most 2^-10 (`cute_activation`), plus one rounding."""
    x, size = expected
    function = activation_reference(activation_of(t.case.activation))
    exact = function(x[..., 0::2], x[..., 1::2]) if t.case.is_gated else function(x)
    got = t.out.tensor.double()
    unit = {"bf16": 2**-8, "fp16": 2**-11, "fp32": 2**-24}[t.case.out]
    scale = 1 + x.abs().amax() ** (2 if t.case.is_gated or t.case.activation == "relu_sq" else 1)
    bound = (unit + 2**-10) * exact.abs() + 2**-10 * scale * 0.05 + 2**-9
    worse = ~((got - exact).abs() <= bound)
    assert not worse.any(), f"{int(worse.sum())} of {worse.numel()} wrong, first at {worse.nonzero()[0].tolist()}"


def reduction_cases() -> Iterator[NormCase]:
    """Both directions, every kind, schedules of every sort, tiles beyond both edges of the problem."""
    base = NormCase("reduce", 300, 200, 72)
    kinds = ("sum", "log_sum_exp", "max", "sum_of_squares")
    for config, row, col in zip((TURNS, TURNS, TALL, TALL), kinds, (kinds[2], kinds[0], kinds[1], kinds[3])):
        yield replace(base, row=row, col=col, config=config)
    yield replace(base, row="max", bias=True, config=WIDE)
    yield replace(base, col="log_sum_exp", config=WIDE)
    yield replace(base, row="log_sum_exp", col="max", c="bf16", config=FLAT)
    yield replace(base, col="sum", config=THREE)
    yield replace(base, row="sum", col="sum", config=replace(FLAT, cluster_m=2))
    yield replace(base, row="sum", col="sum", config=DYNAMIC)
    yield replace(base, m=33, row="sum", col="log_sum_exp", config=SWAPPED)
    yield replace(base, m=33, row="log_sum_exp", col="sum", config=SWAPPED)
    yield replace(base, n=40, row="max", col="max", config=NARROW)
    yield replace(base, m=1, n=1, k=1, row="log_sum_exp", col="log_sum_exp")
    yield replace(base, m=70, n=131, out="fp32", odd=True, row="sum", col="max", config=SMALL)
    yield replace(base, k=0, row="sum", col="sum", bias=True)
    yield replace(base, batch=3, m=130, n=136, row="sum", col="sum", config=FLAT)
    yield replace(base, batch=2, m=130, n=136, row="max", col="max", bias=True, config=SMALL)
    yield replace(base, m=sum(SIZES), sizes=SIZES, row="log_sum_exp", config=TURNS)
    yield replace(base, m=sum(SIZES), sizes=SIZES, gathered=True, row="sum", config=FLAT)
    yield replace(base, m=136, k=sum(SIZES), sizes=SIZES, ragged="k", row="max", col="sum", config=FLAT)
    yield replace(base, dtype="e4m3", k=256, row="sum", col="sum")


def norm_cases() -> Iterator[NormCase]:
    """`gemm_rms` and `gemm_norm_act`: scales, C, activations, outputs, and the problems they may be part of."""
    rms = NormCase("rms", 300, 264, 72)
    yield replace(rms, config=WIDE)
    yield replace(rms, columns="bf16", c="bf16", config=TALL)
    yield replace(rms, columns="fp32", out="fp32", dtype="fp16", config=FLAT)
    yield replace(rms, columns="fp32", odd=True, n=131, c="fp32", config=SMALL)
    yield replace(rms, columns="fp32", batch=2, m=130, c="bf16")
    yield replace(rms, m=20, columns="fp32", c="bf16", config=SWAPPED)
    yield replace(rms, m=sum(SIZES), sizes=SIZES, columns="fp32", config=replace(WIDE, tile_n=160))
    yield replace(rms, m=sum(SIZES), sizes=SIZES, gathered=True, columns="fp32", config=FLAT)
    act = NormCase("norm_act", 300, 272, 72, rows="fp32")
    yield act
    yield replace(act, activation="silu", config=WIDE)
    yield replace(act, activation="gelu_tanh_approx", c="bf16", store_preact=True, config=TALL)
    yield replace(act, activation="swiglu", config=WIDE)
    yield replace(act, activation="geglu", c="bf16", store_preact=True, rows="bf16", config=FLAT)
    yield replace(act, activation="relu", rows=None, out_major="m")
    yield replace(act, m=20, activation="tanh", c="bf16", store_preact=True, config=SWAPPED)
    yield replace(act, batch=2, m=130, activation="silu", store_preact=True)
    yield replace(act, m=sum(SIZES), sizes=SIZES, activation="swiglu", store_preact=True, config=FLAT)
    yield replace(act, m=sum(SIZES), sizes=SIZES, gathered=True, activation="relu_sq", config=WIDE)


def cases() -> list[NormCase]:
    return [*reduction_cases(), *norm_cases()]


# ---- the final reduction ----------------------------------------------------------------------------------------------


def final_reduce_cases(device: str) -> dict[str, torch.Tensor]:
    """fp32 partials by name: whole vectors and parts of one, rows and columns contiguous, batches, pitches, odd addresses."""

    def x(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=torch.Generator(device=device).manual_seed(sum(shape)), device=device)

    return {
        "one vector": x(9, 8),
        "rows": x(37, 32),
        "long rows": x(3, 1544),
        "one row": x(1, 4),
        "one column": x(300, 1),
        "odd rows": x(41, 33),
        "columns": x(24, 70).mT,
        "long columns": x(1000, 5).mT,
        "batches": x(3, 7, 24),
        "batches of columns": x(2, 12, 50).mT,
        "padded": x(2, 9, 48)[..., :40],
        "odd address": x(9, 48)[:, 1:33],
        "every other": x(9, 64)[:, ::2],
        "expanded": x(5, 1).expand(5, 16),
        "expanded rows": x(1, 16).expand(11, 16),
        "one dimension": x(50),
        "four dimensions": x(2, 3, 4, 8),
        "no rows": x(0, 4),
        "no partials": x(2, 5, 0),
    }


def check_final_reduce(x: torch.Tensor, scale: float = 0.03, eps: float = 1e-3) -> None:
    """Against float64, into a poisoned output; fp32 sums of up to 50 roundings, and an approximate root of 2^-22.9."""
    exact = rms_final_reduce_ref(x.double(), scale, eps)
    out = torch.full(x.shape[:-1], float("nan"), dtype=torch.float32, device=x.device)
    assert sum_rows(x, (scale, eps), out) is out
    torch.testing.assert_close(out.double(), exact, rtol=2e-6, atol=0.0, equal_nan=True)
    assert torch.equal(rms_final_reduce(x, scale, eps).view(torch.int32), out.view(torch.int32)), (
        "not the same bits again"
    )
    torch.testing.assert_close(sum_rows(x).double(), x.double().sum(-1), rtol=2e-6, atol=0.0, equal_nan=True)


# ---- stochastic rounding ----------------------------------------------------------------------------------------------


def check_rounding(device: str, config: Optional[GemmConfig], batch: Optional[int] = None, seed: int = 12345) -> None:
    """Bit for bit the host model applied to what the same configuration computes in fp32; NaN, infinities, huge, tiny, 0."""
    generator = torch.Generator(device=device).manual_seed(7)
    lead: tuple[int, ...] = () if batch is None else (batch,)
    A = torch.randn((*lead, 200, 72), generator=generator, device=device).bfloat16()
    B = torch.randn((*lead, 264, 72), generator=generator, device=device).bfloat16().mT
    A[..., 3, :], A[..., 4, :], A[..., 8, :] = float("nan"), 0.0, 0.0
    A[..., 8, 5] = float("inf")
    A[..., 5, :] *= 1e30
    A[..., 6, :] *= 1e-38
    exact = torch.empty((*lead, 200, 264), device=device)
    quack.gemm_tuned.fn(A, B, exact, config=config)
    out = make_view((batch, 200, 264), torch.bfloat16, 2, "padded", "outer", device)
    quack.gemm_tuned.fn(A, B, out.tensor, config=config, rounding_mode=RoundingMode.RS, sr_seed=seed)
    expected = round_stochastically(exact.cpu(), seed)
    got = out.tensor.cpu()
    same = (got.contiguous().view(torch.int16) == expected.view(torch.int16)) | (got.isnan() & expected.isnan())
    assert same.all(), f"{int((~same).sum())} elements differ from the model"
    assert got[..., 3, :].isnan().all() and not got[..., 4, :].any() and got[..., 8, :].isinf().any()
    assert not (got == exact.cpu().bfloat16())[..., :3, :].all(), "everything was rounded to nearest"


ROUNDING_CONFIGS = (None, TURNS, TALL, THREE, SWAPPED, DYNAMIC)
