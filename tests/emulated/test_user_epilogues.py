"""Epilogues and commit policies of users, in the emulator."""

import linecache
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import quack
from quack import ops
from quack.runtime import call
from tests.user_epilogue_cases import EVERYTHING, EverythingCase, LowerTriangle, RowMax, near, run_everything, softcap

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Copying(quack.EpilogueMixin):
    copy: quack.TileOutput

    def visit(self, ctx, state, frag):
        frag.put(self.copy, frag.mapped(lambda x: -x))


@pytest.fixture(autouse=True)
def emulated():
    torch.manual_seed(0)
    with quack.emulator.use("sm90", schedule="latest", checks=("all",), sms=4):
        yield


def problem(m: int, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    A, B = torch.randn(m, k).bfloat16(), torch.randn(k, n).bfloat16()
    return A, B, A.double() @ B.double()


@pytest.mark.one_in(2)
@pytest.mark.filterwarnings("ignore:.*Everything.* spills")
@pytest.mark.parametrize("case", EVERYTHING, ids=str)
def test_every_port(case: EverythingCase):
    run_everything(case, "cpu")


@pytest.mark.parametrize("m", [3, 200], ids=["few rows: A and B change places", "many rows"])
def test_softcap(m: int):
    A, B, product = problem(m, 320, 96)
    caps = [5.0, 2.0, torch.tensor([3.0])]
    plans = []
    for cap in caps:
        near(quack.gemm(A, B, epilogue=softcap(cap=cap)), float(cap) * torch.tanh(product / float(cap)), rtol=2**-7)
        plans.append(len(call._calls))
    assert plans[0] == plans[1] < plans[2]  # numbers share one kernel, a tensor has another


def test_vectors_change_places_with_the_operands():
    """M = 2 swaps A and B: what was a vector along N must be one along the kernel's M."""
    A, B, product = problem(2, 264, 64)
    r, c, t = torch.randn(264), torch.randn(2), torch.randn(2, 264)
    fused = quack.pointwise(
        lambda acc, r, c, t: acc * r + c - t, r=quack.RowVector, c=quack.ColVector, t=quack.TileInput
    )
    expected = product * r.double() + c.double()[:, None] - t.double()
    config = quack.GemmConfig(64, 64, swap_ab=True)
    for pinned in (None, config):
        out = torch.full((2, 264), float("nan"))
        assert quack.gemm_tuned.fn(A, B, out, config=pinned, epilogue=fused(r, c, t)) is out
        near(out, expected)


def test_terms_are_applied_in_order_behind_the_affine_ones():
    A, B, product = problem(136, 72, 64)
    bias, C = torch.randn(72), torch.randn(136, 72)
    double, square = (lambda acc: acc * 2.0), (lambda acc: acc * acc)
    got = quack.gemm(A, B, bias=bias, alpha=0.5, epilogue=(double, square), out_dtype=torch.float32)
    near(got, (2 * (0.5 * product + bias.double())) ** 2)
    got = quack.gemm_add(A, B, C, beta=3.0, epilogue=(square, double), out_dtype=torch.float32)
    near(got, 2 * (product + 3 * C.double()) ** 2)


def test_functions():
    A, B, product = problem(64, 64, 32)

    def check(function, exact):
        near(quack.gemm(A, B, epilogue=function, out_dtype=torch.float32), exact, rtol=1e-5)

    positive = product.abs() + 1.0
    check(lambda acc: ops.exp(ops.minimum(acc, 1.0)), product.clamp(max=1.0).exp())
    check(lambda acc: ops.log(ops.abs(acc) + 1.0) + ops.log2(ops.abs(acc) + 1.0), positive.log() + positive.log2())
    check(lambda acc: ops.rsqrt(ops.abs(acc) + 1.0) + ops.sqrt(ops.abs(acc) + 1.0), positive.rsqrt() + positive.sqrt())
    check(
        lambda acc: ops.reciprocal(ops.abs(acc) + 1.0) + ops.exp2(-ops.abs(acc)),
        1 / positive + torch.exp2(1 - positive),
    )
    check(
        lambda acc: ops.where(acc > 0.5, ops.silu(acc), 2.0),
        torch.where(product > 0.5, product * product.sigmoid(), 2.0),
    )


@pytest.mark.parametrize("gathers", [False, True])
@pytest.mark.parametrize("ragged", ["m", "k"])
def test_ragged_and_gathered(ragged: str, gathers: bool):
    """Row maxima after a vector for each group."""
    offsets = torch.tensor([0, 70, 70, 200], dtype=torch.int32)
    index = torch.randperm(200).to(torch.int32)
    m, n, k, groups = 200, 136, 200, 3
    if ragged == "m":
        A, B = torch.randn(m, 72).bfloat16(), torch.randn(groups, 72, n).bfloat16()
    else:
        A, B = torch.randn(k, 104).bfloat16().mT, torch.randn(k, n).bfloat16()
    r = torch.randn(groups, n)
    arguments = {f"cu_seqlens_{ragged}": offsets, "A_idx": index if gathers else None}
    epilogue = (quack.pointwise(lambda acc, r: acc * r, r=quack.RowVector)(r), RowMax())
    D, row_max = quack.gemm(A, B, epilogue=epilogue, out_dtype=torch.float32, **arguments)

    if gathers:
        A = A[index] if ragged == "m" else A[:, index]
    parts = []
    for g, (i, j) in enumerate(zip(offsets, offsets[1:])):
        product = A[i:j].double() @ B[g].double() if ragged == "m" else A[:, i:j].double() @ B[i:j].double()
        parts.append(product * r[g].double())
    expected = torch.cat(parts) if ragged == "m" else torch.stack(parts)
    near(D, expected)
    near(row_max.amax(-1), expected.amax(-1))


def test_grouped():
    problems = [problem(*extents) for extents in ((200, 136, 96), (64, 320, 40), (0, 64, 8), (10, 64, 200))]
    A, B = [p[0] for p in problems], [p[1] for p in problems]
    for cap in (4.0, torch.tensor([2.0])):
        for out, (_, _, product) in zip(quack.gemm_grouped(A, B, epilogue=softcap(cap)), problems):
            near(out, float(cap) * torch.tanh(product / float(cap)), rtol=2**-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("n", [200, 202], ids=["by TMA", "by element"])
def test_commit_policy(n: int, dtype: torch.dtype):
    A, B, product = problem(n, n, 72)
    out = torch.full((n, n), float("nan"), dtype=dtype)
    got = quack.gemm(A, B, out=out, commit=LowerTriangle)
    assert got is out
    lower = torch.ones(n, n, dtype=torch.bool).tril()
    near(out[lower], product[lower])
    assert (out[~lower].isnan() | (out[~lower] == 0)).all() and out[~lower].isnan().any()


def test_nothing_to_compute():
    A, B, _ = problem(0, 64, 32)
    out, copy = quack.gemm(A, B, epilogue=Copying())
    assert out.shape == copy.shape == (0, 64)


def test_outputs_by_tma_and_by_element():
    for n in (72, 74):
        A, B, product = problem(130, n, 40)
        out, copy = quack.gemm(A, B, epilogue=Copying(), out_dtype=torch.float32)
        near(out, product)
        near(copy, -product)


def cell(text: str, name: str) -> dict[str, Any]:
    """A notebook cell: the source is in linecache, the module is __main__."""
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, name, "exec"), space)
    return space


