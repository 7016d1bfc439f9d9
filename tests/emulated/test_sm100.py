"""GemmSm100 in the emulator: the case lists that other tests run on sm_90a, with Blackwell's tiles, of one CTA and of pairs."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Optional

import pytest
import torch

import quack
from quack import SplitKMode
from quack.gemm_config import GemmConfig
from quack.runtime.spec import UnsupportedGemm
from tests import (
    concat_cases,
    epilogue_norm_cases,
    grouped_cases,
    order_cases,
    ragged_cases,
    split_cases,
    symmetric_cases,
)
from tests.cases import Case, operands, poison
from tests.emulated import test_gemm
from tests.epilogue_act_cases import Backward, Forward, backward_cases, forward_cases
from tests.reference import check, reference
from tests.schedules import EVERY_SCHEDULE
from tests.sm100_configs import DEFAULT_PAIR, on_sm100

SMS = 4  # few, so that persistent kernels take several tiles per CTA
ONE, PAIR = GemmConfig(128, 64, cluster_m=1, device_capacity=10), GemmConfig(256, 64, cluster_m=2, device_capacity=10)
CONFIGS = {
    "one": ONE,
    "one, multicast": replace(ONE, tile_n=128, cluster_m=2, cluster_n=2),
    "one, drawn": replace(ONE, cluster_m=2, is_dynamic_persistent=True),
    "one, widest": replace(ONE, tile_n=256),
    "one, narrowest": replace(ONE, tile_n=16),
    "pair": PAIR,
    "pair, multicast": replace(PAIR, tile_n=128, cluster_n=2),
    "two pairs": replace(PAIR, tile_n=96, cluster_m=4),
    "pair, drawn": replace(PAIR, is_dynamic_persistent=True),
    "pair, widest": replace(PAIR, tile_n=256),
    "pair, narrowest": replace(PAIR, tile_n=32),
    "pair, not persistent": replace(PAIR, is_persistent=False),
    "pair, deep": replace(PAIR, tile_k=128),
}


def emulated(schedule: str = "latest", checks: tuple[str, ...] = ("all",)):
    return quack.emulator.use("sm100", schedule=schedule, checks=checks, sms=SMS)


def on_both(cases: Sequence[Any], columns: Optional[int] = None) -> list[Any]:
    """Every case with tiles of one CTA, and with those of pairs; columns: of all of them."""
    return [on_sm100(case, pairs, columns) for pairs in (False, True) for case in cases]


def dense() -> Iterator[Case]:
    """Configurations, dtypes and majors that Hopper does not have, and Hopper's own list."""
    for name, config in CONFIGS.items():
        yield Case(name, 300, 392, 200, config=config)
    for config in (ONE, replace(PAIR, tile_n=128)):
        for a, b in (("fp16", "fp16"), ("fp32", "fp32"), ("e4m3", "e4m3"), ("e4m3", "e5m2"), ("e5m2", "e4m3")):
            for majors in ("kk", "mn"):
                dtypes = {"a": a, "b": b, "out": "fp32" if a == "fp32" else "bf16"}
                pinned = replace(config, cluster_m=2, tile_n=128) if majors == "kk" else replace(config, tile_n=128)
                if majors == "mn" and config.is_pair:
                    pinned = replace(pinned, tile_n=256)  # whole swizzled rows of each CTA's half of B
                yield Case("inputs", 272, 208, 272, a_major=majors[0], b_major=majors[1], config=pinned, **dtypes)
    yield from on_both(test_gemm.cases())


@pytest.mark.one_in(19)
@pytest.mark.parametrize("case", list(dense()), ids=str)
def test_dense(case: Case):
    t = tf32_exact(case)
    C = t.C.clone() if t.C is not None else None
    poison(t.out.buffer)
    if case.in_place and C is not None:
        t.out.tensor.copy_(C)
    with emulated():
        test_gemm.launch(case, t)
    check(case, t.out.tensor, reference(case, t, C))
    written = t.out.buffer.view(torch.uint8).view(t.out.buffer.numel(), -1) != 0xFF
    assert not (written.any(1) & t.out.outside()).any(), "elements outside the output were written"


def tf32_exact(case: Case):
    """Operands whose fp32 numbers tf32 represents."""
    t = operands(case, "cpu")
    for tensor in (t.A, t.B):
        if tensor.dtype is torch.float32:
            tensor.view(torch.int32).bitwise_and_(-1 << 13)
    return t


@pytest.mark.one_in(19)
@pytest.mark.parametrize("case", on_both(ragged_cases.cases()), ids=str)
def test_ragged(case: ragged_cases.RaggedCase):
    t = ragged_cases.RaggedOperands(case, "cpu")
    with emulated():
        ragged_cases.run(t)
    ragged_cases.verify(t)


