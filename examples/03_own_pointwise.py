"""An epilogue of your own in one line: a function of one element. Parameters are run-time inputs, captured values constants.

With no CUDA device the Hopper kernel runs in the emulator, on a smaller problem.
"""

import torch

import quack
from quack import ops

# cap is a number at run time: other caps compile nothing.
softcap = quack.pointwise(lambda acc, cap: cap * ops.tanh(acc / cap))
# What is no scalar says what it is: here a vector along N, one along M and a matrix like D.
gate = quack.pointwise(
    lambda acc, scale, shift, residual: ops.sigmoid(acc * scale + shift) * residual,
    scale=quack.RowVector,
    shift=quack.ColVector,
    residual=quack.TileInput,
)


def run(device: str, m: int, n: int, k: int) -> None:
    A, W, R = (torch.randn(*shape, device=device).bfloat16() for shape in ((m, k), (n, k), (m, n)))
    scale, shift = torch.rand(n, device=device), torch.randn(m, device=device)
    product = A.float() @ W.float().T

    for cap in (30.0, 5.0):
        D = quack.gemm(A, W.T, epilogue=softcap(cap=cap))
        torch.testing.assert_close(D.float(), cap * torch.tanh(product / cap), rtol=8e-3, atol=1e-2)

    D = quack.gemm(A, W.T, epilogue=gate(scale, shift, R))
    expected = torch.sigmoid(product * scale + shift[:, None]) * R.float()
    torch.testing.assert_close(D.float(), expected, rtol=8e-3, atol=1e-2)

    # Nothing but the accumulator: a bare function does. Several epilogues are a tuple, applied in order.
    D = quack.gemm(A, W.T, epilogue=(lambda acc: ops.where(acc > 0.0, acc, 0.1 * acc), softcap(3.0)))
    expected = 3.0 * torch.tanh(torch.nn.functional.leaky_relu(product, 0.1) / 3.0)
    torch.testing.assert_close(D.float(), expected, rtol=8e-3, atol=1e-2)
    print(f"soft cap, gate and leaky ReLU of {m}x{k} @ {k}x{n} agree with torch")


def main() -> None:
    torch.manual_seed(0)
    if torch.cuda.is_available():
        run("cuda", 4096, 4096, 1024)
        return
    with quack.emulator.use("sm90"):
        run("cpu", 256, 384, 128)
    print("no CUDA device here: ran the Hopper kernels (sm_90a) in the emulator")


if __name__ == "__main__":
    main()
