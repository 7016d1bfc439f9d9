"""Linear layers and MLP: wiring of forward and backward in float64, with plain torch in the place of the GEMMs; errors; defaults."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Optional

import pytest
import torch

import quack.linear as linear
import quack.mlp as mlp
from quack.activation import Activation, GatedActivation
from quack.activation_ref import reference
from quack.runtime.concat import interleaved, store_halves
from quack.runtime.spec import UnsupportedGemm

PLAIN = [member.value for member in Activation]
GATED = [member.value for member in GatedActivation]
X, W, BIAS, W2, BIAS2 = "x", "weight1", "bias1", "weight2", "bias2"


def activate(name: Optional[str], preact: torch.Tensor) -> torch.Tensor:
    """Plain torch, columns interleaved if gated."""
    if name in GATED:
        return reference(GatedActivation(name))(preact[..., 0::2], preact[..., 1::2])
    return reference(Activation(name))(preact)


class TorchGemms:
    """Stands in for the kernels, in any dtype; `calls` has the name of each."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def gemm(self, A, B, bias=None, out_dtype=None, tuned=True, concat_layout=None):
        return self._product("gemm", A, B, bias, out_dtype or A.dtype, concat_layout or ())

    def gemm_add_inplace(self, A, B, out, tuned=True, concat_layout=None):
        out += self._product("add", A, B, None, out.dtype, concat_layout or ())

    def gemm_act(self, A, B, bias=None, activation=None, store_preact=True, tuned=True, concat_layout=None):
        preact = self._product("act", A, B, bias, A.dtype, concat_layout or ())
        return preact if store_preact else None, activate(activation, preact)

    def gemm_dact(self, A, B, PreAct, activation=None, tuned=True, store_postact=True):
        postact, pull_back = torch.func.vjp(lambda p: activate(activation, p), PreAct)
        return pull_back(self._product("dact", A, B, None, A.dtype, ()))[0], postact if store_postact else None

    def _product(self, kind, A, B, bias, dtype, names) -> torch.Tensor:
        if not torch.compiler.is_compiling():  # which allows no side effects
            self.calls.append(kind)
        if "B" in names:
            B = interleaved("B", B)
        product = A @ B
        if bias is not None:
            product = product + (interleaved("bias", bias) if "bias" in names else bias)
        product = product.to(dtype)
        return store_halves(torch.empty_like(product), product) if "out" in names else product


@pytest.fixture
def gemms(monkeypatch) -> Iterator[TorchGemms]:
    stand_in = TorchGemms()
    monkeypatch.setattr(linear, "gemm", stand_in.gemm)
    monkeypatch.setattr(linear, "gemm_add_inplace", stand_in.gemm_add_inplace)
    for name in ("gemm_act", "gemm_gated"):
        monkeypatch.setattr(linear, name, stand_in.gemm_act)
    for name in ("gemm_dact", "gemm_dgated"):
        monkeypatch.setattr(linear, name, stand_in.gemm_dact)
    monkeypatch.setattr(linear, "OPERAND_DTYPES", (*linear.OPERAND_DTYPES, torch.float64))
    yield stand_in


def numbers(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64).div(shape[-1] ** 0.5).to(dtype).requires_grad_()


def operands(activation: Optional[str], rows: tuple[int, ...] = (2, 3), hidden: int = 4) -> dict[str, torch.Tensor]:
    """x (*rows, 5) and the parameters of an MLP with 3 outputs."""
    width = hidden * (2 if activation in GATED else 1)
    shapes = {X: (*rows, 5), W: (width, 5), BIAS: (width,), W2: (3, hidden), BIAS2: (3,)}
    return {name: numbers(*shape) for name, shape in shapes.items()}


def halves_to_pairs(parameter: torch.Tensor, is_concat: bool) -> torch.Tensor:
    return parameter.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1) if is_concat else parameter


def plain_mlp(t: dict[str, torch.Tensor], activation: Optional[str], is_concat: bool = False) -> torch.Tensor:
    """The same in plain torch."""
    weight, bias = halves_to_pairs(t[W], is_concat), halves_to_pairs(t[BIAS], is_concat)
    hidden = activate(activation, torch.nn.functional.linear(t[X], weight, bias))
    return torch.nn.functional.linear(hidden, t[W2], t[BIAS2])


