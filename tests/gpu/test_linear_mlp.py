"""Linear layers and MLPs on the GPU: every combination against float64, torch.compile, memory."""

import itertools

import pytest
import torch

import quack
from quack.activation import Activation, GatedActivation
from tests.linear_cases import (
    HALVES,
    LINEAR,
    POSTACT,
    WHOLE,
    LinearCase,
    forward,
    incoming,
    model,
    run,
    small_cases,
    verify,
)

PLAIN = [member.value for member in Activation]
GATED = [member.value for member in GatedActivation]
SIZE = {"rows": (3, 250), "in_features": 512, "hidden": 688, "out_features": 320}
BIG = {"rows": (4, 1024), "in_features": 1024, "hidden": 2816, "out_features": 1024}


def combinations() -> list[LinearCase]:
    """Every activation in every form, and every option with every other."""
    every = [
        LinearCase(form, activation, **SIZE, bias="bf16", recompute=recompute)
        for activation in PLAIN + GATED
        for form, recompute in ((HALVES, False), (POSTACT, False), (POSTACT, True), (WHOLE, False), (WHOLE, True))
    ]
    options = [
        LinearCase(WHOLE, activation, **SIZE, dtype=dtype, bias=bias, is_concat=concat, recompute=recompute, full=full)
        for dtype, full, recompute in itertools.product(("bf16", "fp16"), (False, True), (False, True))
        for bias in (None, dtype, "fp32")
        for activation, concat in (("silu", False), ("swiglu", False), ("swiglu", True))
    ]
    layers = [
        LinearCase(LINEAR, rows=rows, in_features=k, out_features=n, dtype=dtype, bias=bias, full=full)
        for rows, k, n in (
            ((), 256, 96),
            ((1,), 4096, 1024),
            ((7, 0), 64, 64),
            ((1000,), 1000, 1000),
            ((333,), 129, 77),
        )
        for dtype, bias, full in (("bf16", None, False), ("fp16", "fp16", False), ("bf16", "fp32", True))
    ]
    large = [
        LinearCase(WHOLE, "swiglu", **BIG, is_concat=True, recompute=True),
        LinearCase(WHOLE, "gelu_tanh_approx", **BIG, bias="bf16"),
        LinearCase(HALVES, "swiglu", **BIG),
    ]
    return [*small_cases(), *every, *options, *layers, *large]


@pytest.mark.parametrize("case", combinations(), ids=str)
def test_against_float64(case: LinearCase):
    t, dy = model(case, "cuda"), incoming(case, "cuda")
    first = run(case, t, dy)
    verify(case, t, dy, first)
    second = run(case, t, dy)
    for name, value in first.items():
        assert torch.equal(value, second[name]), f"{name} differs from run to run"


@pytest.mark.parametrize(
    "case",
    [
        LinearCase(LINEAR, **SIZE, bias="bf16"),
        LinearCase(LINEAR, **SIZE, full=True),
        LinearCase(HALVES, "gelu_tanh_approx", **SIZE, bias="bf16"),
        LinearCase(HALVES, "swiglu", **SIZE, is_concat=True),
        LinearCase(POSTACT, "silu", **SIZE, recompute=True),
        LinearCase(WHOLE, "swiglu", **SIZE, bias="bf16", full=True, is_concat=True),
        LinearCase(WHOLE, "geglu", **SIZE, recompute=True, dtype="fp16", bias="fp16"),
    ],
    ids=str,
)
@pytest.mark.hang_guard(400)
def test_torch_compile(case: LinearCase):
    """Captured as one graph by inductor, forward and backward."""
    torch._dynamo.reset()  # else sizes that differ from an earlier case become symbols
    t, dy = model(case, "cuda"), incoming(case, "cuda")
    results = run(case, t, dy, torch.compile(forward, fullgraph=True))
    verify(case, t, dy, results)


@pytest.mark.hang_guard(400)
def test_torch_compile_of_a_training_step():
    """Loss included, rows that change, both in one graph each."""
    module = quack.MLP(256, activation="swiglu", multiple_of=64, device="cuda", dtype=torch.bfloat16)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return module(x).float().square().mean()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    for rows in (128, 200, 72):
        x = torch.randn(rows, 256, device="cuda").bfloat16()
        found = []
        for function in (loss, compiled):
            module.zero_grad()
            function(x).backward()
            found.append([p.grad.clone() for p in module.parameters()])
        for eager, captured in zip(*found):
            torch.testing.assert_close(captured, eager, rtol=2e-2, atol=2e-2 * eager.abs().max().item())


