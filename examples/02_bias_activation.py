"""A layer's bias and activation inside the GEMM: postact = gelu(x @ W^T + bias), and the pre-activation if the backward needs it.

With no CUDA device the Hopper kernel runs in the emulator, on a smaller problem.
"""

import torch

import quack


def run(device: str, m: int, n: int, k: int) -> None:
    x, W, bias = (torch.randn(*shape, device=device).bfloat16() for shape in ((m, k), (n, k), (n,)))

    _, postact = quack.gemm_act(x, W.T, bias=bias, activation="gelu_tanh_approx", store_preact=False)
    preact, same = quack.gemm_act(x, W.T, bias=bias, activation="gelu_tanh_approx")

    expected = x.float() @ W.float().T + bias.float()
    activated = torch.nn.functional.gelu(expected, approximate="tanh")
    torch.testing.assert_close(preact.float(), expected, rtol=8e-3, atol=1e-2)
    torch.testing.assert_close(postact.float(), activated, rtol=8e-3, atol=1e-2)
    assert torch.equal(postact, same)
    error = ((postact.float() - activated).norm() / activated.norm()).item()
    print(f"gelu({m}x{k} @ {k}x{n} + bias): rel. error {error:.1e} against float32")


def main() -> None:
    torch.manual_seed(0)
    if torch.cuda.is_available():
        run("cuda", 4096, 4096, 1024)
        return
    with quack.emulator.use("sm90"):
        run("cpu", 256, 384, 128)
    print("no CUDA device here: ran the Hopper kernel (sm_90a) in the emulator")


if __name__ == "__main__":
    main()
