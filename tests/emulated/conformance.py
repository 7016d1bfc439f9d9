"""Launches that were recorded on an H200 and are repeated by the emulator: same kernels, same inputs, outputs compared.

    python -m tests.emulated.conformance DIRECTORY [PREFIX]        on a GPU: writes one .npz per recording, or of those so named

Inputs are not stored: they follow from a seed through numpy's PCG64 and exact conversions.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cutlass
import numpy as np
import torch
from cutlass import cute
from cutlass.cute import runtime as cute_runtime
from cutlass.cute.nvgpu import OperandMajorMode

import quack
from quack.gemm_config import GemmConfig
from tests.emulated.gemm_sm120 import Sm120Gemm
from tests.emulated.kernels import WarpMmaTile, WgmmaTile

FOLDER = Path(__file__).with_name("h200")
CUTE_DTYPES = {
    torch.bfloat16: cutlass.BFloat16,
    torch.float16: cutlass.Float16,
    torch.float32: cutlass.Float32,
    torch.int8: cutlass.Int8,
    torch.int32: cutlass.Int32,
    torch.float8_e4m3fn: cutlass.Float8E4M3FN,
    torch.float8_e5m2: cutlass.Float8E5M2,
}
K, MN = OperandMajorMode.K, OperandMajorMode.MN


@dataclass(frozen=True)
class Values:
    """Normal numbers times 2^scale; with `spread` each also times a random power of two up to 2^+-spread.

    has_specials: a few zeros, infinities and NaN (where the format has them) among them.
    """

    scale: int = 0
    spread: int = 0
    has_specials: bool = False

    def draw(self, seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        generator = np.random.Generator(np.random.PCG64(seed))
        if dtype is torch.int8:
            return torch.from_numpy(generator.integers(-128, 128, shape, dtype=np.int8))
        numbers = generator.standard_normal(shape, dtype=np.float32) * np.float32(2.0**self.scale)
        if self.spread:
            numbers *= np.exp2(generator.integers(-self.spread, self.spread + 1, shape)).astype(np.float32)
        if self.has_specials:
            for special in (0.0, -0.0, np.inf, -np.inf, np.nan):
                numbers[generator.random(shape) < 0.004] = special
        return torch.from_numpy(numbers).to(dtype)


NORMAL = Values()


@dataclass(frozen=True)
class Recording:
    """One launch. `inputs`: tensors on the CPU; `run(device tensors)`: launches and returns the output.

    slack: by how much the emulator may differ from the H200, where how the tensor cores add is not fully known.
    """

    name: str
    inputs: Callable[[], list[torch.Tensor]]
    run: Callable[[list[torch.Tensor]], torch.Tensor]
    slack: float = 0.0

    def output(self, device: str) -> torch.Tensor:
        """The output on the CPU. device: "cuda", or "cpu" while emulation is on."""
        return self.run([t.to(device) for t in self.inputs()]).cpu()

    def recorded(self) -> torch.Tensor:
        """What the H200 wrote."""
        with np.load(FOLDER / f"{self.name}.npz") as data:
            raw = torch.from_numpy(data["bits"])
            return raw.view(getattr(torch, str(data["dtype"])))


def fake(tensor: torch.Tensor) -> Any:
    return cute_runtime.make_fake_tensor(
        CUTE_DTYPES[tensor.dtype], tuple(tensor.shape), tuple(tensor.stride()), assumed_align=16
    )


def run_tile(kernel: Any, tensors: list[torch.Tensor], out_dtype: torch.dtype) -> torch.Tensor:
    """One of `kernels` on A (M, K) and B (N, K)."""
    a, b = tensors
    d = torch.full((a.shape[0], b.shape[0]), 77, dtype=out_dtype, device=a.device)
    launch(kernel, a, b, d)
    return d


def launch(kernel: Any, *tensors: torch.Tensor, **numbers: int) -> None:
    """Compile for exactly these tensors and run, on the GPU or emulated."""
    emulated = not tensors[0].is_cuda
    options = quack.emulator.compile_options("sm90") if emulated else "--enable-tvm-ffi --gpu-arch sm_90a"
    stream = cute_runtime.make_fake_stream(use_tvm_ffi_env_stream=True)
    scalars = [cutlass.Int32(n) for n in numbers.values()]
    compiled = cute.compile(kernel, *map(fake, tensors), *scalars, stream, options=options)
    if emulated:
        quack.emulator.launch(compiled, *tensors, *numbers.values())
    else:
        compiled(*tensors, *numbers.values())
        torch.cuda.synchronize()


def tile(
    name: str,
    dtype: torch.dtype,
    mnk: tuple[int, int, int],
    kernel: Any,
    values: Values = NORMAL,
    out: Any = torch.float32,
) -> Recording:
    (m, n, k), seed = mnk, sum(name.encode())
    return Recording(
        name,
        lambda: [values.draw(seed, (m, k), dtype), values.draw(seed + 1, (n, k), dtype)],
        lambda tensors: run_tile(kernel, tensors, out),
    )


def wgmma(
    name: str,
    dtype: torch.dtype,
    k: int,
    majors: tuple[Any, Any] = (K, K),
    values: Values = NORMAL,
    out: torch.dtype = torch.float32,
    **options: Any,
) -> Recording:
    """64 x 64 x k; options: as `WgmmaTile`."""
    cute_dtype = CUTE_DTYPES[dtype]
    kernel = WgmmaTile(64, k, cute_dtype, cute_dtype, *majors, acc_dtype=CUTE_DTYPES[out], **options)
    return tile(name, dtype, (64, 64, k), kernel, values, out)


def warp_gemm(name: str, dtype: torch.dtype, shape: tuple[int, int, int], values: Values = NORMAL) -> Recording:
    """A whole kernel of mma.sync, ldmatrix and TMA, the one for sm_120a compiled for sm_90a; fp32 out."""
    (m, n, k), seed = shape, sum(name.encode())
    kernel = Sm120Gemm(64, 64, 128 // dtype.itemsize, CUTE_DTYPES[dtype], cutlass.Float32, 3)

    def run(tensors: list[torch.Tensor]) -> torch.Tensor:
        out = torch.full((m, n), float("nan"), device=tensors[0].device)
        a, b, d = (t.unsqueeze(-1) for t in (*tensors, out))
        launch(kernel, a, b, d, ctas=2)
        return out

    return Recording(name, lambda: [values.draw(seed, (m, k), dtype), values.draw(seed + 1, (n, k), dtype)], run)


def gemm(
    name: str,
    shape: tuple[int, int, int],
    config: GemmConfig,
    dtype: torch.dtype = torch.bfloat16,
    out_dtype: torch.dtype = torch.bfloat16,
    with_c: bool = False,
    a_is_strided: bool = False,
    **options: Any,
) -> Recording:
    """`quack.gemm_tuned.fn` on A (M, K), K contiguous unless a_is_strided, and B (N, K)^T."""
    (m, n, k), seed = shape, sum(name.encode())

    def inputs() -> list[torch.Tensor]:
        tensors = [NORMAL.draw(seed, (m, k), dtype), NORMAL.draw(seed + 1, (n, k), dtype)]
        return tensors + (
            [NORMAL.draw(seed + 2, (m, n), torch.bfloat16), NORMAL.draw(seed + 3, (n,), torch.bfloat16)]
            if with_c
            else []
        )

    def run(tensors: list[torch.Tensor]) -> torch.Tensor:
        a, b = tensors[:2]
        a = a.mT.contiguous().mT if a_is_strided else a
        c, bias = tensors[2:] if with_c else (None, None)
        out = torch.full((m, n), float("nan"), device=a.device).to(out_dtype)
        scale: dict[str, Any] = {"alpha": 0.75, "beta": -1.5} if with_c else {}
        quack.gemm_tuned.fn(a, b.T, out, C=c, bias=bias, config=config, **scale, **options)
        return out

    return Recording(name, inputs, run)


BF16, FP16, E4M3, E5M2 = torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2
FP32 = torch.float32
RECORDINGS = [
    *(wgmma(f"wgmma_bf16_k_sw{s}", BF16, 64, swizzle=s) for s in (16, 32, 64, 128)),
    *(wgmma(f"wgmma_bf16_mn_sw{s}", BF16, 64, (MN, MN), swizzle=s) for s in (16, 32, 64, 128)),
    wgmma("wgmma_fp16_mixed_majors", FP16, 64, (K, MN)),
    wgmma("wgmma_bf16_wide", BF16, 16, values=Values(spread=12), swizzle=32),
    wgmma("wgmma_bf16_wide_k64", BF16, 64, values=Values(spread=12)),
    wgmma("wgmma_fp16_wide", FP16, 64, values=Values(spread=5)),
    wgmma("wgmma_e4m3", E4M3, 128),
    wgmma("wgmma_e4m3_k32", E4M3, 32, swizzle=32, values=Values(spread=3)),
    wgmma("wgmma_e5m2_wide", E5M2, 128, values=Values(spread=6)),
    wgmma("wgmma_bf16_registers", BF16, 64, a_from_registers=True),
    wgmma("wgmma_fp16_subnormal", FP16, 64, values=Values(scale=-17, spread=3)),
    wgmma("wgmma_e4m3_subnormal", E4M3, 64, swizzle=64, values=Values(scale=-7, spread=2)),
    wgmma("wgmma_e5m2_subnormal", E5M2, 64, swizzle=64, values=Values(scale=-16, spread=2)),
    wgmma("wgmma_bf16_special", BF16, 64, values=Values(has_specials=True)),
    wgmma("wgmma_fp16_special", FP16, 64, values=Values(spread=6, has_specials=True)),
    wgmma("wgmma_fp16_acc_fp16", FP16, 64, values=Values(spread=2), out=FP16),
    wgmma("wgmma_e4m3_acc_fp16", E4M3, 64, swizzle=64, out=FP16),
    wgmma("wgmma_s8", torch.int8, 128, out=torch.int32),
    tile("mma_bf16", BF16, (16, 8, 64), WarpMmaTile(64, cutlass.BFloat16), Values(spread=6)),
    tile("mma_fp16", FP16, (16, 8, 64), WarpMmaTile(64, cutlass.Float16), Values(spread=4)),
    warp_gemm("warp_gemm_bf16", BF16, (136, 72, 264)),
    warp_gemm("warp_gemm_fp16_wide", FP16, (72, 136, 136), Values(spread=4)),
    warp_gemm("warp_gemm_e4m3", E4M3, (72, 136, 272)),
    warp_gemm("warp_gemm_e5m2_wide", E5M2, (72, 72, 144), Values(spread=5)),
    gemm("gemm_multicast_a", (200, 264, 136), GemmConfig(128, 128, cluster_n=2, pingpong=True)),
    gemm("gemm_multicast_b", (264, 136, 200), GemmConfig(128, 128, cluster_m=2)),
    gemm("gemm_fp16_fp32", (136, 200, 264), GemmConfig(128, 192), FP16, torch.float32),
    gemm("gemm_e4m3_fast", (192, 128, 512), GemmConfig(128, 128), E4M3, torch.float32, fast_accum=True),
    gemm("gemm_e4m3_precise", (192, 128, 512), GemmConfig(128, 128), E4M3, torch.float32),
    gemm("gemm_epilogue", (200, 136, 136), GemmConfig(128, 128, pingpong=True), with_c=True),
    gemm("gemm_odd_dynamic", (131, 203, 72), GemmConfig(128, 128, pingpong=True, is_dynamic_persistent=True)),
    wgmma("wgmma_tf32_k8", FP32, 8, swizzle=32, values=Values(spread=8)),
    wgmma("wgmma_tf32", FP32, 32),
    *(wgmma(f"wgmma_tf32_sw{s}", FP32, 32, swizzle=s) for s in (16, 32, 64)),
    wgmma("wgmma_tf32_wide_k64", FP32, 64, values=Values(spread=12)),
    wgmma("wgmma_tf32_special", FP32, 64, values=Values(spread=6, has_specials=True)),
    replace(wgmma("wgmma_tf32_subnormal", FP32, 64, values=Values(scale=-66, spread=3)), slack=4 * 2.0**-149),
    wgmma("wgmma_tf32_tiny_operands", FP32, 64, values=Values(scale=-64, spread=70)),
    wgmma("wgmma_tf32_registers", FP32, 64, a_from_registers=True, values=Values(spread=2)),
    wgmma("wgmma_tf32_registers_m", FP32, 64, (MN, K), a_from_registers=True),
    gemm("gemm_tf32", (200, 136, 200), GemmConfig(128, 128, pingpong=True), FP32, FP32),
    gemm("gemm_tf32_columns", (264, 136, 200), GemmConfig(256, 128, cluster_m=1), FP32, FP32, a_is_strided=True),
]  # fmt: skip


def main() -> None:
    """Record on the GPU of this machine."""
    target, prefix = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    target.mkdir(parents=True, exist_ok=True)
    for recording in (r for r in RECORDINGS if r.name.startswith(prefix)):
        output = recording.output("cuda").contiguous()
        bits = output.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[output.element_size()])
        dtype = str(output.dtype).removeprefix("torch.")
        np.savez_compressed(target / f"{recording.name}.npz", bits=bits.numpy(), dtype=dtype)
        print(f"{recording.name:28} {tuple(output.shape)} {dtype}", flush=True)


if __name__ == "__main__":
    main()
