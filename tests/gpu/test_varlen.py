"""Ragged GEMMs on the GPU."""

import pytest
import torch

import quack
from tests.ragged_cases import RaggedCase, RaggedOperands, cases, run, verify

BIG = [
    RaggedCase("m", (1000, 0, 4096, 1, 777, 2048), n=1536, k=520, nan_group=2),
    RaggedCase("m", tuple(int(x) for x in torch.randint(0, 300, (128,), generator=torch.Generator().manual_seed(3))), n=520, k=264),
    RaggedCase("k", (1000, 0, 4096, 1, 777, 2048), m=520, n=392, nan_group=2),
    RaggedCase("m", (1000, 0, 4096, 1, 777, 2048), n=1536, k=520, pool=4000, nan_group=2),
    RaggedCase("k", (1000, 0, 4096, 1, 777, 2048), m=520, n=392, pool=4000, nan_group=2),
]  # fmt: skip


@pytest.mark.parametrize("case", cases() + BIG, ids=str)
def test_against_reference(case: RaggedCase):
    t = RaggedOperands(case, "cuda")
    run(t)
    torch.cuda.synchronize()
    verify(t)


def test_graph_replay_reads_new_offsets():
    t = RaggedOperands(RaggedCase("m", (100, 37, 0, 200, 5), n=136, k=72), "cuda")
    other = RaggedOperands(RaggedCase("m", (0, 5, 300, 30, 7), n=136, k=72), "cuda")
    run(t)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        quack.gemm(t.A, t.B, out=t.out.tensor, cu_seqlens_m=t.offsets)
    t.offsets.copy_(other.offsets)
    t.A.copy_(other.A)
    t.B.copy_(other.B)
    graph.replay()
    torch.cuda.synchronize()
    other.out = t.out
    verify(other)
