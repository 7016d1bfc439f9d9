"""The lists of cases that every arch kernel is tested with, and how one is run: of each adapter, commit policy and mixin.

tests/emulated/test_sm100.py and test_sm120.py run them in the emulator with tiles that those have, tests/gpu/test_sm120.py with
GemmSm120 on a Hopper GPU, tests/gpu/sanitize.py under the sanitizer. A new list gets an entry here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

import pytest
import torch

from quack import SplitKMode
from quack.gemm_config import GemmConfig
from quack.runtime.spec import UnsupportedGemm
from tests import (
    cases,
    concat_cases,
    epilogue_act_cases,
    epilogue_norm_cases,
    grouped_cases,
    grouped_epilogue_cases,
    order_cases,
    ragged_cases,
    split_cases,
    symmetric_cases,
    user_epilogue_cases,
)
from tests.emulated import test_gemm
from tests.epilogue_act_cases import Backward, Forward
from tests.epilogue_norm_cases import NormOperands
from tests.grouped_cases import GroupedOperands
from tests.grouped_epilogue_cases import BackwardGroup, ForwardGroup
from tests.ragged_cases import RaggedOperands
from tests.reference import check, reference

TF32_BITS_CUT = 13  # of fp32 inputs


@dataclass(frozen=True)
class Family:
    """cases: of Hopper; run: (case, device), launches and compares."""

    cases: Callable[[], Any]
    run: Callable[[Any, str], None]

    def run_or_refuse(self, case: Any, device: str, refused: Mapping[str, str]) -> None:
        """refused: by `str(case)` what quack must say of configurations that the kernel under test does not have. The heuristics'
        choice runs in their place, for they always find one."""
        if str(case) in refused:
            with pytest.raises(UnsupportedGemm, match=refused[str(case)]):
                self.run(case, device)
            case = configured(case, lambda inner: None)
        self.run(case, device)


def configured(case: Any, config_of: Callable[[Any], Optional[GemmConfig]]) -> Any:
    """The same case with another configuration, which `config_of` makes of it; cases of cases have it inside."""
    if hasattr(case, "case"):
        return replace(case, case=configured(case.case, config_of))
    config = config_of(case)
    return case._replace(config=config) if isinstance(case, tuple) else replace(case, config=config)


def spread(found: Sequence[Any], count: int) -> list[Any]:
    """`count` of them, from the first to the last, some more than once if there are fewer."""
    return [found[i * len(found) // count] for i in range(count)]


def runner(
    operands: Callable[[Any, str], Any], launch: Callable[[Any], Any], verify: Callable[[Any], Any]
) -> Callable[[Any, str], None]:
    """Of lists whose cases have a class of tensors."""

    def run(case: Any, device: str) -> None:
        t = operands(case, device)
        launch(t)
        verify(t)

    return run


def run_dense(case: cases.Case, device: str) -> None:
    t = cases.operands(case, device)
    for tensor in (t.A, t.B):
        if tensor.dtype is torch.float32:
            tensor.view(torch.int32).bitwise_and_(-1 << TF32_BITS_CUT)
    C = None if t.C is None else t.C.clone()
    cases.poison(t.out.buffer)
    if case.in_place and C is not None:
        t.out.tensor.copy_(C)
    test_gemm.launch(case, t)
    check(case, t.out.tensor, reference(case, t, C))
    written = t.out.buffer.view(torch.uint8).view(t.out.buffer.numel(), -1) != 0xFF
    assert not (written.any(1) & t.out.outside()).any(), "elements outside the output were written"


def run_split(case: split_cases.SplitCase, device: str, modes: Optional[tuple[SplitKMode, ...]] = None) -> None:
    for mode in modes or split_cases.MODES:
        run = split_cases.Run(case, mode, device)
        for _ in range(2):  # the second finds what the first has put back to zero
            run.launch()
            run.verify()


def run_stream(case: split_cases.SplitCase, device: str) -> None:
    run_split(case, device, (SplitKMode.STREAM,))


def run_concat(case: concat_cases.ConcatCase, device: str) -> None:
    t, C = concat_cases.prepare(case, device)
    concat_cases.launch(case, t)
    concat_cases.verify(case, t, C)


def run_ragged_concat(case: concat_cases.RaggedConcatCase, device: str) -> None:
    concat_cases.run_and_verify_ragged(case, RaggedOperands(case.case, device))


def run_grouped_user(case: grouped_epilogue_cases.EveryGroup, device: str) -> None:
    group = grouped_epilogue_cases.EveryOperands(case, device)
    group.verify(group.run())


FAMILIES = {
    "dense": Family(test_gemm.cases, run_dense),
    "ragged": Family(ragged_cases.cases, runner(RaggedOperands, ragged_cases.run, ragged_cases.verify)),
    "grouped": Family(grouped_cases.cases, runner(GroupedOperands, grouped_cases.run, grouped_cases.verify)),
    "order": Family(order_cases.cases, order_cases.run_and_verify),
    "concat": Family(concat_cases.cases, run_concat),
    "ragged concat": Family(concat_cases.ragged_cases, run_ragged_concat),
    "symmetric": Family(symmetric_cases.cases, symmetric_cases.run_and_verify),
    "split": Family(split_cases.cases, run_split),
    "stream": Family(split_cases.stream_cases, run_stream),
    "forward": Family(epilogue_act_cases.forward_cases, runner(Forward, Forward.run, Forward.verify)),
    "backward": Family(epilogue_act_cases.backward_cases, runner(Backward, Backward.run, Backward.verify)),
    "norm": Family(
        epilogue_norm_cases.cases, runner(NormOperands, epilogue_norm_cases.run, epilogue_norm_cases.verify)
    ),
    "user": Family(lambda: user_epilogue_cases.EVERYTHING, user_epilogue_cases.run_everything),
    "grouped forward": Family(
        grouped_epilogue_cases.forward_groups, runner(ForwardGroup, ForwardGroup.run, ForwardGroup.check)
    ),
    "grouped backward": Family(
        grouped_epilogue_cases.backward_groups, runner(BackwardGroup, BackwardGroup.run, BackwardGroup.check)
    ),
    "grouped user": Family(lambda: grouped_epilogue_cases.EVERY, run_grouped_user),
}
