"""Scale factors of block-scaled A and B: what a call may pass, and how the kernel sees it."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

import torch

from ..block_scales import (
    BLOCK_BYTES,
    BLOCK_ROWS,
    BLOCK_SCALES,
    BLOCK_WORDS,
    WIDE_ALIGN_BYTES,
    WIDE_BOX,
    blocks_of,
    k_unit,
    ragged_blocks,
)
from ..gemm_config import TMA_ALIGN_BYTES, BlockScaling
from .operands import INPUT_DTYPE_OF_TORCH, extent_k
from .spec import RAGGED_K, VARLEN_K, VARLEN_M, UnsupportedGemm

Request = Any  # a `plan.GemmRequest`; plan imports this module
SCALING_OF_TORCH = {torch.float8_e8m0fnu: BlockScaling.MX, torch.float8_e4m3fn: BlockScaling.NV}


def elements_along_k(request: Request) -> int:
    """K, of all groups if it is ragged. A tensor of packed elements shows half."""
    return extent_k(request.B, -2)


def average_k(request: Request) -> int:
    """K, of an average group if it is ragged."""
    groups = request.out.shape[0] if request.adapter in RAGGED_K else 1
    return -(-elements_along_k(request) // max(groups, 1))


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
    scaling, k = SCALING_OF_TORCH[A_scale.dtype], elements_along_k(request)
    unit, why = _k_unit(request, scaling), f"the elements of one {A_scale.dtype} scale"
    if unit == WIDE_BOX:
        why = "what TMA loads of fp4 beside fp8" + (", as every group is" if request.adapter in RAGGED_K else "")
        _check_wide(request)
    elif request.adapter in RAGGED_K:
        why = "as every group is: one scale, and one instruction, is of one group"
    if k == 0 or k % unit:
        raise ValueError(f"K = {k} is not a positive multiple of {unit}, {why}")
    for name, scale, (batch, rows, blocks) in zip("AB", given.values(), _blocks(request, scaling, k)):
        counts = [batch * r * b * BLOCK_BYTES for r in rows for b in blocks]
        if scale.numel() not in counts:
            wanted = " x ".join(_of(count) for count in ([batch], rows, blocks))
            ragged = "" if len(counts) == 1 else ", and the offsets"
            raise ValueError(
                f"{name}_scale has {scale.numel()} elements, expected {wanted} blocks of {BLOCK_BYTES}: pass "
                f"quack.blocked_scales({name}_scale{ragged}) of one scale for each row and {scaling.block} elements of K of {name}"
            )
        if not scale.is_contiguous() or scale.data_ptr() % TMA_ALIGN_BYTES:
            raise ValueError(f"{name}_scale is not contiguous or not 16-byte aligned: pass {name}_scale.clone()")
    return scaling


def _k_unit(request: Request, scaling: BlockScaling) -> int:
    a, b = (INPUT_DTYPE_OF_TORCH[tensor.dtype] for tensor in (request.A, request.B))
    return k_unit(a, b, scaling, request.adapter in RAGGED_K)


def _check_wide(request: Request) -> None:
    """Alignment of an fp4 operand whose other one is fp8."""
    for name, tensor in (("A", request.A), ("B", request.B)):
        if tensor.dtype is torch.float4_e2m1fn_x2:
            steps = [stride for stride, extent in zip(tensor.stride(), tensor.shape) if extent > 1 and stride != 1]
            if tensor.data_ptr() % WIDE_ALIGN_BYTES or any(step % WIDE_ALIGN_BYTES for step in steps):
                raise ValueError(
                    f"{name} is fp4 beside fp8, at address {tensor.data_ptr():#x} with strides {tensor.stride()}: TMA needs multiples "
                    f"of {WIDE_ALIGN_BYTES} bytes; pass a contiguous copy"
                )


def _blocks(request: Request, scaling: BlockScaling, k: int) -> list[tuple[int, Sequence[int], Sequence[int]]]:
    """Of A and of B: (matrices, legal numbers of row blocks, and of blocks along K)."""
    found: list[tuple[int, Sequence[int], Sequence[int]]] = []
    for name, tensor, extent in (("A", request.A, request.A.shape[-2]), ("B", request.B, request.B.shape[-1])):
        row_blocks, k_blocks = blocks_of(extent, k, scaling)
        rows, blocks = range(row_blocks, row_blocks + 1), range(k_blocks, k_blocks + 1)
        if request.adapter == VARLEN_M and name == "A":
            rows = ragged_blocks(extent, request.B.shape[0], BLOCK_ROWS)
        if request.adapter in RAGGED_K:
            blocks = ragged_blocks(k, request.out.shape[0], BLOCK_SCALES * scaling.block)
        found.append((tensor.shape[0] if tensor.dim() == 3 else 1, rows, blocks))
    return found


def _of(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(counts) == 1 else f"({counts[0]} to {counts[-1]})"


def check_scale_offsets(request: Request) -> None:
    """In debug mode: the groups have the blocks and the multiples of K that they need. Waits for the device."""
    if request.A_scale is None or request.adapter not in (VARLEN_M, VARLEN_K):
        return
    scaling, k = SCALING_OF_TORCH[request.A_scale.dtype], elements_along_k(request)
    if request.adapter == VARLEN_M:
        needed = sum(-(-rows // BLOCK_ROWS) for rows in request.cu_seqlens_m.diff().tolist())
        given = request.A_scale.numel() // (blocks_of(1, k, scaling)[1] * BLOCK_BYTES)
        if given < needed:
            raise ValueError(f"A_scale has {given} row blocks, and the groups of cu_seqlens_m have {needed}")
        return
    unit, sizes = _k_unit(request, scaling), request.cu_seqlens_k.diff().tolist()
    for group, size in enumerate(sizes):
        if size % unit:
            raise ValueError(f"group {group} of cu_seqlens_k has K = {size}, which is not a multiple of {unit}")
    needed = sum(-(-size // (BLOCK_SCALES * scaling.block)) for size in sizes)
    for name, scale, rows in (("A", request.A_scale, request.A.shape[0]), ("B", request.B_scale, request.B.shape[1])):
        given = scale.numel() // (blocks_of(rows, k, scaling)[0] * BLOCK_BYTES)
        if given < needed:
            raise ValueError(f"{name}_scale has {given} blocks along K, and the groups of cu_seqlens_k have {needed}")


class Scales(NamedTuple):
    """How a prepared call hands block-scaled operands to its kernel. views: (matrices, words of a row of blocks) of the scales of A
    and of B."""

    views: tuple[tuple[int, int], ...]

    @staticmethod
    def of(request: Request) -> Optional["Scales"]:
        if request.A_scale is None:
            return None
        _, blocks = blocks_of(1, elements_along_k(request), SCALING_OF_TORCH[request.A_scale.dtype])
        if request.adapter in RAGGED_K:  # rows of blocks are as long as a group: one row of everything
            return Scales.in_one_row()
        batches = (t.shape[0] if t.dim() == 3 else 1 for t in (request.A, request.B))
        return Scales(tuple((batch, blocks * BLOCK_WORDS) for batch in batches))

    @staticmethod
    def in_one_row() -> "Scales":
        """Where the kernel itself knows how long a row of blocks is."""
        return Scales(((1, -1), (1, -1)))

    def stored(
        self, A: torch.Tensor, B: torch.Tensor, arguments: Optional[tuple[Any, ...]], swapped: bool
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[Any, ...]]:
        """A, B and the arguments, scales first, in dtypes that the kernel takes: packed elements as bytes, scales as words."""
        assert arguments is not None
        return as_stored(A), as_stored(B), (*self.words_of(arguments[0], arguments[1], swapped), *arguments[2:])

    def words_of(self, A_scale: torch.Tensor, B_scale: torch.Tensor, swapped: bool) -> tuple[torch.Tensor, ...]:
        """In kernel roles."""
        first, second = (self.words(scale, *view) for scale, view in zip((A_scale, B_scale), self.views))
        return (second, first) if swapped else (first, second)

    @staticmethod
    def words(scale: torch.Tensor, batch: int, words: int) -> torch.Tensor:
        """(batch, row blocks, words)."""
        flat = scale.view(-1).view(torch.int64)
        return flat.view(1, 1, -1) if words < 0 else flat.view(batch, -1, words)


def as_stored(operand: torch.Tensor) -> torch.Tensor:
    """A or B in a dtype that kernels take: packed elements as bytes."""
    return operand.view(torch.uint8) if operand.dtype is torch.float4_e2m1fn_x2 else operand
