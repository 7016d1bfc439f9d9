"""`A_idx`: what the shared ragged cases (tests/ragged_cases.py) do not say. Which lines are loaded, and by what call."""

import pytest
import torch

import quack
from quack.gemm_config import GemmConfig
from quack.runtime import call
from tests.ragged_cases import PINGPONG, RaggedCase, RaggedOperands, run, verify

SIZES = (100, 0, 37, 63)
TOTAL = sum(SIZES)


def offsets() -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(SIZES).cumsum(0)], dtype=torch.int32)


def ordinary(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))).bfloat16()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ragged", ["m", "k"])
def test_random_schedules(ragged: str, seed: int):
    extents = {"m": dict(n=136, k=136), "k": dict(m=136, n=136)}[ragged]
    t = RaggedOperands(RaggedCase(ragged, (100, 37, 0, 200, 5), pool=50, config=PINGPONG, **extents), "cpu")
    with quack.emulator.use("sm90", schedule=f"random:{seed}", checks=("all",), sms=3):
        run(t)
    verify(t)


def test_other_indices_need_no_new_plan():
    first, second = (
        RaggedOperands(RaggedCase("m", sizes, n=136, k=72, pool=30), "cpu") for sizes in (SIZES, (1, 99, 100, 0))
    )
    with quack.emulator.use("sm90", sms=4):
        second.indices.sub_(29).neg_()
        run(first)
        plans = len(call._calls)
        run(second)
        assert len(call._calls) == plans
    assert not torch.equal(first.indices, second.indices)
    verify(first)
    verify(second)


@pytest.mark.parametrize("shift, pad", [(1, 0), (0, 3)], ids=["address", "pitch"])
@pytest.mark.parametrize("ragged", ["m", "k"])
def test_unaligned_a_is_copied(ragged: str, shift: int, pad: int):
    """16-byte copies need what TMA needs: both kinds fall back to an aligned copy of A."""
    lines, length, n = 40, 72, 64
    buffer = torch.full((lines, length + pad + shift), float("nan")).bfloat16().flatten()
    a = buffer.as_strided((lines, length), (length + pad, 1), shift).copy_(ordinary(lines, length))
    index = torch.randint(0, lines, (TOTAL,), generator=torch.Generator().manual_seed(1)).int()
    cu = offsets()
    with quack.emulator.use("sm90", checks=("all",), sms=4):
        if ragged == "m":
            b = ordinary(len(SIZES), length, n)
            got = quack.gemm(a, b, cu_seqlens_m=cu, A_idx=index)
            groups = [a[index[i:j]].double() @ b[g].double() for g, (i, j) in enumerate(zip(cu[:-1], cu[1:]))]
            expected = torch.cat(groups)
        else:
            b = ordinary(TOTAL, n)
            got = quack.gemm(a.mT, b, cu_seqlens_k=cu, A_idx=index)
            groups = [a[index[i:j]].mT.double() @ b[i:j].double() for i, j in zip(cu[:-1], cu[1:])]
            expected = torch.stack(groups)
    torch.testing.assert_close(got.double(), expected, rtol=1e-2, atol=5e-2)


def test_nothing_to_gather():
    """No rows at all, and no row of A to pick from: nothing is launched, or nothing is loaded."""
    none, cu = torch.empty(0, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    with quack.emulator.use("sm90", checks=("all",), sms=4):
        assert quack.gemm(ordinary(5, 64), ordinary(2, 64, 48), cu_seqlens_m=cu, A_idx=none).shape == (0, 48)
        for a in (ordinary(5, 64), ordinary(0, 64)):
            out = quack.gemm(a.mT, ordinary(0, 48), cu_seqlens_k=cu, A_idx=none)
            assert out.shape == (2, 64, 48) and not out.any()


def test_last_line_of_a_is_not_read_beyond():
    """The extent of A ends inside a 16-byte chunk of the last line; what is behind it does not exist."""
    lines, length = 8, 67
    buffer = torch.zeros(lines * 72 - 5).bfloat16()  # its very last element is A's
    a = buffer.as_strided((lines, length), (72, 1)).copy_(ordinary(lines, length))
    b = ordinary(2, length, 64)
    index = torch.tensor([7, 7, 3, 7, 0, 7], dtype=torch.int32)
    with quack.emulator.use("sm90", sms=2):
        got = quack.gemm(a, b, cu_seqlens_m=torch.tensor([0, 2, 6], dtype=torch.int32), A_idx=index)
    rows = a[index].double()
    expected = torch.cat([rows[:2] @ b[0].double(), rows[2:] @ b[1].double()])
    torch.testing.assert_close(got.double(), expected, rtol=1e-2, atol=5e-2)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("ragged", ["m", "k"])
def test_gemm_add_and_compiled_calls(ragged: str, in_place: bool):
    """`gemm_add` takes the same arguments, eager or traced by torch.compile."""
    cu = offsets()
    index = torch.randint(0, 40, (TOTAL,), generator=torch.Generator().manual_seed(2)).int()
    if ragged == "m":
        a, b, c = ordinary(40, 64), ordinary(len(SIZES), 64, 48), ordinary(TOTAL, 48)
        product = torch.cat([a[index[i:j]].double() @ b[g].double() for g, (i, j) in enumerate(zip(cu[:-1], cu[1:]))])
    else:
        a, b, c = ordinary(40, 64).mT, ordinary(TOTAL, 48), ordinary(len(SIZES), 64, 48)
        product = torch.stack([a[:, index[i:j]].double() @ b[i:j].double() for i, j in zip(cu[:-1], cu[1:])])

    def both(a, b, c, cu, index):
        arguments = {f"cu_seqlens_{ragged}": cu, "A_idx": index}
        plain = quack.gemm(a, b, **arguments)
        return plain, quack.gemm_add(a, b, c, out=c if in_place else None, beta=0.5, **arguments)

    torch._dynamo.reset()
    for function in (both, torch.compile(both, fullgraph=True, backend="aot_eager")):
        with quack.emulator.use("sm90", sms=4):
            plain, added = function(a, b, own := c.clone(), cu, index)
        torch.testing.assert_close(plain.double(), product, rtol=1e-2, atol=5e-2)
        torch.testing.assert_close(added.double(), product + 0.5 * c.double(), rtol=1e-2, atol=8e-2)
        assert (added.data_ptr() == own.data_ptr()) == in_place


def test_pinned_cluster_of_two_along_m():
    """B is multicast, A is not: a stage is free only when both CTAs have read it."""
    case = RaggedCase("k", (100, 37, 0, 200, 5), m=392, n=136, pool=60, nan_group=1, config=GemmConfig(128, 128))
    t = RaggedOperands(case, "cpu")
    with quack.emulator.use("sm90", schedule="latest", checks=("all",), sms=4):
        run(t)
    verify(t)
