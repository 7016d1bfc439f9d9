"""Random chains of epilogue mixins on random problems and configurations, against a float64 model of the chain.

Each number is one composition for ever. CI runs a few; QUACK_COMPOSITIONS=50 pytest tests/emulated/test_compositions.py more.
"""

import os
import random
from dataclasses import dataclass, field
from typing import Any, Optional

import pytest
import torch

import quack
from quack.activation import Activation, GatedActivation
from quack.activation_ref import reference as activation_reference
from quack.gemm_config import GemmConfig
from quack.gemm_forward import scale_rows
from quack.gemm_interface import rounding_term
from quack.gemm_norm import scale_columns
from quack.gemm_port import PortKind
from quack.gemm_reduction import col_reduction, combine, row_reduction
from quack.reduction import Reduction
from quack.runtime import call
from quack.runtime.epilogue import Port, Term
from quack.runtime.plan import GemmRequest
from quack.runtime.spec import UnsupportedGemm
from tests.cases import View, make_view, poison
from tests.epilogue_norm_cases import poisoned_partials

IN_CI = 6
COUNT = int(os.environ.get("QUACK_COMPOSITIONS", IN_CI))
TOLERANCE = (
    6e-3  # of the largest intermediate magnitude: approximations of activations, fp32 sums and bf16 inputs to them
)
CONFIGS = (
    GemmConfig(128, 192, pingpong=True, cluster_m=1),
    GemmConfig(128, 128, pingpong=True, cluster_m=2),
    GemmConfig(64, 128, pingpong=True, cluster_m=1, is_dynamic_persistent=True),
    GemmConfig(256, 64, cluster_m=1),
    GemmConfig(128, 128, cluster_m=1, cluster_n=2),
    GemmConfig(192, 64, cluster_m=1),
    GemmConfig(64, 64, pingpong=True, cluster_m=1),
    GemmConfig(128, 64, cluster_m=1, is_persistent=False),
    GemmConfig(128, 64, pingpong=True, cluster_m=1, swap_ab=True),
)
SIZES = (70, 0, 129, 33)


@dataclass
class Problem:
    """One GEMM of a kind; `values` is the running float64 model of the accumulator, `peak` the largest it ever was."""

    kind: str
    dice: random.Random
    generator: torch.Generator
    m: int = 0
    n: int = 0
    k: int = 0
    arguments: dict[str, Any] = field(default_factory=dict)
    values: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    peak: float = 0.0

    def random(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator).to(dtype)

    def any_dtype(self) -> torch.dtype:
        return self.dice.choice((torch.float32, torch.bfloat16, torch.float16))

    @property
    def problems(self) -> Optional[int]:
        """Batch size or number of groups, None for one plain problem."""
        return None if self.kind == "dense" else 3 if self.kind == "batch" else len(SIZES)

    @property
    def lead(self) -> tuple[int, ...]:
        """Of the output."""
        return (self.problems,) if self.kind in ("batch", "varlen_k") and self.problems is not None else ()

    def matrix(self) -> torch.Tensor:
        """An input of the shape of the output."""
        if self.dice.random() < 0.3:
            return self.random(*self.lead, self.n, self.m, dtype=self.any_dtype()).mT
        return self.random(*self.lead, self.m, self.n, dtype=self.any_dtype())

    def output(self, columns: int) -> View:
        """A poisoned view."""
        unit, pitch = self.dice.choice((1, 2, 2, 2)), self.dice.choice(("padded", "padded", "odd"))
        view = make_view((*(self.lead or (None,)), self.m, columns), torch.bfloat16, unit, pitch, "outer", "cpu")
        poison(view.buffer)
        return view

    def of_rows(self, vector: torch.Tensor) -> torch.Tensor:
        return vector.double().unsqueeze(-1)

    def of_columns(self, vector: torch.Tensor) -> torch.Tensor:
        if vector.dim() == 2 and self.kind in ("varlen_m", "gather_m"):
            return vector.double().repeat_interleave(torch.tensor(SIZES), dim=0)
        return vector.double().unsqueeze(-2)

    def update(self, values: torch.Tensor) -> None:
        self.values = values
        self.peak = max(self.peak, values.abs().max().item())


