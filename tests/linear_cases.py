"""Linear layers and MLPs against float64 autograd of the same model in plain torch, for emulator and GPU.

Error model. Results are rounded to u = 2^-p, p significant bits, where preact, postact, d preact and the result itself are
stored: at most four roundings of 0.42 u (root mean square) in a row, whose errors add up as squares: 0.84 u. So the norm of the
error stays below 1.5 u of the norm, and no element is off by more than 8 u of itself plus the typical element. Of fp32 operands
tf32 cuts up to 2^-10, 2^-11 on average and always towards zero: four GEMMs in a row with two operands each lose 2^-8 = u.
"""

import contextlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn.functional as F

from quack.activation import GatedActivation
from quack.gemm_operands import activation_of, apply_ref
from quack.linear import act_linear_func, gated_linear_func, linear_act_func, linear_func, linear_gated_func
from quack.mlp import mlp_func
from tests.cases import DTYPES
from tests.reference import SIGNIFICANT_BITS

NORM_UNITS, ELEMENT_UNITS = 1.5, 12.0  # the largest of 3e5 elements: 8.7 on an H200, of relu_sq's squares
TF32_BITS = 8
LINEAR, HALVES, POSTACT, WHOLE = "linear", "halves", "postact", "whole"


@dataclass(frozen=True)
class LinearCase:
    """form: LINEAR is one layer; HALVES is linear_act_func and act_linear_func, POSTACT has linear_func for the second half,
    WHOLE is mlp_func. In POSTACT recompute means that preact is not stored. full: fp32
    operands under autocast."""

    form: str
    activation: Optional[str] = None
    rows: tuple[int, ...] = (72,)
    in_features: int = 64
    hidden: int = 48
    out_features: int = 40
    dtype: str = "bf16"
    bias: Optional[str] = None
    is_concat: bool = False
    recompute: bool = False
    full: bool = False

    def __str__(self) -> str:
        extents = "x".join(map(str, (*self.rows, self.in_features, self.hidden, self.out_features)))
        parts = [self.form, self.activation, extents, self.dtype, self.bias and f"bias.{self.bias}"]
        parts += [name for name in ("is_concat", "recompute", "full") if getattr(self, name)]
        return "-".join(part for part in parts if part)

    @property
    def is_gated(self) -> bool:
        return isinstance(activation_of(self.activation), GatedActivation)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        x = (*self.rows, self.in_features)
        if self.form == LINEAR:
            shapes = {"x": x, "weight1": (self.out_features, self.in_features), "bias1": (self.out_features,)}
        else:
            width = self.hidden * (2 if self.is_gated else 1)
            shapes = {"x": x, "weight1": (width, self.in_features), "weight2": (self.out_features, self.hidden)}
            shapes |= {"bias1": (width,), "bias2": (self.out_features,)}
        return {name: shape for name, shape in shapes.items() if self.bias or not name.startswith("bias")}


Model = dict[str, torch.Tensor]


def model(case: LinearCase, device: str) -> Model:
    """Input and parameters, all of them leaves that require gradients; products have a standard deviation of about 2."""
    generator = torch.Generator(device=device).manual_seed(zlib.crc32(str(case).encode()))
    operands = {}
    for name, shape in case.shapes.items():
        scale = 1.0 if name == "x" or len(shape) == 1 else 2.0 / max(shape[-1], 1) ** 0.5
        dtype = torch.float32 if case.full else DTYPES[case.bias if name.startswith("bias") else case.dtype]
        values = torch.randn(shape, generator=generator, device=device) * scale
        operands[name] = values.to(dtype).requires_grad_()
    return operands


def exact_model(case: LinearCase, t: Model) -> Model:
    """What the GEMMs read, in float64."""
    low = DTYPES[case.dtype]
    return {
        name: (tensor if name.startswith("bias") else tensor.to(low)).detach().double().requires_grad_()
        for name, tensor in t.items()
    }


def forward(case: LinearCase, t: Model) -> torch.Tensor:
    """Through quack."""
    bias1, bias2 = t.get("bias1"), t.get("bias2")
    if case.form == LINEAR:
        return linear_func(t["x"], t["weight1"], bias1)
    if case.form == WHOLE:
        return mlp_func(
            t["x"],
            t["weight1"],
            t["weight2"],
            case.activation,
            recompute=case.recompute,
            concat_layout=case.is_concat,
            bias1=bias1,
            bias2=bias2,
        )
    store_preact = not case.recompute
    if case.is_gated:
        preact, x = linear_gated_func(
            t["x"], t["weight1"], case.activation, bias1, store_preact, concat_layout=case.is_concat
        )
    else:
        preact, x = linear_act_func(t["x"], t["weight1"], case.activation, bias1, store_preact)
    if case.form == POSTACT:
        assert (preact is None) != store_preact
        return linear_func(x, t["weight2"], bias2)
    second = gated_linear_func if case.is_gated else act_linear_func
    return second(preact, t["weight2"], x, case.activation, bias=bias2)