@pytest.mark.one_in(29)
@pytest.mark.parametrize("case", on_both(ragged_cases.gathered_cases()), ids=str)
def test_gather4(case: ragged_cases.RaggedCase):
    """TMA picks the lines of A that threads would copy."""
    case = replace(case, config=replace(case.config or ONE, use_tma_gather=True))
    t = ragged_cases.RaggedOperands(case, "cpu")
    with emulated():
        ragged_cases.run(t)
    ragged_cases.verify(t)


@pytest.mark.one_in(11)
@pytest.mark.parametrize("case", on_both(grouped_cases.cases()), ids=str)
def test_grouped(case: grouped_cases.GroupedCase):
    t = grouped_cases.GroupedOperands(case, "cpu")
    with emulated():
        grouped_cases.run(t)
    grouped_cases.verify(t)


def square() -> list[Any]:
    """Symmetric results have square tiles, and clusters along one dimension."""
    found = on_both(list(symmetric_cases.cases()), 128)
    return [
        case
        for case in found
        if case.case.config is None or case.case.config.cluster_n * case.case.config.cluster_m < 4
    ]


@pytest.mark.one_in(19)
@pytest.mark.parametrize("case", square(), ids=str)
def test_symmetric(case: symmetric_cases.SymmetricCase):
    with emulated():
        symmetric_cases.run_and_verify(case, "cpu")


@pytest.mark.one_in(53)
@pytest.mark.parametrize("mode", split_cases.MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("case", on_both(list(split_cases.cases())), ids=str)
def test_split_k(case: split_cases.SplitCase, mode: SplitKMode):
    """Two launches: the second finds what the first has put back to zero."""
    run = split_cases.Run(case, mode, "cpu")
    for schedule, checks in (("latest", ("all",)), ("random:7", ())):
        with emulated(schedule, checks):
            run.launch()
        run.verify()


@pytest.mark.one_in(29)
@pytest.mark.parametrize("case", on_both(forward_cases()), ids=str)
def test_activations(case: Any):
    t = Forward(case, "cpu")
    with emulated():
        t.run()
    t.verify()


@pytest.mark.one_in(29)
@pytest.mark.parametrize("case", on_both(backward_cases()), ids=str)
def test_gradients_of_activations(case: Any):
    t = Backward(case, "cpu")
    with emulated():
        t.run()
    t.verify()


@pytest.mark.one_in(23)
@pytest.mark.parametrize("case", on_both(epilogue_norm_cases.cases()), ids=str)
def test_norms(case: epilogue_norm_cases.NormCase):
    t = epilogue_norm_cases.NormOperands(case, "cpu")
    with emulated():
        epilogue_norm_cases.run(t)
    epilogue_norm_cases.verify(t)


@pytest.mark.parametrize("config", [ONE, DEFAULT_PAIR], ids=str)
def test_rounding_is_the_model_bit_by_bit(config: GemmConfig):
    with emulated():
        epilogue_norm_cases.check_rounding("cpu", config)


@pytest.mark.one_in(29)
@pytest.mark.parametrize("case", on_both(concat_cases.cases()), ids=str)
def test_halves(case: concat_cases.ConcatCase):
    t, C = concat_cases.prepare(case, "cpu")
    with emulated():
        concat_cases.launch(case, t)
    concat_cases.verify(case, t, C)


@pytest.mark.one_in(13)
@pytest.mark.parametrize("case", on_both(order_cases.cases()), ids=str)
def test_orders(case: order_cases.OrderCase):
    with emulated():
        order_cases.run_and_verify(case, "cpu")


@pytest.mark.parametrize("name", ["one, multicast", "pair, multicast", "pair, drawn"])
def test_random_schedules_give_the_same_bits(name: str):
    case = Case("schedules", 300, 264, 136, c="bf16", bias="bf16", config=CONFIGS[name])
    t = operands(case, "cpu")
    results = set()
    for schedule in EVERY_SCHEDULE:
        poison(t.out.buffer)
        with emulated(schedule):
            test_gemm.launch(case, t)
        results.add(t.out.tensor.contiguous().view(torch.uint8).numpy().tobytes())
    assert len(results) == 1


@pytest.mark.parametrize(
    "config", [replace(PAIR, cluster_m=1), replace(PAIR, tile_n=48), replace(ONE, tile_m=64)], ids=str
)
def test_tiles_without_an_mma_are_refused(config: GemmConfig):
    A, B = torch.randn(64, 64).bfloat16(), torch.randn(64, 64).bfloat16().mT
    with emulated(), pytest.raises(UnsupportedGemm, match="tile_m|tile_n"):
        quack.gemm_tuned.fn(A, B, torch.empty(64, 64), config=config)