CELL = """
import quack, cutlass.cute as cute
class Scaled(quack.EpilogueMixin):
    def visit(self, ctx, state, frag):
        frag.update(lambda x: x * {0})
class Commit(quack.DefaultCommit):
    @cute.jit
    def commit(self, ctx, io, frag, state):
        if ctx.row < {1}:
            state = quack.DefaultCommit.commit(self, ctx, io, frag, state)
        return state
"""


def test_two_classes_of_one_name():
    """A cell that was edited and runs again."""
    A, B, product = problem(256, 64, 32)
    config = quack.GemmConfig(128, 64, cluster_m=1)
    for factor, rows in ((2.0, 128), (3.0, 256), (2.0, 128)):
        space = cell(CELL.format(factor, rows), "<cell>")
        out = torch.full((256, 64), float("nan"))
        quack.gemm_tuned.fn(A, B, out, config=config, epilogue=space["Scaled"](), commit=space["Commit"])
        near(out[:rows], factor * product[:rows])
        assert out[rows:].isnan().all()


def test_a_class_without_any_source():
    text = CELL[: CELL.index("class Commit")].format(5.0)
    space: dict[str, Any] = {"__name__": "nowhere"}
    exec(compile(text, "<nowhere>", "exec"), space)
    A, B, product = problem(64, 64, 32)
    near(quack.gemm(A, B, epilogue=space["Scaled"]()), 5.0 * product)