@pytest.mark.parametrize("activation", ["gelu_tanh_approx", "swiglu"])
def test_recomputation_changes_no_result(activation: str):
    t = None
    results = []
    for recompute in (False, True):
        case = LinearCase(WHOLE, activation, **BIG, recompute=recompute)
        t = t or model(case, "cuda")
        results.append(run(case, t, incoming(case, "cuda")))
    for name, value in results[0].items():
        error = (value.double() - results[1][name].double()).norm() / value.double().norm()
        assert error < 2**-9, f"{name}: {error:.1e}"  # another tile may be chosen where preact is stored


def bytes_held_after_forward(recompute: bool) -> int:
    module = quack.MLP(512, 4096, activation="swiglu", device="cuda", dtype=torch.bfloat16, recompute=recompute)
    x = torch.randn(4096, 512, device="cuda").bfloat16()
    module(x).sum().backward()  # loads the kernels
    module.zero_grad()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    y = module(x)
    held = torch.cuda.memory_allocated() - before
    del y
    return held


def test_memory_between_forward_and_backward():
    """preact (4096, 8192) is all that is kept besides x and the result, and not even that with recomputation."""
    result, preact = 4096 * 512 * 2, 4096 * 8192 * 2
    slack = 1 << 20
    assert 0 <= bytes_held_after_forward(False) - result - preact < slack
    assert 0 <= bytes_held_after_forward(True) - result < slack


@pytest.mark.parametrize(
    "dtype, autocast", [(torch.bfloat16, False), (torch.float32, True)], ids=["bf16", "fp32-autocast"]
)
def test_fuse_grad_accum_allocates_no_gradient(dtype: torch.dtype, autocast: bool):
    module = quack.Linear(4096, 8192, device="cuda", dtype=dtype, fuse_grad_accum=True)
    x = torch.randn(256, 4096, device="cuda").bfloat16()

    def step() -> int:
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            loss = module(x).float().square().mean()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss.backward()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    step()  # makes .grad
    first, buffer = module.weight.grad.clone(), module.weight.grad.data_ptr()
    extra = step()
    size = module.weight.numel() * dtype.itemsize
    assert extra < 0.75 * size, f"{extra} bytes beside a gradient of {size}"  # loss.backward() itself takes half of it
    assert module.weight.grad.data_ptr() == buffer
    torch.testing.assert_close(module.weight.grad, 2 * first, rtol=2e-2, atol=1e-6)


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_inputs_that_are_not_contiguous(layout: str):
    case = LinearCase(WHOLE, "swiglu", rows=(96,), in_features=64, hidden=48, out_features=40)
    t, dy = model(case, "cuda"), incoming(case, "cuda")
    base = t["x"].detach()
    t["x"] = {
        "transposed": base.mT.contiguous().mT,
        "strided": torch.stack([base, base], -1)[..., 0],
        "expanded": base[:1].expand(96, 64),
    }[layout].requires_grad_()
    verify(case, t, dy.mT.contiguous().mT, run(case, t, dy.mT.contiguous().mT))


def test_a_module_used_twice():
    module = quack.Linear(256, 256, bias=True, device="cuda", dtype=torch.bfloat16)
    plain = torch.nn.Linear(256, 256, device="cuda", dtype=torch.float64)
    plain.load_state_dict(module.state_dict())
    x = torch.randn(64, 256, device="cuda").bfloat16()
    module(module(x)).sum().backward()
    plain(plain(x.double())).sum().backward()
    for ours, theirs in zip(module.parameters(), plain.parameters()):
        assert ((ours.grad.double() - theirs.grad).norm() / theirs.grad.norm()).item() < 1e-2


def test_one_step_in_a_cuda_graph():
    module = quack.MLP(
        256, activation="swiglu", multiple_of=64, device="cuda", dtype=torch.bfloat16, fuse_grad_accum=True
    )
    x = torch.randn(128, 256, device="cuda").bfloat16()

    def step() -> torch.Tensor:
        loss = module(x).float().square().mean()
        loss.backward()
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    for p in module.parameters():
        p.grad.zero_()
    expected = step().item()
    gradients = [p.grad.clone() for p in module.parameters()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    for p in module.parameters():
        p.grad.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert loss.item() == expected
    assert all(torch.equal(p.grad, g) for p, g in zip(module.parameters(), gradients))
