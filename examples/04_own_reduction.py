"""An epilogue with a state and an output of its own: the maximum of every row of D, while D is still in registers.

With no CUDA device the Hopper kernel runs in the emulator, on a smaller problem.
"""

import math
from dataclasses import dataclass

import torch

import quack
from quack import ops


@dataclass(frozen=True)
class RowMax(quack.EpilogueMixin):
    """Also writes the maximum of every row of every tile, (M, tiles of N) fp32."""

    row_max: quack.RowPartials  # an output that the call allocates and returns

    def begin(self, ctx):  # once per tile
        return ctx.row_state(-math.inf)

    def visit(self, ctx, state, frag):  # once per subtile, in registers; the last tile may reach beyond column N
        return ctx.reduce_rows(state, frag, ctx.within_columns(frag, frag.acc, -math.inf), ops.maximum)

    def end(self, ctx, state):  # once per tile
        ctx.store_rows(self.row_max, ctx.share_rows(state, ops.maximum))


def run(device: str, m: int, n: int, k: int) -> None:
    A, W = torch.randn(m, k, device=device).bfloat16(), torch.randn(n, k, device=device).bfloat16()

    D, row_max = quack.gemm(A, W.T, epilogue=RowMax())

    product = A.float() @ W.float().T
    torch.testing.assert_close(D.float(), product, rtol=8e-3, atol=1e-2)
    torch.testing.assert_close(row_max.amax(dim=1), product.amax(dim=1), rtol=1e-4, atol=1e-4)
    print(f"{m} row maxima from {row_max.shape[1]} tiles of {m}x{k} @ {k}x{n}")


def main() -> None:
    torch.manual_seed(0)
    if torch.cuda.is_available():
        run("cuda", 4096, 4000, 1024)
        return
    with quack.emulator.use("sm90"):
        run("cpu", 256, 360, 128)
    print("no CUDA device here: ran the Hopper kernel (sm_90a) in the emulator")


if __name__ == "__main__":
    main()