SCRIPT = """
import torch, quack
from dataclasses import dataclass
@dataclass(frozen=True)
class Shifted(quack.EpilogueMixin):
    by: quack.Scalar
    twice: bool = False
    def begin(self, ctx):
        return ctx.load_scalar(self.by)
    def visit(self, ctx, state, frag):
        frag.update(lambda x: x + state * (2.0 if self.twice else 1.0))
        return state
A, B = torch.randn(72, 40).bfloat16(), torch.randn(40, 88).bfloat16()
with quack.emulator.use("sm90"):
    for twice in (False, True):
        D = quack.gemm(A, B, out_dtype=torch.float32, epilogue=Shifted(1.5, twice))
        torch.testing.assert_close(D, A.float() @ B.float() + (3.0 if twice else 1.5), rtol=1e-5, atol=1e-4)
print("fine")
"""


def test_defined_in_main(tmp_path: Path):
    """In a script, and in one that has no file; the second finds the kernel of the first on disk."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "QUACK_CACHE_DIR": str(tmp_path / "cache")}
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    entries = []
    for command in ([path], ["-c", SCRIPT]):
        done = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True)
        assert done.stdout == "fine\n", done.stderr
        entries.append(sorted(p.name for p in (tmp_path / "cache").rglob("*.zip")))
    assert entries[0] == entries[1] and len(entries[0]) == 2


def test_errors_while_tracing_name_the_cause():
    A, B, _ = problem(64, 64, 32)
    with pytest.raises(quack.runtime.compile.CompileError, match="of yours does not compile.*(?s:no_such_thing)"):
        quack.gemm(A, B, epilogue=lambda acc: acc.no_such_thing)


def test_torch_compile_leaves_the_graph():
    A, B, product = problem(64, 64, 32)

    def layer(a, b):
        return quack.gemm(a * 2, b, epilogue=softcap(cap=5.0)) * 0.5

    near(torch.compile(layer, backend="eager")(A, B), 2.5 * torch.tanh(product * 2 / 5), rtol=2**-7)


def test_the_documentation_runs():
    text = (ROOT / "docs" / "epilogues.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert len(blocks) == 6
    cell("\n".join(blocks), "<docs/epilogues.md>")


def test_spills_are_reported(tmp_path: Path, monkeypatch):
    """A class that keeps hundreds of registers alive from one subtile to the next."""

    class Hoarder(quack.EpilogueMixin):
        def begin(self, ctx):
            return []

        def visit(self, ctx, state, frag):
            state = [*state, frag.mapped(lambda x: ops.exp(x))]
            for kept in state:
                frag.update(lambda x, y: x + y, kept)
            return state

    monkeypatch.setenv("QUACK_CACHE_DIR", str(tmp_path))
    A, B, product = problem(128, 256, 32)
    out = torch.full((128, 256), float("nan"))
    with pytest.warns(RuntimeWarning, match="Hoarder.* spills .* pin a smaller tile_n"):
        quack.gemm_tuned.fn(A * 0.1, B, out, config=quack.GemmConfig(128, 256), epilogue=Hoarder())
    exact = (A * 0.1).double() @ B.double()
    parts = [exact[:, i : i + 32] for i in range(0, 256, 32)]
    near(out, torch.cat([part + sum(p.exp() for p in parts[: i + 1]) for i, part in enumerate(parts)], 1), rtol=1e-5)
