"""Grouped GEMMs on the GPU: every case, repeated launches, graphs and streams."""

import pytest
import torch

import quack
from tests.epilogue_act_cases import ActCase
from tests.grouped_cases import MIXED, GroupedCase, GroupedOperands, cases, many, run, verify
from tests.grouped_epilogue_cases import (
    EVERY,
    ActGroup,
    BackwardGroup,
    EveryGroup,
    EveryOperands,
    ForwardGroup,
    backward_groups,
    forward_groups,
)

REDUCTIONS = ("sum", "sum_of_squares", "max", "log_sum_exp")


@pytest.mark.parametrize("case", cases(), ids=str)
def test_against_reference(case: GroupedCase):
    t = GroupedOperands(case, "cuda")
    for _ in range(3):
        run(t)
    verify(t)


def test_many_problems():
    t = GroupedOperands(GroupedCase(many(300, seed=5), bias=True), "cuda")
    run(t)
    verify(t)


@pytest.mark.parametrize("is_warm", [False, True], ids=["cold", "warm"])
def test_graph_replays_see_new_contents(is_warm: bool):
    """Captured with tables that exist already, or that the graph itself writes."""
    t = GroupedOperands(GroupedCase(MIXED, bias=True, dynamic=True), "cuda")
    plan = quack.grouped_plan(**t.arguments())
    if is_warm:
        plan()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan()
    other = GroupedOperands(GroupedCase(MIXED, bias=True), "cuda")
    for factor in (2.0, -0.5):
        for a in t.tensors.A:
            a.mul_(factor)
        for out in t.tensors.out:
            out.fill_(float("nan"))
        graph.replay()
        verify(t)
        plan(other.tensors.A, other.tensors.B, other.tensors.out, bias_list=other.tensors.bias)
        verify(other)


def test_outputs_allocated_under_capture():
    t = GroupedOperands(GroupedCase(MIXED), "cuda")
    expected = quack.gemm_grouped(t.tensors.A, t.tensors.B)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = quack.gemm_grouped(t.tensors.A, t.tensors.B)
    for out in outs:
        out.fill_(float("nan"))
    graph.replay()
    for out, value in zip(outs, expected):
        assert torch.equal(out, value)


def test_streams_share_a_plan():
    """Tables written on one stream are used on others; changing addresses disturbs nobody."""
    case = GroupedCase(MIXED, bias=True)
    operands = [GroupedOperands(case, "cuda") for _ in range(4)]
    plan = quack.grouped_plan(**operands[0].arguments())
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    for round in range(30):
        for i, t in enumerate(operands):
            with torch.cuda.stream(streams[(i + round) % 3]):
                plan(t.tensors.A, t.tensors.B, t.tensors.out, bias_list=t.tensors.bias)
    torch.cuda.synchronize()
    for t in operands:
        verify(t)


def test_torch_compile():
    t = GroupedOperands(GroupedCase(((64, 64, 64), (40, 72, 24))), "cuda")

    def chain(x, y):
        return [o * 2 for o in quack.gemm_grouped([x[0] + 0, x[1]], y)]

    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    a, b = list(t.tensors.A), list(t.tensors.B)
    for got, expected in zip(compiled(a, b), chain(a, b)):
        assert torch.equal(got, expected)


# ---- epilogues ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", forward_groups(), ids=str)
def test_activations(case: ActGroup):
    group = ForwardGroup(case, "cuda")
    for _ in range(3):
        group.run()
    group.check()


@pytest.mark.parametrize("case", backward_groups(), ids=str)
def test_gradients(case: ActGroup):
    group = BackwardGroup(case, "cuda")
    for _ in range(3):
        group.run()
    group.check()


@pytest.mark.filterwarnings("ignore:.*Everything.* spills")
@pytest.mark.parametrize("case", EVERY, ids=str)
def test_every_port(case: EveryGroup):
    operands = EveryOperands(case, "cuda")
    operands.run()
    operands.verify(operands.run())


