"""Grouped GEMMs on the GPU: every case, repeated launches, graphs and streams."""

import pytest
import torch

import quack
from tests.grouped_cases import MIXED, GroupedCase, GroupedOperands, cases, many, run, verify


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
