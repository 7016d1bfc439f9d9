"""`concat_layout` in the emulator; tests/gpu runs the same cases on hardware."""

import pytest

import quack
from tests.concat_cases import (
    ConcatCase,
    RaggedConcatCase,
    cases,
    launch,
    prepare,
    ragged_cases,
    run_and_verify_ragged,
    verify,
)
from tests.ragged_cases import RaggedOperands

SCHEDULES = pytest.mark.parametrize(
    "schedule, checks", [("eager", ()), ("latest", ("all",))], ids=["eager", "latest-checked"]
)


@SCHEDULES
@pytest.mark.parametrize("case", cases(), ids=str)
def test_against_reference(case: ConcatCase, schedule: str, checks: tuple[str, ...]):
    t, C = prepare(case, "cpu")
    with quack.emulator.use("sm90", schedule=schedule, checks=checks, sms=4):
        launch(case, t)
    verify(case, t, C)


@SCHEDULES
@pytest.mark.parametrize("case", ragged_cases(), ids=str)
def test_ragged_against_reference(case: RaggedConcatCase, schedule: str, checks: tuple[str, ...]):
    t = RaggedOperands(case.case, "cpu")
    with quack.emulator.use("sm90", schedule=schedule, checks=checks, sms=4):
        run_and_verify_ragged(case, t)