@pytest.mark.parametrize("row, col", list(zip(REDUCTIONS, REDUCTIONS[::-1])))
@pytest.mark.parametrize("split", [1, 2])
def test_reductions(split: int, row: str, col: str):
    """Of 200 problems, whose partials are finished by few launches."""
    shapes = many(200, seed=3)
    A = [torch.randn(m, k, device="cuda").bfloat16() for m, _, k in shapes]
    B = [torch.randn(n, k, device="cuda").bfloat16().mT for _, n, k in shapes]
    options = dict(row=row, col=col, split_k=split, split_k_mode=quack.SplitKMode.SEPARATE)
    got = quack.gemm_grouped_reduce(A, B, **options)
    expected = quack.gemm_grouped_reduce_ref(A, B, row=row, col=col)
    for family, exact in zip(got, expected):
        for x, y in zip(family, exact, strict=True):
            torch.testing.assert_close(x, y, rtol=2e-2 if x.dtype is torch.bfloat16 else 1e-3, atol=3e-2)


def test_stochastic_rounding_of_problem_i_is_that_of_batch_i():
    A = torch.randn(8, 200, 136, device="cuda").bfloat16()
    B = torch.randn(8, 136, 264, device="cuda").bfloat16()
    for i in range(8):
        A[i, :, 16 * i + 8 :] = 0.0
    options = dict(rounding_mode=quack.RoundingMode.RS, sr_seed=11)
    expected = quack.gemm(A, B, **options)
    lists = [a[:, : 16 * i + 8] for i, a in enumerate(A)], [b[: 16 * i + 8] for i, b in enumerate(B)]
    for got, wanted in zip(quack.gemm_grouped(*lists, **options), expected):
        assert torch.equal(got, wanted)


@pytest.mark.filterwarnings("ignore:.*Everything.* spills")
@pytest.mark.parametrize("is_warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("split", [None, quack.SplitKMode.SERIAL, quack.SplitKMode.SEPARATE])
def test_graph_replays_of_every_port_see_new_contents(split, is_warm: bool):
    """A tile output, row and column partials, vectors and an input tile, captured, and replayed with other contents."""
    operands = EveryOperands(EveryGroup(half=True, split=split), "cuda")
    plan = quack.grouped_plan(**operands.arguments())
    if is_warm:
        plan()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = plan()
    for factor in (2.0, -0.5):
        for tensor in (*operands.A, *operands.r, *operands.c, *operands.t):
            tensor.mul_(factor)
        for tensor in (*operands.outs, *operands.half, *results[1], *results[2], *results[3]):
            tensor.fill_(float("nan"))
        graph.replay()
        operands.verify(results)


def test_graph_replays_of_gradients_finish_their_sums():
    """The plan may be gone by then: the graph keeps its partials and sums."""
    case = ActGroup(ActCase("swiglu", scale="fp32", reduce=True), nan=None)
    group = BackwardGroup(case, "cuda")
    plan = quack.grouped_plan(**group.arguments(), of=quack.gemm_grouped_dact)
    plan()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = plan()
    del plan
    for factor in (2.0, -0.5):
        for problem in group.problems:
            problem.A.mul_(factor)
            problem.product, problem.size = problem.multiply(torch.double)
        group.poison("dx", "postact")
        graph.replay()
        group.take(results)
        group.check()


@pytest.mark.parametrize("reduces", [False, True])
def test_torch_compile_of_activations(reduces: bool):
    shapes = ((64, 64, 64), (40, 72, 24))
    A = [torch.randn(m, k, device="cuda").bfloat16() for m, _, k in shapes]
    B = [torch.randn(k, n, device="cuda").bfloat16() for _, n, k in shapes]
    scale = [torch.rand(m, device="cuda") for m, _, _ in shapes]

    def chain(a, b):
        preact, postact = quack.gemm_grouped_act(a, b, activation="silu")
        gradients = quack.gemm_grouped_dact(
            a, b, preact, "silu", colvec_scale_list=scale, colvec_reduce=reduces, store_postact=False
        )
        return [x * 2 for x in (*postact, *gradients[0], *(gradients[2] if reduces else ()))]

    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(A, B), chain(A, B), strict=True):
        assert torch.equal(got, expected)