def make_problem(dice: random.Random, generator: torch.Generator) -> Problem:
    """Operands, and the exact product."""
    kind = dice.choice(("dense", "dense", "batch", "varlen_m", "varlen_k", "gather_m"))
    p = Problem(kind, dice, generator, dice.randrange(8, 300), 8 * dice.randrange(2, 33), 8 * dice.randrange(1, 13))
    if p.kind in ("varlen_m", "gather_m"):
        p.m = sum(SIZES)
    offsets = torch.tensor([0, *SIZES]).cumsum(0).int()
    spans = list(zip(offsets.tolist(), offsets.tolist()[1:]))
    if kind == "varlen_k":
        p.k = sum(SIZES)
        p.m += -p.m % 8
        A, B = p.random(p.k, p.m).bfloat16().mT, p.random(p.k, p.n).bfloat16()
        product = torch.stack([A[:, i:j].double() @ B[i:j].double() for i, j in spans])
        p.arguments = {"A": A, "B": B, "cu_seqlens_k": offsets}
    elif kind in ("varlen_m", "gather_m"):
        A, B = p.random(p.m, p.k).bfloat16(), p.random(len(SIZES), p.n, p.k).bfloat16().mT
        p.arguments = {"A": A, "B": B, "cu_seqlens_m": offsets}
        if kind == "gather_m":
            p.arguments["A_idx"] = torch.randint(0, p.m, (p.m,), generator=generator).int()
            A = A[p.arguments["A_idx"]]
        product = torch.cat([A[i:j].double() @ B[g].double() for g, (i, j) in enumerate(spans)])
    else:
        A, B = p.random(*p.lead, p.m, p.k).bfloat16(), p.random(*p.lead, p.n, p.k).bfloat16().mT
        product = A.double() @ B.double()
        p.arguments = {"A": A, "B": B}
    p.update(product)
    return p


@dataclass
class Composition:
    """What to launch, and what each output must be: views of tiles, and partials by name with their reduction."""

    request: dict[str, Any]
    tiles: list[tuple[View, torch.Tensor]]
    reductions: dict[str, tuple[Reduction, int, torch.Tensor]]
    peak: float
    is_rounded: bool


