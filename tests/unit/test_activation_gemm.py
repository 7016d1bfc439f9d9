"""gemm_act, gemm_gated and their gradients without a kernel: references, messages, which tiles are legal."""

from typing import Any

import pytest
import torch

import quack
from quack import heuristics
from quack.activation import Activation, GatedActivation
from quack.gemm_config import GemmConfig
from quack.runtime.legality import legality
from quack.runtime.spec import GemmShape, UnsupportedGemm
from tests.unit.ledger import activations, norms

NAMES = [f.value for f in (*Activation, *GatedActivation)]
GATED = [f.value for f in GatedActivation]


def nan(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.full(shape, float("nan"), dtype=dtype)


def double(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_()


# ---- references ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_references_agree(name: str):
    """What gemm_dact_ref returns is the gradient of what gemm_act_ref computes, in float64."""
    x, weight = double(5, 8), double(8, 6)
    _, postact = quack.gemm_act_ref(x, torch.eye(8, dtype=torch.double), activation=name)
    scale = double(5)
    dy = double(5, 7)
    second = double(7, postact.shape[1])  # out = (scale * postact) @ second.T
    ((scale.unsqueeze(-1) * postact) @ second.T).backward(dy)
    options = {"colvec_scale": scale.detach(), "colvec_reduce": True}
    dx, scaled, dscale = quack.gemm_dact_ref(dy.detach(), second.detach(), x, name, **options)
    torch.testing.assert_close(dx, x.grad)
    torch.testing.assert_close(dscale, scale.grad)
    torch.testing.assert_close(scaled, scale.detach().unsqueeze(-1) * postact.detach())
    assert torch.autograd.gradcheck(lambda a, b: quack.gemm_act_ref(a, b, activation=name), (x, weight))


def test_reference_of_groups():
    a, b = torch.randn(7, 4).double(), torch.randn(3, 4, 6).double()
    offsets, index = torch.tensor([0, 2, 2, 5], dtype=torch.int32), torch.tensor([6, 0, 0, 3, 1], dtype=torch.int32)
    bias = torch.randn(3, 6).double()
    preact, postact = quack.gemm_gated_ref(a, b, bias=bias, cu_seqlens_m=offsets, A_idx=index)
    for row, group in enumerate((0, 0, 2, 2, 2)):
        expected = a[index[row]] @ b[group] + bias[group]
        torch.testing.assert_close(preact[row], expected)
        torch.testing.assert_close(postact[row], torch.nn.functional.silu(expected[0::2]) * expected[1::2])


def test_reference_of_halves():
    a, gates, ups = torch.randn(5, 4).double(), torch.randn(3, 4).double(), torch.randn(3, 4).double()
    weight = torch.cat([gates, ups])
    _, got = quack.gemm_gated_ref(a, weight.mT, concat_layout=("B",), store_preact=False)
    torch.testing.assert_close(got, torch.nn.functional.silu(a @ gates.T) * (a @ ups.T))


# ---- messages --------------------------------------------------------------------------------------------------------


def act(**changes: Any) -> Any:
    return quack.gemm_act(**{"A": nan(16, 32), "B": nan(32, 24), "activation": "silu", **changes})


def dact(**changes: Any) -> Any:
    return quack.gemm_dact(
        **{"A": nan(16, 32), "B": nan(32, 24), "PreAct": nan(16, 48), "activation": "swiglu", **changes}
    )


BUFFER = nan(4096)
REFUSALS = [
    ("unknown", lambda: act(activation="mish"), ValueError, "activation is 'mish', expected one of None, 'relu', .*'glu'"),
    ("not gated", lambda: quack.gemm_gated(nan(8, 8), nan(8, 8), activation="silu"), ValueError, "not gated"),
    ("dgated", lambda: quack.gemm_dgated(nan(8, 8), nan(8, 8), nan(8, 16), None), ValueError, "activation is None"),
    ("odd N", lambda: act(B=nan(32, 23), activation="glu"), ValueError, "N = 23 columns: glu takes pairs"),
    ("A", lambda: act(A=[1.0]), TypeError, "A is a list"),
    ("A is a vector", lambda: act(A=nan(32)), ValueError, "A has 1 dimensions"),
    ("K", lambda: act(A=nan(16, 31)), ValueError, "do not multiply"),
    ("preact shape", lambda: act(preact_out=nan(16, 12)), ValueError, r"preact_out has shape \(16, 12\), expected \(16, 24\)"),
    ("postact shape", lambda: act(postact_out=nan(16, 24), activation="glu"), ValueError, r"expected \(16, 12\)"),
    ("postact type", lambda: act(postact_out=1), TypeError, "postact_out is a int"),
    ("both", lambda: act(preact_out=nan(16, 24), store_preact=False), ValueError, "store_preact is False: pass one"),
    ("dtypes", lambda: act(preact_out=nan(16, 24), out_dtype=torch.float32), ValueError, "out_dtype is torch.float32"),
    ("C shape", lambda: act(C=nan(24)), ValueError, "C has 1 dimensions"),
    ("bias shape", lambda: act(bias=nan(23)), ValueError, "bias has shape"),
    ("concat out", lambda: act(concat_layout=("out",)), UnsupportedGemm, "concat_layout names out.*logical order"),
    ("same outputs", lambda: act(preact_out=BUFFER[:384].view(16, 24), postact_out=BUFFER[8:392].view(16, 24)), ValueError,
     "postact_out overlaps out"),
    ("postact is C", lambda: act(C=BUFFER[:384].view(16, 24), postact_out=BUFFER[:384].view(16, 24)), ValueError,
     "postact_out overlaps C"),
    ("PreAct", lambda: dact(PreAct=None), TypeError, "PreAct is a NoneType"),
    ("PreAct shape", lambda: dact(PreAct=nan(16, 24)), ValueError, r"PreAct has shape \(16, 24\), expected \(16, 48\)"),
    ("PreAct fp32", lambda: dact(PreAct=nan(16, 48, dtype=torch.float32)), UnsupportedGemm, r"PreAct.bfloat16\(\)"),
    ("dx fp32", lambda: dact(out_dtype=torch.float32), UnsupportedGemm, "dx_out has dtype torch.float32"),
    ("PreAct M-major", lambda: dact(PreAct=nan(48, 16).mT), UnsupportedGemm, r"PreAct with strides.*PreAct.contiguous\(\)"),
    ("odd stride", lambda: dact(PreAct=nan(16, 49)[:, :48]), UnsupportedGemm, "no aligned 32-bit words"),
    ("odd address", lambda: dact(dx_out=BUFFER[1:769].view(16, 48)), UnsupportedGemm, "2 mod 16"),
    ("scale shape", lambda: dact(colvec_scale=nan(15)), ValueError, "colvec_scale has shape"),
    ("no postact", lambda: dact(postact_out=nan(16, 24), store_postact=False), ValueError, "store_postact is False"),
    ("reducing tile", lambda: quack.gemm_dact_tuned.fn(
        nan(16, 32), nan(32, 24), nan(16, 24), nan(16, 24), nan(16, 24), None, "silu", True, config=GemmConfig(128, 128, pingpong=True)
    ), UnsupportedGemm, "row reduction.*pingpong=False"),
]  # fmt: skip


@pytest.mark.parametrize("call, kind, message", [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
def test_refused(call, kind: type[Exception], message: str):
    with quack.emulator.use("sm90"), pytest.raises(kind, match=message):
        call()


# ---- configurations --------------------------------------------------------------------------------------------------


def test_ledger_rows_are_legal():
    for name, spec in (*activations(), *norms()):
        assert legality(spec).ok, f"{name} {spec.config}: {legality(spec).reason}"


@pytest.mark.parametrize("name", sorted({name for name, _ in activations() if "reduction" not in name}))
def test_large_problems_get_pingpong(name: str):
    """The epilogue is long, so it should be hidden."""
    spec = next(spec for row, spec in activations() if row == name and spec.config.pingpong)
    chosen = heuristics.choose(spec, GemmShape(8192, 14336, 4096), 132).config
    assert chosen.pingpong and chosen.tile_m == 128 and chosen.tile_n >= 128
