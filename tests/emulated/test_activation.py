"""Device activations against float64 and torch.autograd, correctly rounded and as bad as the PTX ISA allows."""

import re
import weakref

import numpy as np
import pytest
import torch

from quack.activation import Activation, GatedActivation
from quack.emulator import floatmath, launching
from tests.emulated import activation_sweep as sweeps
from tests.emulated.activation_sweep import ALL, BackwardSweep, ForwardSweep, Outputs, off_by

NAMES = [str(activation.value) for activation in ALL]
EACH = pytest.mark.parametrize("activation", ALL, ids=NAMES)
# Signs of the errors of ex2 (2 ulp), rcp (1 ulp) and tanh (2^-11 relative).
HARDWARE = [(0, 0, 0), (1, 1, 1), (1, -1, -1), (-1, 1, 1), (-1, -1, -1)]


@pytest.fixture(scope="module", params=HARDWARE, ids=lambda signs: "ex2{:+}_rcp{:+}_tanh{:+}".format(*signs))
def results(request):
    """x, u, dy and what the device makes of them, with special functions that err as the parameter says."""
    ex2, rcp, tanh = request.param
    wrong = {
        "ex2": off_by(np.exp2, ulps=2 * ex2),
        "rcp": off_by(np.reciprocal, ulps=rcp),
        "tanh": off_by(np.tanh, ulps=0, relative=tanh * 2.0**-11),
    }
    x = sweeps.sweep()
    u, dy = sweeps.companions(x)
    with pytest.MonkeyPatch.context() as patch:
        for name, function in wrong.items():
            patch.setitem(floatmath.APPROXIMATIONS, name, function)
        patch.setattr(launching, "_programs", weakref.WeakKeyDictionary())  # what was built from the functions before
        floatmath.operation.cache_clear()
        outputs = sweeps.evaluate(x, u, dy)
    floatmath.operation.cache_clear()
    return x, u, dy, outputs


@EACH
def test_values_and_gradients(results, activation):
    x, u, dy, outputs = results
    for check in sweeps.checks(activation, outputs[activation], x, u, dy):
        error = (check.result.double() - check.exact).abs()
        wrong = ~(error <= check.allowed) & check.representable()
        worst = [f"x={x[i]} got {check.result[i]} exact {check.exact[i]}" for i in wrong.nonzero()[:5]]
        assert not wrong.any(), f"{check.what}: {int(wrong.sum())} wrong, {worst}"
        overflows = ~check.representable() & (check.exact.abs() > 3.41e38)
        assert torch.equal(check.result[overflows].double(), check.exact[overflows].sign() * float("inf"))


@EACH
def test_recomputed_value_has_the_forwards_bits(results, activation):
    output = results[3][activation]
    assert torch.equal(output.value.view(torch.int32), output.post.view(torch.int32))


def test_slopes_in_the_tails(results):
    """Where float64 autograd has lost the digits of 1 - s and 1 - tanh^2: both slopes have closed forms."""
    x, _, dy, outputs = results
    away = (x.abs() > 10) & (x.abs() < 40)
    positive, dy = x[away].double().abs(), dy[away].double()
    for activation, slope in [
        (Activation.SIGMOID, torch.sigmoid(positive) * torch.sigmoid(-positive)),
        (Activation.TANH, positive.cosh() ** -2),
    ]:
        dx = outputs[activation].gradients[0][away].double()
        assert ((dx - dy * slope).abs() <= 2.0**-16 * (dy * slope).abs()).all()


def test_the_adversary_is_heard(results, request):
    """An exact emulator would pass the others whatever the bounds; tanh must be off by what it was made off by."""
    x, _, _, outputs = results
    relative = outputs[Activation.TANH].value.double() / x.double().tanh() - 1
    sign = request.node.callspec.params["results"][2]
    assert torch.all((relative[x.abs() > 1e-30] - sign * 2.0**-11).abs() < 2.0**-22)


@pytest.fixture(scope="module")
def at_limits() -> dict[str, dict[object, Outputs]]:
    """By x: -inf, inf, NaN, each with u = 2 and dy = 3."""
    x = torch.full((sweeps.sweep().numel(),), -1.0)  # the sweep's size, so that nothing is compiled again
    x[:3] = torch.tensor([-torch.inf, torch.inf, torch.nan])
    outputs = sweeps.evaluate(x, torch.full_like(x, 2.0), torch.full_like(x, 3.0))
    return {
        name: {a: Outputs(o.value[i], tuple(g[i] for g in o.gradients), o.post[i]) for a, o in outputs.items()}
        for i, name in enumerate(["-inf", "inf", "nan"])
    }


INF = float("inf")
LIMITS = {  # value and slope at -inf, at inf
    Activation.IDENTITY: ((-INF, 1), (INF, 1)),
    Activation.RELU: ((0, 0), (INF, 1)),
    Activation.RELU_SQ: ((0, 0), (INF, INF)),
    Activation.GELU_TANH_APPROX: ((0, 0), (INF, 1)),
    Activation.SILU: ((0, 0), (INF, 1)),
    Activation.TANH: ((-1, 0), (1, 0)),
    Activation.SIGMOID: ((0, 0), (1, 0)),
}


@EACH
def test_infinities(at_limits, activation):
    """du = 3 f(g), dg = 3 u f'(g), and u + 1 for u with swiglu_oai."""
    inner = sweeps.INNER.get(activation, activation)
    up = {GatedActivation.SWIGLU_OAI: 3}.get(activation, 2 if isinstance(activation, GatedActivation) else 1)
    for where, (value, slope) in zip(("-inf", "inf"), LIMITS[inner]):
        got = at_limits[where][activation]
        assert got.value.item() == got.post.item() == value * up, where
        assert [g.item() for g in got.gradients] == [3 * up * slope, 3 * value][: len(got.gradients)], where


@EACH
def test_nan_stays_nan(at_limits, activation):
    """The slope of relu is 0 there."""
    got = at_limits["nan"][activation]
    assert got.value.isnan() and got.post.isnan()


def instructions(kernel: type, arguments: int, rows: int) -> list[str]:
    """Opcodes of the kernel's PTX."""
    function = sweeps.compiled(kernel, arguments, rows, sweeps.sweep().numel(), False)
    return re.findall(r"^\s+(?:@!?%p\d+ )?([a-z][\w.:]*)\b", function.__ptx__, re.MULTILINE)


@pytest.mark.parametrize(
    ("kernel", "arguments", "rows", "tanh", "pairs"),
    # Each pair is shared: gelu, geglu | silu, swiglu (backwards also sigmoid, glu) | sigmoid, glu | swiglu_oai | dtanh.
    [(ForwardSweep, 2, len(ALL), 1, 4), (BackwardSweep, 3, sweeps.BACKWARD_ROWS, 1, 4)],
    ids=["forward", "backward"],
)
def test_no_branches_and_no_other_special_functions(kernel, arguments, rows, tanh, pairs):
    found = instructions(kernel, arguments, rows)
    special = sorted(name for name in found if ".approx" in name)
    assert special == ["ex2.approx.ftz.f32"] * pairs + ["rcp.approx.ftz.f32"] * pairs + ["tanh.approx.f32"] * tanh
    assert "st.global.b32" in found and not {"bra", "bra.uni", "call", "call.uni"} & set(found)
    assert not [name for name in found if name.startswith(("div", "sqrt"))]