def compose(number: int) -> Composition:
    """Draw the problem and the chain in kernel order: alpha, any mixins, C, bias, any mixins, reductions, rounding."""
    dice, generator = random.Random(number), torch.Generator().manual_seed(number)
    p = make_problem(dice, generator)
    request, tiles, reductions = dict(p.arguments), [], {}
    if dice.random() < 0.5:
        alpha = dice.choice((0.5, -1.25, torch.tensor([0.75])))
        request["alpha"] = alpha
        p.update(p.values * float(alpha))
    counter = iter(range(100))

    def draw() -> Optional[Term]:
        name, choice = f"port{next(counter)}", dice.choice(("rows", "columns", "act", "add", "store", "row", "col"))
        if choice == "rows":
            vector = p.random(*(p.lead if p.kind == "batch" else ()), p.m, dtype=p.any_dtype())
            p.update(p.values * p.of_rows(vector))
            return scale_rows(name, vector)
        if choice == "columns":
            lead = (p.problems,) if p.problems is not None and dice.random() < 0.5 else ()
            vector = p.random(*lead, p.n, dtype=p.any_dtype())
            p.update(p.values * p.of_columns(vector))
            return scale_columns(name, vector)
        if choice == "act":
            kind = dice.choice((Activation.SILU, Activation.TANH, Activation.RELU, Activation.GELU_TANH_APPROX))
            p.update(activation_reference(kind)(p.values))
            mixin = "quack.epilogue.activation:Activate"
            return Term(mixin, (Port("postact", PortKind.TILE_OUTPUT, None),), (("activation", kind),), swapped=mixin)
        mixin = "quack.epilogue.tile:" + ("AddTile" if choice == "add" else "StoreTile")
        if choice == "add":
            tile, scale = p.matrix(), dice.choice((None, 0.5, torch.tensor([-2.0])))
            p.update(p.values + tile.double() * (1.0 if scale is None else float(scale)))
            ports = (Port(name, PortKind.TILE_INPUT, tile), Port(f"{name}_scale", PortKind.SCALAR, scale))
            return Term(mixin, ports, swapped=mixin)
        if choice == "store":
            if len(tiles) == 2:
                return None
            view = p.output(p.n)
            tiles.append((view, p.values))
            return Term(mixin, (Port(name, PortKind.TILE_OUTPUT, view.tensor),), swapped=mixin)
        if choice == "col" and p.kind in ("varlen_m", "gather_m"):
            return None
        reduction = dice.choice(tuple(Reduction))
        reductions[name] = (reduction, -1 if choice == "row" else -2, p.values)
        return (row_reduction if choice == "row" else col_reduction)(name, reduction)

    def chain(length: int) -> tuple[Term, ...]:
        return tuple(term for term in (draw() for _ in range(length)) if term is not None)

    request["leading"] = chain(dice.randrange(3))
    if dice.random() < 0.5:
        request["C"], request["beta"] = p.matrix(), dice.choice((1.0, 0.5, torch.tensor([2.0])))
        p.update(p.values + float(request["beta"]) * request["C"].double())
    if dice.random() < 0.5:
        request["bias"] = p.random(*((p.problems,) if p.problems else ()), p.n, dtype=p.any_dtype())
        p.update(p.values + p.of_columns(request["bias"]))
    epilogue = chain(dice.randrange(1, 4))
    last = dice.choice(("round", "gate", "none"))
    out = p.output(p.n)
    if last == "round":
        epilogue += (rounding_term(number),)
    elif last == "gate":
        view, kind = p.output(p.n // 2), dice.choice(tuple(GatedActivation))
        gated = activation_reference(kind)(p.values[..., 0::2], p.values[..., 1::2])
        p.peak = max(p.peak, gated.abs().max().item())
        tiles.append((view, gated))
        port = Port("postact", PortKind.TILE_OUTPUT, view.tensor, is_halved=True)
        epilogue += (Term("quack.epilogue.activation:Gate", (port,), (("activation", kind),)),)
    request |= {"epilogue": epilogue, "out": out.tensor}
    tiles.insert(0, (out, p.values))
    return Composition(request, tiles, reductions, p.peak, last == "round")


def launch_request(request: GemmRequest) -> dict[str, torch.Tensor]:
    """A request that no public function makes."""
    fields = "A B out C bias alpha beta cu_seqlens_m cu_seqlens_k A_idx batch_idx_permute".split()
    operands = {name: getattr(request, name) for name in fields}
    operands |= {port.name: port.value for term in request.terms for port in term.ports}
    return call.launch(call.Form(lambda operands: request), operands)


def launch(composition: Composition, number: int) -> tuple[GemmConfig, dict[str, torch.Tensor]]:
    """With the first legal configuration of a random order."""
    for config in random.Random(number).sample(CONFIGS, len(CONFIGS)):
        try:
            request = GemmRequest(**composition.request, config=config)
            with poisoned_partials(), quack.emulator.use("sm90", schedule="latest", checks=("all",), sms=4):
                return config, launch_request(request)
        except UnsupportedGemm:
            continue
    raise AssertionError("no configuration is legal")


@pytest.mark.parametrize("number", range(COUNT))
def test_composition(number: int):
    composition = compose(number)
    config, partials = launch(composition, number)
    names = [term.mixin.partition(":")[2] for key in ("leading", "epilogue") for term in composition.request[key]]
    context = f"{config}: {names}"
    allowed = TOLERANCE * composition.peak
    for index, (view, exact) in enumerate(composition.tiles):
        step = 2**-7 if index == 0 and composition.is_rounded else 2**-8
        worse = ~((view.tensor.double() - exact).abs() <= step * exact.abs() + allowed)
        assert not worse.any(), (
            f"tile {index}: {int(worse.sum())} wrong, first at {worse.nonzero()[0].tolist()}, {context}"
        )
        written = view.buffer.view(torch.uint8).view(view.buffer.numel(), -1) != 0xFF
        assert not (written.any(1) & view.outside()).any(), f"tile {index} was written around, {context}"
    assert partials.keys() == composition.reductions.keys()
    for name, (reduction, dim, values) in composition.reductions.items():
        check_reduction(combine(partials[name], reduction, dim), reduction, dim, values, allowed)


def check_reduction(got: torch.Tensor, reduction: Reduction, dim: int, values: torch.Tensor, allowed: float) -> None:
    """Each value may be off by `allowed`."""
    exact = combine(values, reduction, dim) if reduction is not Reduction.SUM_OF_SQUARES else values.square().sum(dim)
    bound = torch.full_like(exact, allowed)
    if reduction is Reduction.SUM:
        bound = bound * values.shape[dim] ** 0.5 + 1e-5 * values.abs().sum(dim)
    elif reduction is Reduction.SUM_OF_SQUARES:
        bound = bound * 2 * values.abs().sum(dim) + 1e-5 * exact
    assert got.shape == exact.shape
    worse = ~((got.double() - exact).abs() <= bound)
    assert not worse.any(), f"{reduction}: {int(worse.sum())} of {worse.numel()} wrong"
