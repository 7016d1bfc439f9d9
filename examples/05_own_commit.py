"""A commit policy of your own decides what is stored: here the lower triangle of D, without writing above it.

With no CUDA device the Hopper kernel runs in the emulator, on a smaller problem.
"""

import cutlass.cute as cute
import torch

import quack
from quack import ops


class LowerTriangle(quack.DefaultCommit):
    """Subtiles wholly above the diagonal are not stored; in those that it crosses, what is above it becomes 0."""

    @cute.jit  # its `if` is decided at run time, the same way by all threads of a warpgroup
    def commit(self, ctx, io, frag, state):
        for v, (row, col) in enumerate(ctx.coordinates(frag)):
            frag.acc[v] = ops.where(col <= row, frag.acc[v], 0.0)
        first_row = ctx.row + ctx.slab_rows[frag.slab]
        first_col = ctx.col + frag.subtile * io.epi_n
        if first_col < first_row + ctx.layout.slab_m:
            state = quack.DefaultCommit.commit(self, ctx, io, frag, state)
        return state


def run(device: str, n: int, k: int) -> None:
    A = torch.randn(n, k, device=device).bfloat16()
    D = torch.zeros(n, n, device=device, dtype=torch.bfloat16)

    quack.gemm(A, A.T, out=D, commit=LowerTriangle)

    expected = (A.float() @ A.float().T).tril()
    torch.testing.assert_close(D.float(), expected, rtol=8e-3, atol=1e-2)
    untouched = torch.full_like(D, float("nan"))
    quack.gemm(A, A.T, out=untouched, commit=LowerTriangle)
    written = untouched.isfinite().float().mean().item()
    print(f"lower triangle of {n}x{k} @ {k}x{n}; {100 * written:.0f} % of D was written")


def main() -> None:
    torch.manual_seed(0)
    if torch.cuda.is_available():
        run("cuda", 4096, 1024)
        return
    with quack.emulator.use("sm90"):
        run("cpu", 512, 128)
    print("no CUDA device here: ran the Hopper kernel (sm_90a) in the emulator")


if __name__ == "__main__":
    main()
