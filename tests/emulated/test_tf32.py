"""fp32 inputs in the emulator, all checks on."""

import pytest
import torch

import quack
from quack import SplitKMode
from quack.activation import Activation, GatedActivation
from quack.gemm_config import GemmConfig
from tests.cases import Case, operands, poison
from tests.emulated.test_gemm import launch
from tests.grouped_cases import GroupedCase, GroupedOperands
from tests.grouped_cases import run as run_grouped
from tests.grouped_cases import verify as verify_grouped
from tests.ragged_cases import RaggedCase, RaggedOperands
from tests.ragged_cases import run as run_ragged
from tests.ragged_cases import verify as verify_ragged
from tests.reference import check, reference
from tests.split_cases import MODES, Run, SplitCase
from tests.tf32_cases import cases, exact_numbers, grouped_cases, ragged_cases, split_cases, tf32

SMS = 4


def emulated(schedule: str = "latest"):
    return quack.emulator.use("sm90", schedule=schedule, checks=("all",), sms=SMS)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_against_reference(case: Case):
    t = operands(case, "cpu")
    C = t.C.clone() if t.C is not None else None
    poison(t.out.buffer)
    if case.in_place and C is not None:
        t.out.tensor.copy_(C)
    with emulated():
        launch(case, t)
    check(case, t.out.tensor, reference(case, t, C))
    written = t.out.buffer.view(torch.uint8).view(t.out.buffer.numel(), -1) != 0xFF
    assert not (written.any(1) & t.out.outside()).any(), "elements outside the output were written"


@pytest.mark.parametrize("case", list(ragged_cases()), ids=str)
def test_ragged(case: RaggedCase):
    t = RaggedOperands(case, "cpu")
    with emulated():
        run_ragged(t)
    verify_ragged(t)


@pytest.mark.parametrize("case", list(grouped_cases()), ids=str)
def test_grouped(case: GroupedCase):
    t = GroupedOperands(case, "cpu")
    with emulated():
        run_grouped(t)
    verify_grouped(t)


@pytest.mark.parametrize("case", list(split_cases()), ids=str)
def test_split(case: SplitCase):
    mode = MODES[sum(str(case).encode()) % len(MODES)]
    run = Run(case, mode, "cpu")
    with emulated():
        run.launch()
    run.verify()


@pytest.mark.parametrize("a_major", ["k", "m"])
@pytest.mark.parametrize("config", [GemmConfig(128, 128, pingpong=True), GemmConfig(256, 64)], ids=str)
def test_random_schedules_give_the_same_bits(config: GemmConfig, a_major: str):
    """The registers of A are loaded while the tensor cores read their neighbours."""
    case = tf32("schedules", 300, 136, 136, a_major=a_major, config=config)
    t = operands(case, "cpu")
    results = set()
    for schedule in ("eager", "latest", *(f"random:{seed}" for seed in range(4))):
        poison(t.out.buffer)
        with emulated(schedule):
            launch(case, t)
        results.add(t.out.tensor.contiguous().view(torch.uint8).numpy().tobytes())
    assert len(results) == 1


def test_low_mantissa_bits_do_not_count():
    """1 + 2^-11 is 1 to the tensor cores, and 1 + 2^-10 is not."""
    A = torch.full((64, 32), 1 + 2.0**-11)
    B = torch.full((32, 64), 1 + 2.0**-10)
    with emulated():
        assert quack.gemm(A, B).eq(32 * (1 + 2.0**-10)).all()
        assert quack.gemm(B.mT, A.mT).eq(32 * (1 + 2.0**-10)).all()


@pytest.mark.parametrize("majors", ["kk", "mk", "kn"])
def test_the_heuristics_choose_and_default_to_an_fp32_output(majors: str):
    A, B = exact_numbers(100, 72, seed=1), exact_numbers(72, 136, seed=2)
    A = A if majors[0] == "k" else A.mT.contiguous().mT
    B = B if majors[1] == "n" else B.mT.contiguous().mT
    with emulated():
        out = quack.gemm(A, B)
    assert out.dtype is torch.float32
    torch.testing.assert_close(out.double(), A.double() @ B.double(), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("a_major", ["k", "m"])
def test_activations(a_major: str):
    """Every element against float64; tanh.approx is good to 2^-11."""
    A, B = exact_numbers(136, 72, seed=3), exact_numbers(200, 72, seed=4).mT
    A = A if a_major == "k" else A.mT.contiguous().mT
    exact = A.double() @ B.double()
    with emulated():
        preact, postact = quack.gemm_act(A, B, activation=Activation.GELU_TANH_APPROX, store_preact=True)
        _, gated = quack.gemm_gated(A, B, activation=GatedActivation.SWIGLU, store_preact=False)
        dx, _ = quack.gemm_dact(A, B, preact, activation=Activation.RELU, store_postact=False)[:2]
    assert {x.dtype for x in (preact, postact, gated, dx)} == {torch.float32}
    torch.testing.assert_close(preact.double(), exact, rtol=1e-6, atol=1e-4)
    gelu = torch.nn.functional.gelu(exact, approximate="tanh")
    torch.testing.assert_close(postact.double(), gelu, rtol=2e-3, atol=2e-3)
    gate, up = exact[:, ::2], exact[:, 1::2]
    torch.testing.assert_close(
        gated.double(), torch.nn.functional.silu(gate) * up, rtol=2e-3, atol=2e-3 * up.abs().max().item()
    )
    torch.testing.assert_close(dx.double(), exact * (preact > 0), rtol=1e-6, atol=1e-4)


def test_symmetric_and_reductions():
    A, B = exact_numbers(136, 72, seed=5), exact_numbers(136, 72, seed=6).mT
    with emulated():
        gram = quack.gemm_symmetric(A, A.mT)
        out, rstd = quack.gemm_rms(A, B)[:2]
    torch.testing.assert_close(gram.double(), A.double() @ A.double().mT, rtol=1e-6, atol=1e-4)
    assert torch.equal(gram, gram.mT)
    exact = A.double() @ B.double()
    torch.testing.assert_close(out.double(), exact, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(rstd.double(), (exact**2).mean(-1).add(1e-6).rsqrt(), rtol=1e-4, atol=0)


def test_every_split_mode_adds_all_parts():
    A, B = exact_numbers(72, 300, seed=7), exact_numbers(64, 300, seed=8).mT
    for mode in SplitKMode:
        with emulated():
            out = quack.gemm(A, B, split_k=None if mode is SplitKMode.STREAM else 3, split_k_mode=mode)
        torch.testing.assert_close(out.double(), A.double() @ B.double(), rtol=1e-6, atol=1e-4)
