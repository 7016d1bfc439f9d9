"""What tests of other architectures check, for the kernel of sm_120a: the same lists, with configurations that it has.

No tile, cluster or case is enumerated here. `FAMILIES` says how a list is run; tests/emulated/test_sm120.py runs them in the
emulator, tests/gpu/test_sm120.py on a Hopper GPU, with the kernel compiled for it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Optional

import torch

from quack import SplitKMode
from quack.gemm_config import GemmConfig
from tests import (
    cases,
    concat_cases,
    epilogue_act_cases,
    epilogue_norm_cases,
    grouped_cases,
    order_cases,
    ragged_cases,
    split_cases,
    symmetric_cases,
    user_epilogue_cases,
)
from tests.emulated import test_gemm
from tests.reference import check, reference

MAX_TILE_N = 128
TF32_BITS_CUT = 13  # of fp32 inputs


def config_here(config: GemmConfig, input_bytes: int, gathers: bool) -> GemmConfig:
    """The nearest configuration without clusters, for 99 KB of shared memory and operands in registers. input_bytes: of an
    element of A; gathers: lines of A are picked by index, which are 128 bytes long."""
    tile_m, tile_n = 256 if config.tile_m == 192 else config.tile_m, min(config.tile_n, MAX_TILE_N)
    tile_k = 64 // input_bytes if tile_m * tile_n > 128 * 64 else config.tile_k
    if gathers:
        tile_m, tile_k = min(tile_m, 128), None
    return replace(config, tile_m=tile_m, tile_n=tile_n, tile_k=tile_k, cluster_m=1, cluster_n=1)


def case_here(case: Any) -> Any:
    """The same case with such a configuration; cases of cases have it inside."""
    if hasattr(case, "case"):
        return replace(case, case=case_here(case.case))
    if case.config is None:
        return case
    name = getattr(case, "a", getattr(case, "dtype", None))
    input_bytes = cases.DTYPES[name].itemsize if isinstance(name, str) else 2
    gathers = getattr(case, "pool", None) is not None or getattr(case, "gathered", False)
    config = config_here(case.config, input_bytes, gathers)
    return case._replace(config=config) if isinstance(case, tuple) else replace(case, config=config)


def is_pinned(case: Any) -> bool:
    return is_pinned(case.case) if hasattr(case, "case") else case.config is not None


@dataclass(frozen=True)
class Family:
    """cases: of another architecture; run: (case, device), launches and compares."""

    cases: Callable[[], Any]
    run: Callable[[Any, str], None]

    def here(self) -> list[Any]:
        """Each once, if several became the same."""
        return list({str(case): case for case in map(case_here, self.cases())}.values())


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


def run_ragged(case: ragged_cases.RaggedCase, device: str) -> None:
    t = ragged_cases.RaggedOperands(case, device)
    ragged_cases.run(t)
    ragged_cases.verify(t)


def run_grouped(case: grouped_cases.GroupedCase, device: str) -> None:
    t = grouped_cases.GroupedOperands(case, device)
    grouped_cases.run(t)
    grouped_cases.verify(t)


def run_split(case: split_cases.SplitCase, device: str, modes: Optional[tuple[SplitKMode, ...]] = None) -> None:
    for mode in modes or split_cases.MODES:
        run = split_cases.Run(case, mode, device)
        for _ in range(2):  # the second finds what the first has put back to zero
            run.launch()
            run.verify()


def run_norm(case: epilogue_norm_cases.NormCase, device: str) -> None:
    t = epilogue_norm_cases.NormOperands(case, device)
    epilogue_norm_cases.run(t)
    epilogue_norm_cases.verify(t)


def run_forward(case: epilogue_act_cases.ActCase, device: str) -> None:
    t = epilogue_act_cases.Forward(case, device)
    t.run()
    t.verify()


def run_backward(case: epilogue_act_cases.ActCase, device: str) -> None:
    t = epilogue_act_cases.Backward(case, device)
    t.run()
    t.verify()


def run_concat(case: concat_cases.ConcatCase, device: str) -> None:
    t, C = concat_cases.prepare(case, device)
    concat_cases.launch(case, t)
    concat_cases.verify(case, t, C)


def run_ragged_concat(case: concat_cases.RaggedConcatCase, device: str) -> None:
    concat_cases.run_and_verify_ragged(case, ragged_cases.RaggedOperands(case.case, device))


FAMILIES = {
    "dense": Family(test_gemm.cases, run_dense),
    "ragged": Family(ragged_cases.cases, run_ragged),
    "grouped": Family(grouped_cases.cases, run_grouped),
    "order": Family(order_cases.cases, order_cases.run_and_verify),
    "concat": Family(concat_cases.cases, run_concat),
    "ragged concat": Family(concat_cases.ragged_cases, run_ragged_concat),
    "symmetric": Family(symmetric_cases.cases, symmetric_cases.run_and_verify),
    "split": Family(split_cases.cases, run_split),
    "forward": Family(epilogue_act_cases.forward_cases, run_forward),
    "backward": Family(epilogue_act_cases.backward_cases, run_backward),
    "norm": Family(epilogue_norm_cases.cases, run_norm),
    "user": Family(lambda: user_epilogue_cases.EVERYTHING, user_epilogue_cases.run_everything),
}