def both_halves(t: dict[str, torch.Tensor], activation: Optional[str], is_concat: bool = False) -> torch.Tensor:
    """The two functions an MLP can be written with."""
    if activation in GATED:
        preact, x = linear.linear_gated_func(t[X], t[W], activation, t[BIAS], concat_layout=is_concat)
        return linear.gated_linear_func(preact, t[W2], x, activation, bias=t[BIAS2])
    preact, x = linear.linear_act_func(t[X], t[W], activation, t[BIAS])
    return linear.act_linear_func(preact, t[W2], x, activation, bias=t[BIAS2])


def whole(t: dict[str, torch.Tensor], activation: Optional[str], is_concat: bool = False, recompute: bool = False):
    return mlp.mlp_func(
        t[X], t[W], t[W2], activation, recompute=recompute, concat_layout=is_concat, bias1=t[BIAS], bias2=t[BIAS2]
    )


def assert_same_gradients(
    function: Callable[..., torch.Tensor], expected: Callable[..., torch.Tensor], t: dict[str, torch.Tensor]
) -> None:
    """Results, and gradients of all that require them, on a random incoming gradient."""
    y, exact = function(t), expected(t)
    torch.testing.assert_close(y, exact)
    dy = torch.randn_like(exact)
    needing = [tensor for tensor in t.values() if tensor.requires_grad]
    got, wanted = (torch.autograd.grad(result, needing, dy) for result in (y, exact))
    for name, g, w in zip((n for n in t if t[n].requires_grad), got, wanted):
        torch.testing.assert_close(g, w, msg=lambda message, name=name: f"gradient of {name}: {message}")


@pytest.mark.parametrize("activation", [*PLAIN, *GATED], ids=str)
@pytest.mark.parametrize("form", [both_halves, whole], ids=lambda f: f.__name__)
def test_mlp_is_that_of_torch(gemms: TorchGemms, form: Callable, activation: Optional[str]):
    layouts = (False, True) if activation in GATED else (False,)
    for is_concat in layouts:
        t = operands(activation)
        assert_same_gradients(
            partial(form, activation=activation, is_concat=is_concat),
            partial(plain_mlp, activation=activation, is_concat=is_concat),
            t,
        )
    assert "dact" in gemms.calls


@pytest.mark.parametrize("activation", ["silu", "swiglu"])
def test_gradcheck(gemms: TorchGemms, activation: str):
    t = operands(activation)
    for form in (both_halves, whole):
        assert torch.autograd.gradcheck(lambda *a, form=form: form(dict(zip(t, a)), activation), tuple(t.values()))


@pytest.mark.parametrize("store_preact", [True, False])
@pytest.mark.parametrize("activation", ["gelu_tanh_approx", "geglu"])
def test_postact_has_a_gradient_of_its_own(gemms: TorchGemms, activation: str, store_preact: bool):
    """Used by anything else than act_linear_func, alone or beside it."""
    t = operands(activation)

    def function(t):
        preact, x = linear.linear_act_func(t[X], t[W], activation, t[BIAS], store_preact)
        assert (preact is None) != store_preact
        y = linear.linear_func(x, t[W2], t[BIAS2])
        return y if preact is None else y + linear.act_linear_func(preact, t[W2], x, activation, bias=t[BIAS2])

    assert_same_gradients(function, lambda t: (1 + store_preact) * plain_mlp(t, activation), t)


def test_preact_may_be_used_alone(gemms: TorchGemms):
    t = {name: tensor for name, tensor in operands("silu").items() if name in (X, W, BIAS)}
    assert_same_gradients(
        lambda t: linear.linear_act_func(t[X], t[W], "silu", t[BIAS])[0],
        lambda t: torch.nn.functional.linear(t[X], t[W], t[BIAS]),
        t,
    )


def test_x_of_act_linear_func_has_no_gradient(gemms: TorchGemms):
    preact, x, weight = numbers(3, 4), numbers(3, 4), numbers(5, 4)
    linear.act_linear_func(preact, weight, x, "silu").sum().backward()
    assert x.grad is None and preact.grad is not None and weight.grad is not None


