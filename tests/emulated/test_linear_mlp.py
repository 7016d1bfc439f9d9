"""Linear layers and MLPs in the emulator; tests/gpu runs the same cases, and larger ones, on hardware."""

import pytest
import torch

import quack
from tests.linear_cases import HALVES, LINEAR, WHOLE, LinearCase, forward, incoming, model, run, small_cases, verify

EMULATED = {"schedule": "latest", "checks": ("all",), "sms": 4}


@pytest.mark.parametrize("case", small_cases(), ids=str)
def test_against_float64(case: LinearCase):
    t, dy = model(case, "cpu"), incoming(case, "cpu")
    with quack.emulator.use("sm90", **EMULATED):
        results = run(case, t, dy)
    verify(case, t, dy, results)


@pytest.mark.parametrize("is_concat", [False, True])
def test_fuse_grad_accum(is_concat: bool):
    """Three steps into one .grad, in place."""
    module = quack.MLP(
        64, 48, 40, bias1=True, activation="swiglu", dtype=torch.bfloat16, fuse_grad_accum=True, concat_layout=is_concat
    )
    plain = quack.MLP(64, 48, 40, bias1=True, activation="swiglu", dtype=torch.bfloat16, concat_layout=is_concat)
    plain.load_state_dict(module.state_dict())
    addresses = []
    with quack.emulator.use("sm90", **EMULATED):
        for _ in range(3):
            x = torch.randn(24, 64).bfloat16()
            for either in (module, plain):
                either(x).float().square().sum().backward()
            addresses.append([p.grad.data_ptr() for p in (module.fc1.weight, module.fc2.weight)])
    assert addresses[0] == addresses[1] == addresses[2]
    for ours, theirs in zip(module.parameters(), plain.parameters()):
        error = (ours.grad.float() - theirs.grad.float()).norm() / theirs.grad.float().norm()
        assert 0 < theirs.grad.float().norm() and error < 2**-8, "rounded once a step less than by autograd"


@pytest.mark.parametrize(
    "case",
    [
        LinearCase(LINEAR, rows=(2, 36), bias="bf16"),
        LinearCase(HALVES, "silu"),
        LinearCase(WHOLE, "swiglu", bias="bf16", full=True, is_concat=True),
        LinearCase(WHOLE, "swiglu", recompute=True, dtype="fp16", bias="fp16"),
    ],
    ids=str,
)
def test_torch_compile(case: LinearCase):
    """One graph forward and one backward, through the opaque ops, to the last bit as without."""
    t, dy = model(case, "cpu"), incoming(case, "cpu")
    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    with quack.emulator.use("sm90", sms=4):
        eager, captured = run(case, t, dy), run(case, t, dy, compiled)
    for name, value in eager.items():
        assert torch.equal(value, captured[name]), name


def test_torch_compile_of_a_loss_expands_a_scalar():
    """Inside one graph the gradient arrives with strides of 0, which no GEMM reads."""
    case = LinearCase(LINEAR)
    t = model(case, "cpu")

    def loss() -> torch.Tensor:
        return forward(case, t).float().mean(0).sum()

    with quack.emulator.use("sm90", sms=4):
        eager = torch.autograd.grad(loss(), list(t.values()))
        captured = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(), list(t.values()))
    assert all(map(torch.equal, eager, captured))
