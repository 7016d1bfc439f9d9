"""GEMMs with an activation in the epilogue, checked against float64, for emulator and GPU.

Error model. The accumulator is off by at most delta (see `reference`); the activation multiplies that by its slope, taken at
x - delta, x and x + delta, and adds its own error, relative to what it computes (`cute_activation` derives the bounds).
"""

import itertools
import zlib
from dataclasses import dataclass
from typing import Optional

import torch

import quack
from quack.activation import Activation, GatedActivation
from quack.activation_ref import reference
from quack.gemm_config import GemmConfig
from quack.gemm_operands import AnyActivation, activation_of
from tests.cases import DTYPES, Case, View, make_view, poison
from tests.reference import ELEMENT_FACTOR, SIGNIFICANT_BITS, accumulation_error

PINGPONG = GemmConfig(128, 128, pingpong=True, cluster_m=1)
DYNAMIC = GemmConfig(128, 128, pingpong=True, is_dynamic_persistent=True)
WIDE = GemmConfig(128, 256)
NAMES = [f.value for f in (*Activation, *GatedActivation)]
SPREAD = 2.0  # standard deviation of the product: activations bend within a few of them


def value_error(function: AnyActivation) -> float:
    """Relative error of a value on the device."""
    return 2.0**-10.9 if function is Activation.TANH else 2.0**-14


@dataclass(frozen=True)
class ActCase:
    """preact = A @ B (+ C) (+ bias), postact = activation(preact); or, of a backward pass, dx = activation'(x) A @ B.

    store: preact, or in backward passes postact, is stored. out: dtype of preact and dx; c: of C or x. scale: dtype of the row
    scale; reduce: its gradient is asked for. sizes: ragged M, rows of each group; pool: gathered from this many rows of A.
    odd: neither pitch nor address of the outputs are aligned. majors: of A, B, preact and dx, postact.
    """

    activation: Optional[str]
    store: bool = True
    m: int = 136
    n: int = 144
    k: int = 72
    batch: Optional[int] = None
    dtype: str = "bf16"
    out: str = "bf16"
    post: str = "bf16"
    majors: str = "kknn"
    odd: bool = False
    c: Optional[str] = None
    bias: bool = False
    sizes: Optional[tuple[int, ...]] = None
    pool: Optional[int] = None
    scale: Optional[str] = None
    reduce: bool = False
    config: Optional[GemmConfig] = None

    def __str__(self) -> str:
        sizes = f"ragged{len(self.sizes)}" if self.sizes is not None else None
        pool = f"from{self.pool}" if self.pool is not None else None
        extents = "x".join(str(e) for e in (self.batch, self.m, self.n, self.k) if e is not None)
        parts = [str(self.activation), extents, f"{self.dtype}.{self.out}.{self.post}", self.majors, sizes, pool]
        parts += [name for name in ("store", "odd", "c", "bias", "scale", "reduce") if getattr(self, name)]
        return "-".join(part for part in parts if part) + (f"-{self.config}".replace(" ", "_") if self.config else "")

    @property
    def function(self) -> AnyActivation:
        return activation_of(self.activation)

    @property
    def is_gated(self) -> bool:
        return isinstance(self.function, GatedActivation)

    @property
    def rows(self) -> int:
        return self.m if self.sizes is None else sum(self.sizes)


