"""Grouped GEMMs with every kind of epilogue in the emulator."""

import pytest
import torch

import quack
from quack import RoundingMode, SplitKMode
from quack.epilogue.scale import ScaleColumns, ScaleRows
from tests.epilogue_act_cases import ActCase
from tests.grouped_epilogue_cases import (
    EVERY,
    FEW,
    SHAPES,
    SMALL,
    SWAPPED,
    ActGroup,
    BackwardGroup,
    EveryGroup,
    EveryOperands,
    ForwardGroup,
    backward_groups,
    forward_groups,
)
from tests.user_epilogue_cases import RowMax, near

SMS = 4
REDUCTIONS = ("sum", "sum_of_squares", "max", "log_sum_exp")


@pytest.fixture
def hopper():
    torch.manual_seed(0)
    with quack.emulator.use("sm90", schedule="latest", checks=("all",), sms=SMS):
        yield


def matrices(shapes=SHAPES):
    """(A, B, products)."""
    A = [torch.randn(m, k).bfloat16() for m, _, k in shapes]
    B = [torch.randn(n, k).bfloat16().mT for _, n, k in shapes]
    return A, B, [a.double() @ b.double() for a, b in zip(A, B)]


@pytest.mark.one_in(6)
@pytest.mark.parametrize("case", forward_groups(), ids=str)
def test_activations(case: ActGroup, hopper):
    group = ForwardGroup(case, "cpu")
    group.run()
    group.check()


@pytest.mark.one_in(4)
@pytest.mark.parametrize("case", backward_groups(), ids=str)
def test_gradients(case: ActGroup, hopper):
    group = BackwardGroup(case, "cpu")
    group.run()
    group.check()


@pytest.mark.filterwarnings("ignore:.*Everything.* spills")
@pytest.mark.one_in(2)
@pytest.mark.parametrize("case", EVERY, ids=str)
def test_every_port(case: EveryGroup, hopper):
    operands = EveryOperands(case, "cpu")
    operands.verify(operands.run())


@pytest.mark.one_in(7)
@pytest.mark.parametrize("row, col", list(zip(REDUCTIONS, REDUCTIONS[::-1])))
@pytest.mark.parametrize("config, split", [(SMALL, 1), (SWAPPED, 1), (SMALL, 2), (None, 1), (SWAPPED, 2)])
def test_reductions(config, split: int, row: str, col: str, hopper):
    """Of problems with 5, 1, 4, 3 and 5 tiles along N: strips of partials that are shared, padded and alone."""
    A, B, _ = matrices(
        ((70, 264, 72), (1, 16, 8), (0, 16, 16), (130, 0, 24), (33, 200, 40), (3, 140, 40), (40, 300, 0))
    )
    bias = [torch.randn(b.shape[1]).bfloat16() for b in B]
    options = dict(row=row, col=col, config=config, split_k=split, split_k_mode=SplitKMode.SEPARATE)
    got = quack.gemm_grouped_reduce(A, B, None, bias, **options)
    expected = quack.gemm_grouped_reduce_ref(A, B, None, bias, row=row, col=col)
    for family, exact in zip(got, expected):
        for x, y in zip(family, exact, strict=True):
            torch.testing.assert_close(x, y, rtol=2e-2 if x.dtype is torch.bfloat16 else 1e-4, atol=1e-2)


def test_vectors_of_their_own(hopper):
    """Any number of them, and terms in order; as D^T they change places."""
    A, B, products = matrices()
    rows, columns = [torch.rand(m) for m, _, _ in SHAPES], [torch.rand(n) for _, n, _ in SHAPES]
    tiles = [torch.randn(m, n) for m, n, _ in SHAPES]
    bias = [torch.randn(n).bfloat16() for _, n, _ in SHAPES]
    shift = quack.pointwise(lambda acc, r, t, s: acc * s + r - t, r=quack.RowVector, t=quack.TileInput)
    epilogue = (ScaleRows(rows), ScaleColumns(columns), shift(columns, tiles, 2.0))
    exact = [
        (p + b.double()) * r.double()[:, None] * c.double() * 2 + c.double() - t.double()
        for p, b, r, c, t in zip(products, bias, rows, columns, tiles)
    ]
    got = quack.gemm_grouped(A, B, bias_list=bias, epilogue=epilogue, out_dtype=torch.float32)
    for x, y in zip(got, exact):
        near(x, y)
    mirrored = quack.pointwise(
        lambda acc, r, c, t: acc * r + c - t, r=quack.RowVector, c=quack.ColVector, t=quack.TileInput
    )
    got = quack.gemm_grouped(A, B, config=SWAPPED, epilogue=mirrored(columns, rows, tiles), out_dtype=torch.float32)
    for x, p, r, c, t in zip(got, products, columns, rows, tiles):
        near(x, p * r.double() + c.double()[:, None] - t.double())


