"""Calls that repeat: what is looked up, what is still checked, and that nothing is built again."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional

import pytest
import torch

import quack
from quack.epilogue.protocol import EpilogueContext, EpilogueFragment, EpilogueMixin, RowPartials, Scalar, TileOutput
from quack.gemm_config import GemmConfig
from quack.rms_final_reduce import rms_final_reduce
from quack.runtime import call as calling
from quack.runtime import plan

BF16 = torch.bfloat16
A, B, SQUARE = torch.zeros(64, 32).bfloat16(), torch.zeros(96, 32).bfloat16().mT, torch.zeros(64, 64).bfloat16()
C, WIDE = torch.zeros(64, 96).bfloat16(), torch.zeros(64, 192).bfloat16()
ROWS, COLUMNS = torch.zeros(64), torch.zeros(96)
OFFSETS, GROUPS = torch.tensor([0, 40, 64], dtype=torch.int32), torch.zeros(2, 96, 32).bfloat16().mT


@dataclass(frozen=True)
class Everything(EpilogueMixin):
    """Ports of several kinds, an optional output and a static."""

    alpha: Scalar
    rows: RowPartials
    tile: Optional[TileOutput] = None
    flag: float = 1.0

    def visit(self, ctx: EpilogueContext, state: None, frag: EpilogueFragment) -> None:
        return state


def cap(acc, bound):
    return quack.ops.minimum(acc, bound)


FACTORY = quack.pointwise(cap)
CALLS: dict[str, Callable[[], Any]] = {
    "gemm": lambda: quack.gemm(A, B),
    "gemm out": lambda: quack.gemm(A, B, C.clone()),
    "gemm terms": lambda: quack.gemm(A, B, bias=COLUMNS, alpha=0.5, out_dtype=torch.float32),
    "gemm ragged": lambda: quack.gemm(A, GROUPS, cu_seqlens_m=OFFSETS, concat_layout=("B",)),
    "gemm rounding": lambda: quack.gemm(A, B, rounding_mode=1, sr_seed=3),
    "gemm split": lambda: quack.gemm(A, B, split_k=2),
    "gemm stream": lambda: quack.gemm(A, B, split_k_mode=quack.SplitKMode.STREAM),
    "gemm_add": lambda: quack.gemm_add(A, B, C, beta=torch.ones(())),
    "gemm_add_inplace": lambda: quack.gemm_add_inplace(A, B, C.clone()),
    "gemm_tuned": lambda: quack.gemm_tuned.fn(A, B, C.clone(), config=GemmConfig(64, 48, cluster_m=1)),
    "gemm mixin": lambda: quack.gemm(A, B, epilogue=Everything(2.0, tile=True)),
    "gemm pointwise": lambda: quack.gemm(A, B, epilogue=(FACTORY(bound=3.0), FACTORY(2.0))),
    "gemm function": lambda: quack.gemm(A, B, epilogue=lambda acc: acc + 1.0),
    "gemm_act": lambda: quack.gemm_act(A, B, activation="relu"),
    "gemm_act bias": lambda: quack.gemm_act(A, B, bias=COLUMNS, activation="relu", store_preact=False),
    "gemm_gated": lambda: quack.gemm_gated(A, B, C),
    "gemm_dact": lambda: quack.gemm_dact(A, B, C, "silu"),
    "gemm_dgated": lambda: quack.gemm_dgated(A, B, WIDE, colvec_scale=ROWS, colvec_reduce=True),
    "gemm_rms": lambda: quack.gemm_rms(A, B, norm_weight=COLUMNS),
    "gemm_norm_act": lambda: quack.gemm_norm_act(A, B, ROWS, activation="swiglu"),
    "gemm_reduce": lambda: quack.gemm_reduce(A, B, row="sum", col="sum_of_squares"),
    "gemm_symmetric": lambda: quack.gemm_symmetric(A, A.mT, SQUARE, beta=0.5),
    "rms_final_reduce": lambda: rms_final_reduce(WIDE, 0.1),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_repeated_call_builds_and_checks_nothing_again(name, launches, monkeypatch):
    run, made = CALLS[name], []
    first = run()
    monkeypatch.setattr(calling.Form, "complete", lambda *arguments: made.append(arguments))
    for function in ("check_aliases", "prepare"):
        monkeypatch.setattr(plan, function, lambda *arguments: made.append(arguments))
    monkeypatch.setattr(calling, "check_aliases", lambda *arguments: made.append(arguments))
    count = len(launches)
    second = run()
    assert not made and len(launches) == 2 * count
    for one, other in zip(launches[:count], launches[count:]):
        assert like(one) == like(other)
    assert like(first) == like(second)


def like(value: Any) -> Any:
    """Everything but the contents."""
    if isinstance(value, torch.Tensor):
        return (value.shape, value.stride(), value.dtype)
    return tuple(map(like, value)) if isinstance(value, (tuple, list)) else value


def test_everything_that_decides_the_plan_is_looked_up(launches):
    wide = torch.zeros(64, 64).bfloat16()
    variants = [
        lambda: quack.gemm(A, B),
        lambda: quack.gemm(A, B, C),
        lambda: quack.gemm(A, B, out_dtype=torch.float32),
        lambda: quack.gemm(A.half(), B.half()),
        lambda: quack.gemm(A[:40], B),
        lambda: quack.gemm(wide[:, :32], B),
        lambda: quack.gemm(wide[:, 1:33], B),
        lambda: quack.gemm(A.mT.contiguous().mT, B),
        lambda: quack.gemm(A, B, alpha=0.5),
        lambda: quack.gemm(A, B, alpha=0.0),
        lambda: quack.gemm(A, B, alpha=torch.ones(1)),
        lambda: quack.gemm(A, B, bias=COLUMNS),
        lambda: quack.gemm(A, B, bias=COLUMNS.bfloat16()),
        lambda: quack.gemm(A, B, dynamic_scheduler=True),
        lambda: quack.gemm(A, B, split_k=1),
        lambda: quack.gemm(A, B, split_k_mode=quack.SplitKMode.STREAM),
        lambda: quack.gemm(A, B, concat_layout=("A",)),
        lambda: quack.gemm_add(A, B, C),
        lambda: quack.gemm_add(A, B, C, beta=0.0),
        lambda: quack.gemm_add(A, B, C.float()),
        lambda: quack.gemm_act(A, B, activation="relu"),
        lambda: quack.gemm_act(A, B, activation="silu"),
        lambda: quack.gemm_act(A, B, activation="relu", store_preact=False),
        lambda: quack.gemm_act(A, B, activation="relu", postact_dtype=torch.float32),
        lambda: quack.gemm_norm_act(A, B, activation="relu", store_preact=True),
        lambda: quack.gemm_dgated(A, B, WIDE),
        lambda: quack.gemm_dgated(A.half(), B.half(), WIDE.half()),
        lambda: quack.gemm_dgated(A, B, WIDE.half()),
        lambda: quack.gemm_reduce(A, B, row="max"),
        lambda: quack.gemm_reduce(A, B, col="max"),
        lambda: quack.gemm(A, B, epilogue=Everything(2.0)),
        lambda: quack.gemm(A, B, epilogue=Everything(2.0, flag=True)),
        lambda: quack.gemm(A, B, epilogue=Everything(2.0, tile=True)),
        lambda: quack.gemm(A, B, epilogue=Everything(torch.ones(1))),
        lambda: quack.gemm_symmetric(A, A.mT),
        lambda: quack.gemm_symmetric(A, A.clone().mT),
    ]
    for _ in range(2):
        for count, variant in enumerate(variants, 1):
            variant()
            assert len(calling._calls) == count or _ == 1, count
    assert len(calling._calls) == len(variants)


def test_numbers_are_the_call_s_own(launches):
    """The plan is shared by all but 0 and 1; the kernel gets what this call says."""
    for alpha, bound in ((0.5, 3.0), (2.0, 4.0)):
        quack.gemm(A, B, alpha=alpha, epilogue=FACTORY(bound))
        assert launches[-1][5] == (alpha, bound)
    for seed in (0, 1, 7):
        quack.gemm(A, B, rounding_mode=1, sr_seed=seed)
        assert launches[-1][5] == (seed,)
    quack.gemm(A, B, epilogue=FACTORY(1.0), rounding_mode=1, sr_seed=8)
    quack.gemm(A, B, epilogue=FACTORY(0.0), rounding_mode=1, sr_seed=9)
    assert launches[-1][5] == (0.0, 9)
    assert len(calling._calls) == 3


def test_ports_called_like_operands(launches):
    """A user's port named alpha or bias is not the call's."""
    add = quack.pointwise(lambda acc, bias, C: acc + bias * C, bias=quack.RowVector)
    quack.gemm(A, B, alpha=0.5, bias=COLUMNS, epilogue=(Everything(2.0), add(bias=COLUMNS.half(), C=3.0)))
    ports = launches[-1][5]
    assert ports[:3] == (0.5, ports[1], 2.0) and ports[1] is COLUMNS
    assert ports[4].dtype == torch.float16 and ports[5] == 3.0
    with pytest.raises(ValueError, match=r"epilogue.bias has shape \(64,\), expected \(96,\)"):
        quack.gemm(A, B, bias=COLUMNS, epilogue=add(bias=ROWS, C=3.0))
    with pytest.raises(ValueError, match=r"^bias has shape \(64,\), expected \(96,\)"):
        quack.gemm(A, B, bias=ROWS, epilogue=add(bias=COLUMNS, C=3.0))


def test_known_calls_still_refuse_memory_that_overlaps(launches):
    memory = torch.zeros(4, 64, 96).bfloat16()
    preact, postact, x = memory[0], memory[1], memory[2]
    shifted = torch.zeros(64 * 96 + 96).bfloat16()
    one, other = shifted[: 64 * 96].view(64, 96), shifted[96:].view(64, 96)
    gate = torch.zeros(64, 48).bfloat16()
    run = quack.gemm_act_out
    for _ in range(2):
        run(A, B, preact, postact)
        run(A, B, preact, postact, C=preact)
        run(A, B, None, postact, C=x)
        with pytest.raises(ValueError, match="(out overlaps postact_out|postact_out overlaps out) in memory"):
            run(A, B, preact, preact)
        with pytest.raises(ValueError, match="postact_out overlaps C in memory"):
            run(A, B, preact, postact, C=postact)
        with pytest.raises(ValueError, match="out partly overlaps C in memory"):
            run(A, B, one, postact, C=other)
        quack.gemm(A, B, epilogue=Everything(2.0, tile=gate))
        with pytest.raises(ValueError, match="tile overlaps out in memory|out overlaps tile in memory"):
            quack.gemm(A, B, memory[3], epilogue=Everything(2.0, tile=memory[3]))
    count = len(launches)
    quack.gemm(A, B, epilogue=(Everything(2.0, tile=preact), Everything(2.0, tile=postact)))
    with pytest.raises(ValueError, match=r"epilogue\[.\].tile overlaps epilogue\[.\].tile"):
        quack.gemm(A, B, epilogue=(Everything(2.0, tile=preact), Everything(2.0, tile=preact)))
    assert len(launches) == count + 1


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: quack.gemm_tuned.fn(A, B, None), "out"),
        (lambda: quack.gemm_act_tuned.fn(A, B, C, None), "postact_out"),
        (lambda: quack.gemm_norm_act_tuned.fn(A, B, None, None), "postact_out"),
        (lambda: quack.gemm_dact_tuned.fn(A, B, C, None, None), "dx_out"),
    ],
)
def test_tuned_functions_allocate_nothing(launches, call, name):
    with pytest.raises(TypeError, match=f"{name} is a NoneType, expected a torch.Tensor"):
        call()
    assert not launches
