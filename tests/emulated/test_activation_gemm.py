"""GEMMs with an activation in the epilogue, in the emulator."""

import pytest

import quack
from tests.epilogue_act_cases import ActCase, Forward, forward_cases

emulated = pytest.mark.parametrize("schedule, checks", [("latest", ("all",))], ids=["latest-checked"])


@emulated
@pytest.mark.parametrize("case", forward_cases(), ids=str)
def test_forward(case: ActCase, schedule: str, checks: tuple[str, ...]):
    t = Forward(case, "cpu")
    with quack.emulator.use("sm90", schedule=schedule, checks=checks, sms=4):
        t.run()
    t.verify()