def plain(case: LinearCase, t: Model) -> torch.Tensor:
    """In plain torch."""

    def pairs(parameter: Optional[torch.Tensor]) -> Optional[torch.Tensor]:
        if parameter is None or not case.is_concat:
            return parameter
        return parameter.unflatten(0, (2, parameter.shape[0] // 2)).transpose(0, 1).flatten(0, 1)

    y = F.linear(t["x"], pairs(t["weight1"]), pairs(t.get("bias1")))
    if case.form == LINEAR:
        return y
    return F.linear(apply_ref(activation_of(case.activation), y), t["weight2"], t.get("bias2"))


@contextlib.contextmanager
def fresh_memory_is_nan() -> Iterator[None]:
    """What `torch.empty` returns, so that elements nobody writes are seen."""
    was_on, was_warning = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=was_warning)


def autocast(case: LinearCase, device: str) -> contextlib.AbstractContextManager:
    return torch.autocast(device, dtype=DTYPES[case.dtype]) if case.full else contextlib.nullcontext()


Results = dict[str, torch.Tensor]


def run(case: LinearCase, t: Model, dy: torch.Tensor, function: Optional[Callable] = None) -> Results:
    """The result and every gradient of a loss whose gradient is dy."""
    with fresh_memory_is_nan():
        with autocast(case, dy.device.type):
            y = (function or forward)(case, t)
        found = torch.autograd.grad(y, list(t.values()), dy)
    return {"y": y.detach(), **dict(zip(t, found))}


def incoming(case: LinearCase, device: str) -> torch.Tensor:
    """A random gradient of the result."""
    generator = torch.Generator(device=device).manual_seed(1)
    return torch.randn((*case.rows, case.out_features), generator=generator, device=device).to(DTYPES[case.dtype])


def verify(case: LinearCase, t: Model, dy: torch.Tensor, results: Results) -> None:
    """Shapes, dtypes and values against float64."""
    leaves = exact_model(case, t)
    y = plain(case, leaves)
    exact = {"y": y.detach(), **dict(zip(t, torch.autograd.grad(y, list(leaves.values()), dy.double())))}
    assert results["y"].dtype == DTYPES[case.dtype]
    unit = 2.0 ** -(TF32_BITS if case.dtype == "fp32" else SIGNIFICANT_BITS[DTYPES[case.dtype]])
    for name, value in exact.items():
        got = results[name]
        assert got.shape == value.shape, f"{name} has shape {tuple(got.shape)} instead of {tuple(value.shape)}"
        assert name == "y" or got.dtype == t[name].dtype, f"gradient of {name} has dtype {got.dtype}"
        if not value.numel():
            continue
        difference = (got.double() - value).abs()
        norm = (difference.norm() / value.norm().clamp_min(1e-30)).item()
        assert norm < NORM_UNITS * unit, f"{name}: relative error {norm / unit:.2f} u"  # NaN fails, too
        typical = value.square().mean().sqrt().clamp_min(1e-30)
        worst = (difference / (value.abs() + typical)).max().item()
        assert worst < ELEMENT_UNITS * unit, f"{name}: an element is off by {worst / unit:.1f} u"


def small_cases() -> list[LinearCase]:
    """One of each kind."""
    return [
        LinearCase(LINEAR),
        LinearCase(LINEAR, rows=(2, 3, 12), bias="bf16"),
        LinearCase(LINEAR, dtype="fp16", bias="fp32", full=True),
        LinearCase(LINEAR, rows=(0,), bias="bf16"),
        LinearCase(LINEAR, rows=(5,), in_features=37, out_features=19, bias="bf16"),
        LinearCase(HALVES, "gelu_tanh_approx", bias="bf16"),
        LinearCase(HALVES, "swiglu", rows=(2, 40), is_concat=True, bias="bf16"),
        LinearCase(POSTACT, "silu", bias="bf16"),
        LinearCase(POSTACT, "geglu", recompute=True),
        LinearCase(WHOLE, "relu_sq", rows=(4, 18)),
        LinearCase(WHOLE, "swiglu", bias="bf16", full=True, is_concat=True),
        LinearCase(WHOLE, "swiglu", recompute=True, dtype="fp16", bias="fp16"),
        LinearCase(LINEAR, rows=(2, 36), dtype="fp32", bias="fp32"),
        LinearCase(LINEAR, rows=(5,), in_features=37, out_features=19, dtype="fp32"),
        LinearCase(HALVES, "gelu_tanh_approx", dtype="fp32", bias="fp32"),
        LinearCase(WHOLE, "swiglu", dtype="fp32", bias="fp32", is_concat=True),
        LinearCase(WHOLE, "geglu", dtype="fp32", recompute=True),
    ]