def test_row_maxima(hopper):
    """The class of the README: partials of each problem, and none of what has nothing to compute."""
    A, B, products = matrices()
    outs, row_max = quack.gemm_grouped(A, B, epilogue=RowMax())
    for out, partials, product in zip(outs, row_max, products):
        near(out, product, rtol=2**-7)
        assert partials.shape[0] == product.shape[0] and (partials.shape[1] > 0) == (product.numel() > 0)
        if product.numel():
            near(partials.amax(-1), product.amax(-1))


def test_stochastic_rounding_of_problem_i_is_that_of_batch_i(hopper):
    """Whatever order the table has (longest K first), and as D^T."""
    A, B = torch.randn(3, 136, 72).bfloat16(), torch.randn(3, 72, 104).bfloat16()
    options = dict(rounding_mode=RoundingMode.RS, sr_seed=7)
    expected = quack.gemm(A, B, **options)
    lengths = (40, 72, 8)  # of K: what is left out is 0
    for i, k in enumerate(lengths):
        A[i, :, k:] = 0.0
    expected = quack.gemm(A, B, **options)
    for config in (SMALL, SWAPPED):
        lists = [a[:, :k] for a, k in zip(A, lengths)], [b[:k] for b, k in zip(B, lengths)]
        for got, wanted in zip(quack.gemm_grouped(*lists, config=config, **options), expected):
            assert torch.equal(got, wanted)


@pytest.mark.filterwarnings("ignore:.*Everything.* spills")
def test_plans_see_new_contents_and_new_addresses(hopper):
    case = EveryGroup(FEW)
    operands, other = EveryOperands(case, "cpu"), EveryOperands(case, "cpu")
    plan = quack.grouped_plan(**operands.arguments())
    for factor in (1.0, -0.5, 2.0):
        for tensor in (*operands.A, *operands.r, *operands.t):
            tensor.mul_(factor)
        for out in operands.outs:
            out.fill_(float("nan"))
        operands.verify(plan())
    for tensor in (*other.A, *other.c):
        tensor.add_(1.0)
    results = plan(other.A, other.B, other.outs, C_list=other.C, r=other.r, c=other.c, t=other.t)
    other.verify(results)
    operands.verify(
        plan(operands.A, operands.B, operands.outs, C_list=operands.C, r=operands.r, c=operands.c, t=operands.t)
    )


def test_plans_of_gradients_finish_their_sums(hopper):
    case = ActGroup(ActCase("silu", scale="fp32", reduce=True), FEW)
    group = BackwardGroup(case, "cpu")
    plan = quack.grouped_plan(**group.arguments(), of=quack.gemm_grouped_dact)
    for factor in (1.0, -2.0, 0.5):
        for problem in group.problems:
            problem.A.mul_(factor)
            problem.product, problem.size = problem.multiply(torch.double)
        group.poison("dx", "postact")
        group.take(plan())
        group.check()


def test_epilogues_of_problems_with_nothing_to_do(hopper):
    A, B, _ = matrices(((0, 16, 8), (8, 0, 8)))
    outs, row_max = quack.gemm_grouped(A, B, epilogue=RowMax())
    assert [tuple(x.shape) for x in outs] == [(0, 16), (8, 0)] and [tuple(x.shape) for x in row_max] == [(0, 0), (8, 0)]
    assert quack.gemm_grouped([], [], epilogue=RowMax()) == ([], [])
    assert quack.gemm_grouped_act([], [], activation="silu") == ([], [])
    _, row, _ = quack.gemm_grouped_reduce(A, B, row="max")
    assert row[1].tolist() == [float("-inf")] * 8


def test_torch_compile(hopper):
    """In one graph: an activation, then its gradient in place of the pre-activation, with finished sums."""
    A, B, _ = matrices(((64, 64, 64), (40, 72, 24)))
    scale = [torch.rand(a.shape[0]) for a in A]

    def chain(a, b):
        preact, postact = quack.gemm_grouped_act(a, b, activation="silu")
        dx, _, sums = quack.gemm_grouped_dact(
            a, b, preact, "silu", dx_out_list=preact, colvec_scale_list=scale, colvec_reduce=True, store_postact=False
        )
        return [x * 2 for x in (*postact, *dx, *sums)]

    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(A, B), chain(A, B), strict=True):
        assert torch.equal(got, expected)


def test_a_pinned_configuration_leaves_the_graph(hopper):
    """Before it was silently left out: this one is refused."""
    refused = quack.GemmConfig(64, 24)
    A, B = [torch.randn(64, 64).bfloat16()], [torch.randn(64, 64).bfloat16().mT]
    calls = (
        lambda: quack.gemm_grouped(A, B, config=refused),
        lambda: quack.gemm_grouped_act(A, B, activation="relu", config=refused),
        lambda: quack.gemm_grouped_dact(A, B, A, activation="relu", config=refused),
    )
    for call in calls:
        with pytest.raises(quack.UnsupportedGemm):
            torch.compile(call, backend="eager")()