@pytest.mark.parametrize("rows", [(), (1,), (0,), (4, 0), (6,), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("activation", ["relu_sq", "reglu"])
def test_leading_dimensions(gemms: TorchGemms, activation: str, rows: tuple[int, ...]):
    for form in (both_halves, whole):
        t = operands(activation, rows)
        assert form(t, activation).shape == (*rows, 3)
        assert_same_gradients(lambda t, form=form: form(t, activation), lambda t: plain_mlp(t, activation), t)


SUBSETS = [subset for size in range(1, 6) for subset in itertools.combinations((X, W, BIAS, W2, BIAS2), size)]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("needed", SUBSETS, ids="-".join)
def test_only_what_requires_a_gradient_is_computed(gemms: TorchGemms, needed: tuple[str, ...], recompute: bool):
    t = operands("swiglu")
    for name, tensor in t.items():
        tensor.requires_grad_(name in needed)
    inner = bool({X, W, BIAS} & set(needed))
    again = recompute and (inner or W2 in needed)
    backward = again + inner + sum(name in needed for name in (X, W, W2))

    y = whole(t, "swiglu", recompute=recompute)
    assert gemms.calls == ["act", "gemm"]
    y.sum().backward()
    assert len(gemms.calls) == 2 + backward
    assert gemms.calls.count("dact") == inner
    assert [name for name in t if t[name].grad is not None] == [name for name in t if name in needed]
    if not recompute:
        for tensor in t.values():
            tensor.grad = None
        del gemms.calls[:]
        both_halves(t, "swiglu").sum().backward()
        assert len(gemms.calls) == 2 + backward
    assert_same_gradients(lambda t: whole(t, "swiglu", recompute=recompute), lambda t: plain_mlp(t, "swiglu"), t)


@pytest.mark.parametrize("needed", [s for s in SUBSETS if set(s) <= {X, W, BIAS}], ids="-".join)
def test_linear_computes_only_what_requires_a_gradient(gemms: TorchGemms, needed: tuple[str, ...]):
    t = {name: tensor.requires_grad_(name in needed) for name, tensor in operands(None).items() if name in (X, W, BIAS)}
    y = linear.linear_func(t[X], t[W], t[BIAS])
    saved = [tensor for tensor in y.grad_fn.saved_tensors if tensor is not None] if y.dim() == 2 else None
    assert saved is None or len(saved) == len({X, W} & set(needed))
    y.sum().backward()
    assert len(gemms.calls) == 1 + len({X, W} & set(needed))
    assert_same_gradients(
        lambda t: linear.linear_func(t[X], t[W], t[BIAS]), lambda t: torch.nn.functional.linear(t[X], t[W], t[BIAS]), t
    )


def saved_bytes(function: Callable[[], torch.Tensor], parameters: list[torch.Tensor]) -> int:
    """Of the tensors kept for backward that are not parameters."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if all(storage.data_ptr() != p.untyped_storage().data_ptr() for p in parameters):
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    assert result.requires_grad
    return sum(kept.values())


def test_what_is_kept_for_backward(gemms: TorchGemms):
    """The table in the docstring: one hidden activation without recomputation, none with."""
    t = operands("swiglu", (32,), 16)
    parameters = [t[name] for name in (W, BIAS, W2, BIAS2)]
    x_bytes, preact_bytes, postact_bytes = (32 * columns * 8 for columns in (5, 32, 16))
    assert saved_bytes(lambda: whole(t, "swiglu"), parameters) == x_bytes + preact_bytes
    assert saved_bytes(lambda: whole(t, "swiglu", recompute=True), parameters) == x_bytes
    assert saved_bytes(lambda: both_halves(t, "swiglu"), parameters) == x_bytes + preact_bytes
    for name in (X, W, BIAS):
        t[name].requires_grad_(False)
    assert saved_bytes(lambda: whole(t, "swiglu"), parameters) == postact_bytes
    assert saved_bytes(lambda: whole(t, "swiglu", recompute=True), parameters) == x_bytes


def test_inference_writes_no_preactivation(gemms: TorchGemms, monkeypatch):
    stored = []
    original = gemms.gemm_act

    def recorded(*arguments, store_preact=True, **options):
        stored.append(store_preact)
        return original(*arguments, store_preact=store_preact, **options)

    monkeypatch.setattr(linear, "gemm_gated", recorded)
    t = operands("swiglu")
    with torch.no_grad():
        whole(t, "swiglu")
    whole(t, "swiglu")
    for name in (X, W, BIAS):
        t[name].requires_grad_(False)
    whole(t, "swiglu")  # only the second layer learns: its input is kept instead
    assert stored == [False, True, False]


@pytest.mark.parametrize("is_concat", [False, True])
def test_fuse_grad_accum_adds_in_place(gemms: TorchGemms, is_concat: bool):
    t = operands("swiglu")

    def step() -> None:
        y = mlp.mlp_func(t[X], t[W], t[W2], "swiglu", True, concat_layout=is_concat, bias1=t[BIAS], bias2=t[BIAS2])
        y.sum().backward()

    step()
    assert "add" not in gemms.calls, "there was no .grad to add to"
    first = {name: t[name].grad.clone() for name in t}
    buffers = {name: t[name].grad.data_ptr() for name in (W, W2)}
    del gemms.calls[:]
    step()
    assert gemms.calls.count("add") == 2
    for name in t:
        torch.testing.assert_close(t[name].grad, 2 * first[name])
    assert buffers == {name: t[name].grad.data_ptr() for name in (W, W2)}


def test_fuse_grad_accum_of_a_weight_used_twice(gemms: TorchGemms):
    x, weight = numbers(3, 4), numbers(4, 4)

    def loss(project: Callable) -> torch.Tensor:
        return project(project(x, weight), weight).square().sum()

    (exact,) = torch.autograd.grad(loss(torch.nn.functional.linear), weight)
    for times in (1, 2, 3):
        loss(lambda x, w: linear.linear_func(x, w, fuse_grad_accum=True)).backward()
        torch.testing.assert_close(weight.grad, times * exact)
    assert gemms.calls.count("add") == 4


def test_fuse_grad_accum_leaves_other_tensors_alone(gemms: TorchGemms):
    """A weight that is computed has no .grad to add to."""
    x, base = numbers(3, 4), numbers(5, 4)
    for _ in range(2):
        linear.linear_func(x, 2 * base, fuse_grad_accum=True).sum().backward()
    torch.testing.assert_close(base.grad, 4 * x.detach().sum(0).expand(5, 4))
    assert "add" not in gemms.calls


def test_incoming_gradients_of_any_layout(gemms: TorchGemms):
    """`sum` hands back an expanded scalar, a transpose a column-major gradient; both must reach the GEMM with a unit stride."""
    strides = []
    original = gemms.gemm

    def recorded(A, B, **options):
        strides.append((A.stride(), B.stride()))
        return original(A, B, **options)

    linear.gemm = recorded  # the fixture restores it
    x, weight = numbers(6, 4), numbers(5, 4)
    linear.linear_func(x, weight).sum().backward()
    (linear.linear_func(x, weight).mT.contiguous() * torch.randn(5, 6, dtype=torch.float64)).sum().backward()
    linear.linear_func(x[::2, ::2], weight[:, ::2]).mean(0).sum().backward()
    linear.linear_func(x[:1].expand(6, 4), weight).sum().backward()
    assert all(1 in stride and 0 not in stride for pair in strides for stride in pair)


def test_results_may_be_changed_in_place(gemms: TorchGemms):
    """As those of torch.nn.functional.linear: they are no views of something hidden."""
    x, weight = numbers(2, 3, 4), numbers(5, 4)
    y = linear.linear_func(x, weight)
    y += 1
    y.relu_()
    y.sum().backward()
    assert x.grad is not None


def test_second_derivatives_are_refused(gemms: TorchGemms):
    x, weight = numbers(3, 4), numbers(5, 4)
    (dx,) = torch.autograd.grad(linear.linear_func(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_autocast_converts_operands_and_keeps_gradients_in_full(gemms: TorchGemms):
    module = quack_mlp(activation="swiglu", bias1=True, bias2=True)
    x = numbers(6, 5, dtype=torch.float32)
    seen = []
    original = gemms._product

    def recorded(kind, A, B, bias, dtype, names):
        seen.append((kind, A.dtype, B.dtype, dtype))
        return original(kind, A, B, None if bias is None else bias.to(A.dtype), dtype, names)

    gemms._product = recorded
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    low, full = torch.bfloat16, torch.float32
    assert seen[:3] == [("act", low, low, low), ("gemm", low, low, low), ("dact", low, low, low)]
    assert seen[3:] == [("gemm", low, low, full)] * 3
    assert all(tensor.grad.dtype == full for tensor in (x, *module.parameters()))


def quack_mlp(**options) -> mlp.MLP:
    torch.manual_seed(0)
    return mlp.MLP(5, 4, 3, **options)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("activation, is_concat", [("silu", False), ("swiglu", False), ("swiglu", True)])
def test_modules_hand_their_parameters_on(gemms: TorchGemms, activation: str, is_concat: bool, recompute: bool):
    module = quack_mlp(
        activation=activation, bias1=True, bias2=True, dtype=torch.float64, recompute=recompute, concat_layout=is_concat
    )
    parameters = dict(zip((W, BIAS, W2, BIAS2), module.parameters()))
    assert list(dict(module.named_parameters())) == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    t = {X: numbers(2, 3, 5), **parameters}
    assert_same_gradients(lambda t: module(t[X]), lambda t: plain_mlp(t, activation, is_concat), t)


def test_linear_module_is_that_of_torch(gemms: TorchGemms):
    ours, theirs = linear.Linear(5, 4, bias=True, dtype=torch.float64), torch.nn.Linear(5, 4, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    x = numbers(2, 3, 5)
    torch.testing.assert_close(ours(x), theirs(x))
    assert linear.Linear(5, 4).bias is None
    assert linear.Linear(5, 4, fuse_grad_accum=True).fuse_grad_accum


def test_fused_module_accumulates(gemms: TorchGemms):
    module, x = linear.Linear(5, 4, dtype=torch.float64, fuse_grad_accum=True), numbers(3, 5)
    for _ in range(3):
        module(x).sum().backward()
    torch.testing.assert_close(module.weight.grad, 3 * x.detach().sum(0).expand(4, 5))
    assert gemms.calls.count("add") == 2


def test_default_extents():
    def shapes(*arguments, **options) -> tuple[tuple[int, ...], tuple[int, ...]]:
        module = mlp.MLP(*arguments, device="meta", **options)
        return tuple(module.fc1.weight.shape), tuple(module.fc2.weight.shape)

    assert shapes(96) == ((384, 96), (96, 384))
    assert shapes(96, activation="swiglu") == ((512, 96), (96, 256))
    assert shapes(100, activation="swiglu", multiple_of=128) == ((768, 100), (100, 384))
    assert shapes(96, 100, 32, activation=None, multiple_of=64) == ((128, 96), (32, 128))


@pytest.mark.parametrize("form", ["linear", "act", "mlp", "recompute"])
def test_torch_compile_captures_one_graph(gemms: TorchGemms, form: str):
    """Forward and backward; the GEMMs are plain torch here, tests/emulated compiles the opaque ops."""
    t = operands("swiglu")
    functions = {
        "linear": lambda t: linear.linear_func(t[X], t[W], t[BIAS], True),
        "act": lambda t: both_halves(t, "swiglu", True),
        "mlp": lambda t: whole(t, "swiglu", True),
        "recompute": lambda t: whole(t, "swiglu", True, recompute=True),
    }
    used = dict(list(t.items())[:3]) if form == "linear" else t
    compiled = torch.compile(functions[form], fullgraph=True, backend="aot_eager")
    assert_same_gradients(compiled, functions[form], used)


def test_compiled_code_returns_gradients_that_eager_code_adds_in_place(gemms: TorchGemms):
    x, weight = numbers(3, 4), numbers(5, 4)

    def project(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return linear.linear_func(x, weight, fuse_grad_accum=True)

    compiled = torch.compile(project, fullgraph=True, backend="aot_eager")
    for times, function in enumerate((compiled, compiled, project, compiled), 1):
        function(x, weight).sum().backward()
        torch.testing.assert_close(weight.grad, times * x.detach().sum(0).expand(5, 4))


# What is refused -----------------------------------------------------------------------------------------------------


def half(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).bfloat16()


REFUSED = {
    "x is no tensor": (
        lambda: linear.linear_func([1.0], half(4, 5)),
        TypeError,
        "x is a list, expected a torch.Tensor",
    ),
    "weight is no tensor": (lambda: linear.linear_func(half(3, 5), None), TypeError, "weight is a NoneType"),
    "bias is no tensor": (lambda: linear.linear_func(half(3, 5), half(4, 5), 1.0), TypeError, "bias is a float"),
    "in_features": (
        lambda: linear.linear_func(half(3, 4), half(4, 5)),
        ValueError,
        r"x has shape \(3, 4\) and weight \(4, 5\): the last dimension of x must be in_features = 5",
    ),
    "scalar x": (lambda: linear.linear_func(torch.tensor(1.0).bfloat16(), half(4, 5)), ValueError, r"x has shape \(\)"),
    "3-D weight": (lambda: linear.linear_func(half(3, 5), half(2, 4, 5)), ValueError, r"weight has shape \(2, 4, 5\)"),
    "bias extent": (
        lambda: linear.linear_func(half(3, 5), half(4, 5), half(5)),
        ValueError,
        r"bias has shape \(5,\), expected \(4,\)",
    ),
    "mixed dtypes": (
        lambda: linear.linear_func(half(3, 5), half(4, 5).half()),
        ValueError,
        "x has dtype torch.bfloat16 and weight has dtype torch.float16: .*autocast",
    ),
    "fp64": (
        lambda: linear.linear_func(half(3, 5).double(), half(4, 5).double()),
        UnsupportedGemm,
        "x has dtype torch.float64.*autocast",
    ),
    "unknown activation": (
        lambda: linear.linear_act_func(half(3, 5), half(4, 5), "swish"),
        ValueError,
        "activation is 'swish', expected one of .*'silu'.*'swiglu'",
    ),
    "not gated": (
        lambda: linear.linear_gated_func(half(3, 5), half(4, 5), "silu"),
        ValueError,
        "'silu' is not gated",
    ),
    "odd gated": (
        lambda: linear.linear_gated_func(half(3, 5), half(5, 5), "swiglu"),
        ValueError,
        "weight has 5 rows, expected an even number: 'swiglu' combines pairs",
    ),
    "no preact": (
        lambda: linear.act_linear_func(None, half(4, 5), half(3, 5), "silu"),
        TypeError,
        "preact is a NoneType, .*store_preact=True",
    ),
    "gated preact": (
        lambda: linear.gated_linear_func(half(3, 5), half(4, 5), half(3, 5), "swiglu"),
        ValueError,
        r"preact has shape \(3, 5\), expected \(3, 10\)",
    ),
    "concat without gate": (
        lambda: mlp.mlp_func(half(3, 5), half(4, 5), half(6, 4), "silu", concat_layout=True),
        ValueError,
        "concat_layout needs a gated activation, .* activation is 'silu'",
    ),
    "odd gated mlp": (
        lambda: mlp.mlp_func(half(3, 5), half(5, 5), half(6, 2), "glu"),
        ValueError,
        "weight1 has 5 rows",
    ),
    "hidden": (
        lambda: mlp.mlp_func(half(3, 5), half(8, 5), half(6, 8), "swiglu"),
        ValueError,
        r"weight2 has shape \(6, 8\), expected \(out_features, 4\)",
    ),
    "mlp in_features": (
        lambda: mlp.mlp_func(half(3, 4), half(8, 5), half(6, 8), None),
        ValueError,
        r"x has shape \(3, 4\) and weight1 \(8, 5\)",
    ),
    "mlp bias2": (
        lambda: mlp.mlp_func(half(3, 5), half(8, 5), half(6, 8), None, bias2=half(5)),
        ValueError,
        r"bias2 has shape \(5,\), expected \(6,\)",
    ),
    "mlp dtypes": (
        lambda: mlp.mlp_func(half(3, 5), half(8, 5), half(6, 8).half(), None),
        ValueError,
        "weight2 has dtype torch.float16",
    ),
    "module concat": (lambda: mlp.MLP(8, concat_layout=True), ValueError, "concat_layout needs a gated activation"),
    "module multiple": (lambda: mlp.MLP(8, multiple_of=0), ValueError, "multiple_of is 0"),
    "module activation": (lambda: mlp.MLP(8, activation="gelu"), ValueError, "activation is 'gelu', expected one of"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(launches, name: str):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()
    assert launches == []
