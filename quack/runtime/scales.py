"""Scale factors of block-scaled A and B: what a call may pass, and how the kernel sees it."""

from typing import Any, NamedTuple, Optional

import torch

from ..block_scales import BLOCK_BYTES, BLOCK_WORDS, blocks_of
from ..gemm_config import TMA_ALIGN_BYTES, BlockScaling, Dtype
from .operands import INPUT_DTYPE_OF_TORCH
from .spec import UnsupportedGemm

Request = Any  # a `plan.GemmRequest`; plan imports this module
SCALING_OF_TORCH = {torch.float8_e8m0fnu: BlockScaling.MX, torch.float8_e4m3fn: BlockScaling.NV}


def elements_along_k(request: Request) -> int:
    """K, of which a tensor of packed elements shows half."""
    return request.A.shape[-1] * (2 if INPUT_DTYPE_OF_TORCH.get(request.A.dtype) is Dtype.E2M1 else 1)


def check_scales(request: Request) -> Optional[BlockScaling]:
    """Every rule about dtypes, sizes and devices of scales, with A, B and out known to fit; None if there are none."""
    scales = {"A_scale": request.A_scale, "B_scale": request.B_scale}
    given = {name: scale for name, scale in scales.items() if scale is not None}
    if not given:
        return None
    for name in scales:
        if name not in given:
            raise ValueError(f"{name} is missing: both operands are scaled, or none")
    for name, scale in given.items():
        if not isinstance(scale, torch.Tensor):
            raise TypeError(f"{name} is a {type(scale).__name__}, expected a torch.Tensor")
        if scale.dtype not in SCALING_OF_TORCH:
            legal = ", ".join(map(str, SCALING_OF_TORCH))
            raise UnsupportedGemm(f"{name} has dtype {scale.dtype}", f"one of {legal}")
        if scale.device != request.A.device:
            raise ValueError(f"A is on {request.A.device} and {name} is on {scale.device}: pass both on one device")
    A_scale, B_scale = given.values()
    if A_scale.dtype != B_scale.dtype:
        raise ValueError(f"A_scale has dtype {A_scale.dtype} and B_scale has {B_scale.dtype}: pass both in one dtype")
    if (request.A.dtype is torch.float4_e2m1fn_x2) != (request.B.dtype is torch.float4_e2m1fn_x2):
        raise UnsupportedGemm(
            f"A is {request.A.dtype} and B is {request.B.dtype}: no kernel multiplies block-scaled fp4 by fp8",
            "both of fp4, or both of fp8",
        )
    scaling, k = SCALING_OF_TORCH[A_scale.dtype], elements_along_k(request)
    if k == 0 or k % scaling.block:
        raise ValueError(
            f"K = {k} is not a positive multiple of {scaling.block}, the elements of one {A_scale.dtype} scale"
        )
    for name, scale, extent in (("A", A_scale, request.A.shape[-2]), ("B", B_scale, request.B.shape[-1])):
        rows, blocks = blocks_of(extent, k, scaling)
        batch = request.A.shape[0] if request.A.dim() == 3 else 1
        if scale.numel() != batch * rows * blocks * BLOCK_BYTES:
            raise ValueError(
                f"{name}_scale has {scale.numel()} elements, expected {batch} x {rows} x {blocks} blocks of {BLOCK_BYTES} for "
                f"{name} with {extent} x {k} elements: pass quack.blocked_scales({name}_scale) of one scale for each row and "
                f"{scaling.block} elements of K"
            )
        if not scale.is_contiguous() or scale.data_ptr() % TMA_ALIGN_BYTES:
            raise ValueError(f"{name}_scale is not contiguous or not 16-byte aligned: pass {name}_scale.clone()")
    return scaling


class Scales(NamedTuple):
    """How a prepared call hands block-scaled operands to its kernel. batch, words: of a row of blocks of the scales."""

    batch: int
    words: int

    @staticmethod
    def of(request: Request) -> Optional["Scales"]:
        if request.A_scale is None:
            return None
        _, blocks = blocks_of(1, elements_along_k(request), SCALING_OF_TORCH[request.A_scale.dtype])
        return Scales(request.A.shape[0] if request.A.dim() == 3 else 1, blocks * BLOCK_WORDS)

    def stored(
        self, A: torch.Tensor, B: torch.Tensor, arguments: Optional[tuple[Any, ...]], swapped: bool
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[Any, ...]]:
        """A, B and the arguments, scales first, in dtypes that the kernel takes: packed elements as bytes, scales as words."""
        assert arguments is not None
        if A.dtype is torch.float4_e2m1fn_x2:
            A, B = A.view(torch.uint8), B.view(torch.uint8)
        first, second = (scale.view(-1).view(torch.int64).view(self.batch, -1, self.words) for scale in arguments[:2])
        return A, B, (*((second, first) if swapped else (first, second)), *arguments[2:])
