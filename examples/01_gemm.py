"""A plain GEMM, D = A @ W^T, compared with float32.

With no CUDA device, the Hopper kernel is compiled all the same and its PTX runs in the emulator, on a smaller problem.
"""

import time

import torch

import quack

M, N, K = 2048, 4096, 1024
TIMED_CALLS = 50


def microseconds_per_call(call) -> float:
    """Mean over back-to-back calls, by CUDA events. benchmarks/gemm.py is the careful way to measure."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(TIMED_CALLS):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3 / TIMED_CALLS


def run_on_gpu() -> None:
    A = torch.randn(M, K, device="cuda", dtype=torch.bfloat16)
    W = torch.randn(N, K, device="cuda", dtype=torch.bfloat16)
    D = quack.gemm(A, W.T)

    reference = A.float() @ W.float().T
    error = ((D.float() - reference).norm() / reference.norm()).item()
    us = microseconds_per_call(lambda: quack.gemm(A, W.T, out=D))
    print(f"ran on       {torch.cuda.get_device_name()}")
    print(f"problem      {M}x{N}x{K} bf16")
    print(f"rel. error   {error:.2e} against float32")
    print(f"speed        {2e-6 * M * N * K / us:.0f} TFLOP/s ({us:.1f} us)")


def run_emulated() -> None:
    m, n, k = 512, 768, 256
    A, W = torch.randn(m, k).bfloat16(), torch.randn(n, k).bfloat16()
    with quack.emulator.use("sm90"):
        start = time.perf_counter()
        D = quack.gemm(A, W.T)
        first = time.perf_counter() - start
        start = time.perf_counter()
        quack.gemm(A, W.T, out=D)
        seconds = time.perf_counter() - start

    reference = A.float() @ W.float().T
    error = ((D.float() - reference).norm() / reference.norm()).item()
    print("no CUDA device here: ran the Hopper kernel (sm_90a) in the emulator")
    print(f"problem      {m}x{n}x{k} bf16")
    print(f"rel. error   {error:.2e} against float32")
    print(f"took         {seconds:.2f} s emulated, {first:.1f} s the first time (compilation included)")


def main() -> None:
    if torch.cuda.is_available():
        run_on_gpu()
    else:
        run_emulated()


if __name__ == "__main__":
    main()
