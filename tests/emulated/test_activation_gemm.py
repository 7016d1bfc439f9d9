"""GEMMs with an activation in the epilogue, in the emulator."""

import pytest

import quack
from tests.epilogue_act_cases import ActCase, Backward, Forward, backward_cases, forward_cases

emulated = pytest.mark.parametrize("schedule, checks", [("latest", ("all",))], ids=["latest-checked"])


@pytest.mark.one_in(3)
@emulated
@pytest.mark.parametrize("case", forward_cases(), ids=str)
def test_forward(case: ActCase, schedule: str, checks: tuple[str, ...]):
    t = Forward(case, "cpu")
    with quack.emulator.use("sm90", schedule=schedule, checks=checks, sms=4):
        t.run()
    t.verify()


@pytest.mark.one_in(5)
@emulated
@pytest.mark.parametrize("case", backward_cases(), ids=str)
def test_backward(case: ActCase, schedule: str, checks: tuple[str, ...]):
    t = Backward(case, "cpu")
    with quack.emulator.use("sm90", schedule=schedule, checks=checks, sms=4):
        t.run()
    t.verify()


@pytest.mark.parametrize("name", ["silu", "swiglu"])
def test_gradient_in_place(name: str):
    t = Backward(ActCase(name), "cpu", in_place=True)
    with quack.emulator.use("sm90", schedule="latest", checks=("all",), sms=4):
        t.run()
    t.verify()