class Inputs:
    """A, B and what says which rows meet which matrix; `product` is exact and `delta` how far a kernel may be from it."""

    def __init__(self, case: ActCase, device: str) -> None:
        self.case = case
        self.generator = torch.Generator(device=device).manual_seed(zlib.crc32(str(case).encode()))
        self.device = device
        groups = case.batch if case.sizes is None else len(case.sizes)
        lines = case.rows if case.pool is None else case.pool
        a_batch = case.batch if case.sizes is None else None
        self.A = self.matrix(
            (a_batch, lines, case.k), case.dtype, case.majors[0] == "k", SPREAD / max(case.k, 1) ** 0.5
        )
        self.B = self.matrix((groups, case.k, case.n), case.dtype, case.majors[1] == "n")
        self.offsets = self.indices = None
        if case.sizes is not None:
            self.offsets = torch.tensor([0, *itertools.accumulate(case.sizes)], dtype=torch.int32, device=device)
        if case.pool is not None:
            self.indices = torch.randint(0, case.pool, (case.rows,), generator=self.generator, device=device).int()
        self.product, self.size = self.multiply(torch.double)

    def random(self, *shape: Optional[int]) -> torch.Tensor:
        return torch.randn([e for e in shape if e is not None], generator=self.generator, device=self.device)

    def matrix(
        self, shape: tuple[Optional[int], int, int], dtype: str, last_is_unit: bool, scale: float = 1.0
    ) -> torch.Tensor:
        """Random, inside a buffer of NaN."""
        tensor = make_view(shape, DTYPES[dtype], 2 if last_is_unit else 1, "padded", "outer", self.device).tensor
        return tensor.copy_(self.random(*shape) * scale)

    def output(self, columns: int, dtype: str, major: str, even: bool = False) -> View:
        """Of as many rows as the product. even: pairs of columns stay aligned, which those of odd cases need not be."""
        batch = self.case.batch if self.case.sizes is None else None
        pitch = ("dense" if even else "odd") if self.case.odd else "padded"
        return make_view(
            (batch, self.case.rows, columns), DTYPES[dtype], 2 if major == "n" else 1, pitch, "outer", self.device
        )

    def multiply(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """(A @ B, sqrt(A^2 @ B^2)), gathered and group by group."""
        a, b = self.A.to(dtype), self.B.to(dtype)
        if self.indices is not None:
            a = a[self.indices.long()]
        if self.offsets is None:
            return a @ b, (a.square() @ b.square()).sqrt()
        spans = [slice(*ends) for ends in itertools.pairwise(self.offsets.tolist())]
        products = [a[span] @ b[g] for g, span in enumerate(spans)]
        sizes = [(a[span].square() @ b[g].square()).sqrt() for g, span in enumerate(spans)]
        return torch.cat(products), torch.cat(sizes)

    def row_of(self, vectors: torch.Tensor) -> torch.Tensor:
        """One row of (groups, N) for every row of the product, or (N,) for all."""
        if vectors.dim() == 1:
            return vectors
        if self.offsets is None:
            return vectors.unsqueeze(-2)
        return vectors.repeat_interleave(self.offsets.diff().long(), dim=0)

    def accumulation(self) -> float:
        case = self.case
        return ELEMENT_FACTOR * accumulation_error(Case("act", 1, 1, case.k, a=case.dtype, b=case.dtype))


class Forward(Inputs):
    """Tensors of one call of `gemm_act`; the outputs are views into buffers of NaN."""

    def __init__(self, case: ActCase, device: str) -> None:
        super().__init__(case, device)
        self.preact = self.output(case.n, case.out, case.majors[2]) if case.store else None
        self.postact = self.output(case.n // 2 if case.is_gated else case.n, case.post, case.majors[3])
        self.C = self.bias = None
        if case.c is not None:
            batch = case.batch if case.sizes is None else None
            self.C = self.matrix((batch, case.rows, case.n), case.c, True)
            self.product, self.size = self.product + self.C.double(), self.size + self.C.double().abs()
        if case.bias:
            several = case.batch if case.sizes is None else len(case.sizes)
            self.bias = self.random(several, case.n).to(DTYPES[case.dtype])
            row = self.row_of(self.bias.double())
            self.product, self.size = self.product + row, self.size + row.abs()

    def run(self) -> None:
        """One launch into poisoned buffers."""
        for view in (self.preact, self.postact):
            if view is not None:
                poison(view.buffer)
        preact = None if self.preact is None else self.preact.tensor
        quack.gemm_act_tuned.fn(
            self.A, self.B, preact, self.postact.tensor, self.C, self.bias, self.case.activation, self.offsets,
            self.indices, config=self.case.config,
        )  # fmt: skip

    def verify(self) -> None:
        """Both outputs against float64, and nothing written around them."""
        case, delta = self.case, self.accumulation() * self.size
        if self.preact is not None:
            check_view("preact", self.preact, self.product, delta)
        postact = apply(case.function, self.product)
        spread = slope_bound(case.function, self.product, delta)
        check_view("postact", self.postact, postact, spread + value_error(case.function) * postact.abs())


class Backward(Inputs):
    """Tensors of one call of `gemm_dact`; the outputs are views into buffers of NaN. in_place: dx is x."""

    def __init__(self, case: ActCase, device: str, in_place: bool = False) -> None:
        super().__init__(case, device)
        width = 2 * case.n if case.is_gated else case.n
        dtype = case.c or case.dtype
        self.x_view = self.output(width, dtype, case.majors[2], even=case.is_gated)
        self.x = self.x_view.tensor.copy_(self.random(*self.x_view.tensor.shape) * SPREAD)
        self.exact_x = self.x.double()
        self.dx = self.x_view if in_place else self.output(width, case.out, case.majors[2], even=case.is_gated)
        self.postact = self.output(case.n, case.post, case.majors[3]) if case.store else None
        self.scale = None
        if case.scale is not None:
            rows = case.rows if case.batch is None or case.sizes is not None else None
            shape = (rows,) if rows is not None else (case.batch, case.m)
            self.scale = self.random(*shape).to(DTYPES[case.scale])

    def run(self) -> None:
        """One launch into poisoned buffers."""
        if self.dx is not self.x_view:
            poison(self.dx.buffer)
        if self.postact is not None:
            poison(self.postact.buffer)
        self.sums = quack.gemm_dact_tuned.fn(
            self.A, self.B, self.x, self.dx.tensor, None if self.postact is None else self.postact.tensor, self.scale,
            self.case.activation, self.case.reduce, self.offsets, self.indices, config=self.case.config,
        )  # fmt: skip

    def verify(self) -> None:
        """All outputs against float64, and nothing written around them."""
        case, x, dy = self.case, self.exact_x, self.product
        delta, own = self.accumulation() * self.size, value_error(case.function)
        scale = torch.ones(()) if self.scale is None else self.scale.double().unsqueeze(-1)
        values = apply(case.function, x)
        if self.postact is not None:
            check_view("postact", self.postact, values * scale, own * (values * scale).abs())
        slopes = gradient(case.function, x, torch.ones_like(dy))
        pairs = 2 if case.is_gated else 1
        dy, delta = ((dy * scale).repeat_interleave(pairs, -1), (delta * scale.abs()).repeat_interleave(pairs, -1))
        # Slopes that cross zero have an absolute error beside the relative one, in proportion to what multiplies them.
        size = 1 + x.unflatten(-1, (-1, pairs)).abs().amax(-1).repeat_interleave(pairs, -1)
        bound = slopes.abs() * delta + (own * slopes.abs() + 2.0**-19 * size) * (dy.abs() + delta)
        check_view("dx", self.dx, slopes * dy, bound)
        assert (self.sums is not None) == case.reduce
        if self.sums is not None:
            terms, accumulated = self.product * values, self.accumulation() * self.size * values.abs()
            error = accumulated.sum(-1) + (own + case.n * 2.0**-24) * terms.abs().sum(-1)
            check_tensor("reduction", self.sums, terms.sum(-1), error)


def apply(function: AnyActivation, x: torch.Tensor) -> torch.Tensor:
    if isinstance(function, GatedActivation):
        return reference(function)(x[..., 0::2], x[..., 1::2])
    return reference(function)(x)


def gradient(function: AnyActivation, x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    """dy times the derivative of the activation at x, by autograd."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(apply(function, leaf), leaf, dy)[0]


def slope_bound(function: AnyActivation, x: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """How far f may be from f(x) if its arguments are off by delta."""
    ones = torch.ones_like(apply(function, x))
    change = torch.stack([gradient(function, x + s * delta, ones).abs() for s in (-1, 0, 1)]).amax(0) * delta
    squares = 2 * delta.square()
    if isinstance(function, GatedActivation):
        return change[..., 0::2] + change[..., 1::2] + squares[..., 0::2] + squares[..., 1::2]
    return change + squares


def check_tensor(name: str, got: torch.Tensor, exact: torch.Tensor, bound: torch.Tensor) -> None:
    """`bound` is what may be off before rounding to the dtype of `got`."""
    assert got.shape == exact.shape, f"{name} is {tuple(got.shape)}, expected {tuple(exact.shape)}"
    if got.numel() == 0:
        return
    bits = SIGNIFICANT_BITS[got.dtype]
    tiny = 2.0**-bits * torch.finfo(got.dtype).smallest_normal + 2.0**-118  # below the latter factors are flushed
    bound = 2.0**-bits * (exact.abs() + bound) * 1.0001 + bound + tiny
    error = (got.double() - exact).abs()
    wrong = ~(error <= bound)  # NaN is wrong
    assert not wrong.any(), (
        f"{name}: {int(wrong.sum())} of {got.numel()} elements beyond their bound, first at "
        f"{tuple(int(i) for i in wrong.nonzero()[0])}: got {got[wrong][0].item()}, exact {exact[wrong][0].item()}, "
        f"bound {bound[wrong][0].item():.3e}"
    )


def check_view(name: str, view: View, exact: torch.Tensor, bound: torch.Tensor) -> None:
    """The tensor, and that nothing was written around it."""
    check_tensor(name, view.tensor, exact, bound)
    written = view.buffer.view(torch.uint8).view(view.buffer.numel(), -1) != 0xFF
    assert not (written.any(1) & view.outside()).any(), f"{name}: elements outside were written"


SIZES = (100, 37, 0, 70, 5)


def forward_cases() -> list[ActCase]:
    """Every activation, stored or not, and around one of each kind layouts, dtypes, terms, raggedness and tiles."""
    found = [ActCase(name, store) for name in NAMES for store in (True, False)]
    for name in ("gelu_tanh_approx", "swiglu"):
        found += [
            ActCase(name, batch=2, bias=True, config=PINGPONG),
            ActCase(name, False, c="bf16", bias=True),
            ActCase(name, c="fp32", out="fp32", post="fp16", dtype="fp16"),
            ActCase(name, False, post="fp32", config=PINGPONG),
            ActCase(name, m=300, n=520, k=136, config=WIDE),
            ActCase(name, False, m=300, n=520, k=136, config=WIDE),
            ActCase(name, m=200, n=264, config=GemmConfig(128, 192, pingpong=True)),
            ActCase(name, n=150, odd=True),
            ActCase(name, False, n=150, odd=True, config=PINGPONG),
            ActCase(name, n=152),  # rows of postact end within 16 bytes, those of preact do not
            ActCase(name, majors="mnmm", m=144),
            ActCase(name, False, majors="kknm", m=144),
            ActCase(name, sizes=SIZES, bias=True),
            ActCase(name, False, sizes=SIZES, config=DYNAMIC),
            ActCase(name, sizes=SIZES, pool=40),
            ActCase(name, False, sizes=SIZES, pool=300, n=150, odd=True),
            ActCase(name, k=0, bias=True),
            ActCase(name, m=0),
            ActCase(name, m=1, n=16, k=8),
            ActCase(name, False, m=8, n=144),
        ]
    found += [
        ActCase("silu", dtype="e4m3", k=272),
        ActCase("swiglu", False, dtype="e5m2", k=272),
        ActCase("swiglu", sizes=(0, 0)),
    ]
    return found


def backward_cases() -> list[ActCase]:
    """Every activation with everything, and around one of each kind layouts, dtypes, raggedness and tiles."""
    found = [ActCase(name, scale="fp32", reduce=True) for name in NAMES]
    for name in ("gelu_tanh_approx", "swiglu"):
        found += [
            ActCase(name),
            ActCase(name, False),
            ActCase(name, False, reduce=True, config=GemmConfig(64, 128, pingpong=True, cluster_m=1)),
            ActCase(name, scale="bf16", batch=2, config=PINGPONG),
            ActCase(name, scale="fp32", reduce=True, batch=2, n=200),
            ActCase(name, dtype="fp16", c="fp16", out="fp16", post="fp32"),
            ActCase(name, c="fp16", out="bf16", post="fp16"),
            ActCase(name, m=300, n=520, k=136, scale="fp32", reduce=True, config=WIDE),
            ActCase(name, m=300, n=520, k=136, scale="fp32", reduce=True, config=GemmConfig(256, 128)),
            ActCase(name, n=150, odd=True, scale="fp32", reduce=True),
            ActCase(name, n=151, odd=True),
            ActCase(name, n=148),
            ActCase(name, majors="mnnm", m=144),
            ActCase(name, sizes=SIZES, scale="fp32", reduce=True),
            ActCase(name, sizes=SIZES, config=DYNAMIC),
            ActCase(name, sizes=SIZES, pool=40, scale="fp32", reduce=True, n=272),
            ActCase(name, k=0, scale="fp32", reduce=True),
            ActCase(name, m=0, scale="fp32", reduce=True),
            ActCase(name, n=0, scale="fp32", reduce=True),
            ActCase(name, m=1, n=16, k=8),
            ActCase(name, m=8),
        ]
    found += [
        ActCase("silu", c="fp32", out="fp32", post="fp32"),
        ActCase("silu", majors="kkmn", m=144),
        ActCase("relu", sizes=(0, 0), scale="fp32", reduce=True),
    ]
    return found
