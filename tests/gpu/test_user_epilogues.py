"""Epilogues and commit policies of users, compiled in a process that has a CUDA context."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import quack
from tests.user_epilogue_cases import (
    COOPERATIVE,
    EVERYTHING,
    PINGPONG,
    TALL,
    EverythingCase,
    LowerTriangle,
    RowMax,
    near,
    run_everything,
    softcap,
)

ROOT = Path(__file__).resolve().parents[2]
LARGER = (
    EverythingCase(2048, 4096, 512, half=True),
    EverythingCase(1111, 2056, 264, batch=4, negate=True, dtype=torch.float32),
    EverythingCase(4001, 1032, 512, groups=(1000, 1, 0, 3000), half=True),
    EverythingCase(3000, 5000, 264, config=PINGPONG),
    EverythingCase(3000, 5000, 264, config=COOPERATIVE),
    EverythingCase(3000, 5000, 264, half=True, config=TALL),
)


def problem(m: int, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    A, B = torch.randn(m, k, device="cuda").bfloat16(), torch.randn(k, n, device="cuda").bfloat16()
    return A, B, A.double() @ B.double()


@pytest.mark.filterwarnings("ignore:.*Everything.* spills")
@pytest.mark.parametrize("case", (*EVERYTHING, *LARGER), ids=str)
def test_every_port(case: EverythingCase):
    run_everything(case, "cuda")


@pytest.mark.parametrize("m", [3, 3000])
def test_softcap(m: int):
    A, B, product = problem(m, 4096, 512)
    for cap in (5.0, 20.0, torch.tensor([30.0], device="cuda")):
        near(quack.gemm(A, B, epilogue=softcap(cap=cap)), float(cap) * torch.tanh(product / float(cap)), rtol=2**-7)


def test_row_maximum():
    A, B, product = problem(4000, 8000, 256)
    D, row_max = quack.gemm(A, B, epilogue=RowMax())
    near(D, product)
    near(row_max.amax(1), product.amax(1))


def test_grouped():
    problems = [problem(*extents) for extents in ((200, 136, 96), (640, 3200, 400), (0, 64, 8), (10, 64, 2000))]
    A, B = [p[0] for p in problems], [p[1] for p in problems]
    for out, (_, _, product) in zip(quack.gemm_grouped(A, B, epilogue=softcap(4.0)), problems):
        near(out, 4.0 * torch.tanh(product / 4.0), rtol=2**-7)


@pytest.mark.parametrize("n", [4096, 1001])
def test_commit_policy(n: int):
    A, B, product = problem(n, n, 264)
    out = torch.full((n, n), math.nan, device="cuda", dtype=torch.bfloat16)
    quack.gemm(A, B, out=out, commit=LowerTriangle)
    lower = torch.ones_like(out, dtype=torch.bool).tril()
    near(out[lower], product[lower])
    assert (out[~lower].isnan() | (out[~lower] == 0)).all() and out[~lower].isnan().any()


def test_in_a_cuda_graph():
    A, B, product = problem(512, 512, 128)
    out, epilogue = torch.empty(512, 512, device="cuda"), softcap(torch.tensor([7.0], device="cuda"))
    quack.gemm(A, B, out=out, epilogue=epilogue)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        quack.gemm(A, B, out=out, epilogue=epilogue)
    out.fill_(math.nan)
    graph.replay()
    near(out, 7.0 * torch.tanh(product / 7.0), rtol=2**-10)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("0[2-9]_*.py")), ids=lambda path: path.stem)
def test_example(path: Path):
    done = subprocess.run([sys.executable, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
