"""A prepared GEMM call: everything that follows from shapes, strides and dtypes, decided once.

`prepare` validates, chooses a configuration and loads the kernel; `GemmPlan.run` is one positional TVM-FFI call.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Optional, Union

import torch

from .. import heuristics
from ..block_scales import beside
from ..gemm_config import GemmConfig, Major, OperandSpec, OperandSpecs
from ..gemm_port import PortKind
from ..heuristics import split_k as split_heuristics
from ..split_k import SplitKMode
from .device import Device, device_of, tile_counter
from .dispatch import get_function
from .epilogue import Port, Term, check_terms, mirror, op_spec, swapped_ops
from .gather import check_gather, check_index_values
from .legality import legality
from .operands import (
    aligned_copy,
    check_problem,
    check_scalar,
    describe,
    overlaps,
)
from .problem_order import check_permutation
from .residency import cluster_count
from .scales import Scales, average_k, check_scales
from .spec import (
    DEFAULT_COMMIT,
    DENSE,
    GATHER_K,
    GATHER_M,
    VARLEN_K,
    VARLEN_M,
    GemmShape,
    GemmSpec,
    UnsupportedGemm,
    is_user_code,
)
from .split_k import SplitPlan, check_split, cluster_tiles, split_spec, streams
from .stream_k import StreamPlan
from .varlen import check_varlen_k, check_varlen_m

ScalarLike = Union[float, torch.Tensor]
MAX_CLUSTERS = 2**31 - 1  # the kernel takes no more than there are works
_LINEAR = "quack.epilogue.linear:"


@dataclass(frozen=True)
class GemmRequest:
    """out = alpha * A @ B + beta * C + bias, as the user stated it."""

    A: torch.Tensor
    B: torch.Tensor
    out: torch.Tensor
    C: Optional[torch.Tensor] = None
    bias: Optional[torch.Tensor] = None
    alpha: ScalarLike = 1.0
    beta: ScalarLike = 1.0
    fast_accum: bool = False
    config: Optional[GemmConfig] = None
    dynamic: bool = False  # draw tiles from a counter, if no configuration is pinned
    cu_seqlens_m: Optional[torch.Tensor] = None  # (G + 1,): A, C, out are (total_m, ...), B is (G, K, N)
    cu_seqlens_k: Optional[torch.Tensor] = None  # (G + 1,): A is (M, total_k), B (total_k, N), C and out (G, M, N)
    A_idx: Optional[torch.Tensor] = None  # (total_m,) or (total_k,): which row or column of A each one is
    concat_layout: Optional[tuple[str, ...]] = None  # operands stored as two halves, see `concat.concat_names`
    batch_idx_permute: Optional[torch.Tensor] = None  # (problems,): the order in which they are worked through
    split_k: Optional[int] = None  # parts of the sum over K; None: the heuristics choose, 1 with a pinned configuration
    split_k_mode: SplitKMode = SplitKMode.SERIAL
    leading: tuple[Term, ...] = ()  # mixins between alpha and C
    epilogue: tuple[Term, ...] = ()  # mixins behind bias
    plan: str = DEFAULT_COMMIT  # the commit policy
    A_scale: Optional[torch.Tensor] = None  # of block-scaled A and B, both or neither, see `block_scales`
    B_scale: Optional[torch.Tensor] = None
    halves_out: bool = False  # out has half the columns of the product: a mixin combines pairs of them

    def is_concat(self, name: str) -> bool:
        """Whether the operand of that name is stored as two halves."""
        return self.concat_layout is not None and name in self.concat_layout

    @property
    def adapter(self) -> str:
        """Which memory the operands are, as a name for `GemmSpec`."""
        if self.cu_seqlens_m is not None:
            return VARLEN_M if self.A_idx is None else GATHER_M
        if self.cu_seqlens_k is not None:
            return VARLEN_K if self.A_idx is None else GATHER_K
        return DENSE

    @property
    def ragged_arguments(self) -> tuple[Optional[torch.Tensor], ...]:
        """Every tensor that an adapter may take, given or not."""
        return self.cu_seqlens_m, self.cu_seqlens_k, self.A_idx, self.batch_idx_permute

    @property
    def problem_arguments(self) -> Optional[tuple[torch.Tensor, ...]]:
        """The adapter's own tensors."""
        return tuple(v for v in self.ragged_arguments if v is not None) or None

    @property
    def used_c(self) -> Optional[torch.Tensor]:
        """C, unless beta is the number 0: as in BLAS it is not read then."""
        return None if not isinstance(self.beta, torch.Tensor) and self.beta == 0.0 else self.C

    @property
    def terms(self) -> tuple[Term, ...]:
        """The mixins in the order the kernel applies them."""
        terms: list[Term] = []
        if isinstance(self.alpha, torch.Tensor) or self.alpha != 1.0:
            terms.append(linear_term("ScaleAccumulator", Port("alpha", PortKind.SCALAR, self.alpha)))
        terms += self.leading
        if self.used_c is not None and not any(term.uses_c for term in self.epilogue):
            if isinstance(self.beta, torch.Tensor) or self.beta != 1.0:
                terms.append(linear_term("AddScaledC", Port("beta", PortKind.SCALAR, self.beta)))
            else:
                terms.append(linear_term("AddC"))
        if self.bias is not None:
            bias = Port("bias", PortKind.ROW_VECTOR, self.bias, self.is_concat("bias"))
            terms.append(linear_term("RowBias", bias, swapped="ColBias"))
        return (*terms, *self.epilogue)

    def port_values(self) -> Optional[tuple[Any, ...]]:
        """What the kernel receives for the epilogue ports of this call; None without any. Nothing is allocated."""
        values = [p.kernel_value() for term in self.terms for p in term.ports if p.value is not None]
        return tuple(values) or None


def linear_term(mixin: str, *ports: Port, swapped: Optional[str] = None) -> Term:
    """A term of the affine epilogue."""
    return Term(_LINEAR + mixin, ports, swapped=_LINEAR + (swapped or mixin))


class GemmPlan:
    """Ready to run on any tensors with the same shapes, strides, dtypes, alignment and device."""

    __slots__ = (
        "clusters", "copy_a", "copy_b", "device", "finishing", "function", "is_batched", "is_counted", "repeats", "scales", "shape",
        "spec", "split", "swapped",
    )  # fmt: skip

    def __init__(
        self,
        spec: GemmSpec,
        device: Device,
        request: GemmRequest,
        copies: tuple[bool, bool],
        split: Optional[SplitPlan] = None,
        repeats: tuple[str, ...] = (),  # operands that the kernel takes once more, behind its ports
    ):
        self.spec = spec
        self.finishing = spec if split is None else split.finishing
        self.shape = product_extents(request)
        self.is_batched = request.out.dim() == 3
        self.split = split
        self.device = device.ordinal
        self.function: Callable[..., None] = get_function(spec, device.is_emulated) if split is None else split.function
        self.swapped = spec.config.swap_ab
        self.clusters = clusters_to_launch(spec, device.sms)
        self.is_counted = spec.config.is_dynamic_persistent and (split is not None or not spec.cancels)
        self.copy_a, self.copy_b = copies
        self.repeats = repeats
        self.scales = Scales.of(request)

    def run(
        self,
        A: torch.Tensor,
        B: torch.Tensor,
        C: Optional[torch.Tensor],
        out: torch.Tensor,
        ports: Optional[tuple[Any, ...]],
        arguments: Optional[tuple[torch.Tensor, ...]] = None,
    ) -> None:
        """Launch on the current stream of the tensors' device. Same contract as the compiled function."""
        if self.scales is not None:
            A, B, arguments = self.scales.stored(A, B, arguments, self.swapped)
        if self.copy_a:
            A = aligned_copy(A, self.spec.operands.b if self.swapped else self.spec.operands.a)
        if self.copy_b:
            B = aligned_copy(B, self.spec.operands.a if self.swapped else self.spec.operands.b)
        if self.swapped:
            A, B = B, A
        counter = tile_counter(self.device) if self.is_counted else None
        if self.split is not None:
            self.split.run((A, B, C, out), arguments, ports, counter)
            return
        self.function(A, B, C, out, arguments, ports, counter, self.clusters)


def clusters_to_launch(spec: GemmSpec, sms: int, works: int = MAX_CLUSTERS) -> int:
    """At most: those that the device holds at once, or one for each work if most are to be cancelled. works: an upper bound."""
    return works if spec.cancels else min(cluster_count(spec.config, sms), works)


class EmptyPlan:
    """Nothing to compute: the output has no elements."""

    spec = finishing = None
    repeats = ()
    device = -1

    def __init__(self, request: GemmRequest):
        self.shape = product_extents(request)
        self.is_batched = request.out.dim() == 3

    def run(self, A: object, B: object, C: object, out: object, ports: object, arguments: object = None) -> None:
        """Leaves the empty output as it is."""


def check_aliases(request: GemmRequest) -> None:
    """`out` may share memory with C if they are the same tensor, and with nothing else; tile outputs with nothing at all."""
    out, C = request.out, request.C
    if C is not None and overlaps(out, C):
        if (out.data_ptr(), out.stride(), out.dtype) != (C.data_ptr(), C.stride(), C.dtype):
            raise ValueError("out partly overlaps C in memory: pass out = C exactly, or an out of its own")
        if request.is_concat("C") != request.is_concat("out"):
            raise ValueError("concat_layout names one of C and out, which are the same tensor: name both or neither")
    others = {"A": request.A, "B": request.B, "bias": request.bias, "alpha": request.alpha, "beta": request.beta}
    others |= {"cu_seqlens_m": request.cu_seqlens_m, "cu_seqlens_k": request.cu_seqlens_k, "A_idx": request.A_idx}
    others |= {"batch_idx_permute": request.batch_idx_permute, "A_scale": request.A_scale, "B_scale": request.B_scale}
    tiles: dict[str, Any] = {}
    for term in (*request.leading, *request.epilogue):
        for port in term.ports:
            (tiles if port.kind is PortKind.TILE_OUTPUT else others)[port.name] = port.value
    for name, tensor in (others | tiles).items():
        if isinstance(tensor, torch.Tensor) and overlaps(out, tensor):
            raise ValueError(f"out overlaps {name} in memory: pass an out of its own")
    others["C"] = C
    for tile_name, tile in tiles.items():
        for name, tensor in others.items():
            if isinstance(tensor, torch.Tensor) and isinstance(tile, torch.Tensor) and overlaps(tile, tensor):
                raise ValueError(f"{tile_name} overlaps {name} in memory: pass a {tile_name} of its own")
        others[tile_name] = tile


def check_indices(request: GemmRequest) -> None:
    """In debug mode, the values of A_idx."""
    if request.A_idx is not None:
        check_index_values(request.A, request.A_idx, 0 if request.cu_seqlens_m is not None else 1)


def prepare(request: GemmRequest) -> Union[GemmPlan, EmptyPlan]:
    """Validate, choose, compile or load. Raises ValueError, TypeError or UnsupportedGemm before any device work."""
    shape, base, swapped, copies = describe_request(request)
    if 0 in (shape.m, shape.n, shape.batch):
        return EmptyPlan(request)
    device = device_of(request.A)
    base = base.on(device.arch, device.target)
    if swapped is not None:
        swapped = swapped.on(device.arch, device.target)
    splits, mode = request.split_k or 1, request.split_k_mode
    is_streamed = streams(request.split_k, mode)
    if request.config is None:
        if request.split_k is None and not is_streamed:
            spec, splits, mode, _ = split_heuristics.choose(base, shape, device.sms, swapped, request.dynamic)
            is_streamed = mode is SplitKMode.STREAM
        elif splits > 1 or is_streamed:
            spec = split_heuristics.choose_for(base, shape, device.sms, swapped, splits, mode)
        else:
            spec = heuristics.choose(base, shape, device.sms, swapped)
        if request.dynamic or shape.is_ragged_m:  # groups end in tiles that take less time than others
            spec = replace(spec, config=replace(spec.config, is_dynamic_persistent=True))
    else:
        if request.config.swap_ab and swapped is None:
            raise UnsupportedGemm(
                "the epilogue or commit policy has no form for D^T, which swap_ab computes", "swap_ab=False"
            )
        chosen = swapped if request.config.swap_ab and swapped is not None else base
        spec = chosen.configured(request.config)
    config = spec.config
    if is_streamed:
        legality(split_spec(spec, mode)).require()  # before its sizes are used
        extents, tile_k = shape.swapped() if config.swap_ab else shape, config.tile_k
        assert tile_k is not None
        return GemmPlan(
            spec,
            device,
            request,
            copies,
            StreamPlan(spec, cluster_tiles(extents, config), -(-shape.k // tile_k), device),
        )
    if splits > 1:
        legality(spec).require()  # before its cluster size is used
        splits = min(splits, cluster_count(config, device.sms))
    if splits <= 1:
        return GemmPlan(spec, device, request, copies)
    total_m = request.out.shape[0] if shape.is_ragged_m else None
    works = cluster_tiles(shape.swapped() if config.swap_ab else shape, config, total_m)
    split = SplitPlan(spec, mode, works, splits, device)
    return GemmPlan(spec, device, request, copies, split)


def describe_request(request: GemmRequest) -> tuple[GemmShape, GemmSpec, Optional[GemmSpec], tuple[bool, bool]]:
    """(extents, spec, spec with A and B swapped if there is one, which inputs need an aligned copy); configurations open."""
    shape = check_shapes(request)
    scaling = check_scales(request)
    if scaling is not None:
        shape = replace(shape, k=average_k(request))
    for name, scalar in (("alpha", request.alpha), ("beta", request.beta)):
        check_scalar(name, scalar, request.A.device)
    problems = shape.batch if is_batched(request) else None
    check_terms(request.terms, request.A, request.out, shape, product_extents(request).m, problems)
    if request.batch_idx_permute is not None:
        check_permutation(request.batch_idx_permute, problems, request.A)
    check_split(request.split_k, request.split_k_mode)
    if not isinstance(request.config, (GemmConfig, type(None))):
        raise TypeError(f"config is a {type(request.config).__name__}, expected a GemmConfig")
    check_aliases(request)
    # A ragged K must be the strided mode of both operands; else wgmma likes K contiguous (fp8 needs it).
    is_ragged_m, is_ragged_k = request.cu_seqlens_m is not None, request.cu_seqlens_k is not None
    prefer = Major.OUTER if is_ragged_k and scaling is None else Major.INNER
    is_ragged = {"A": request.adapter != DENSE, "B": is_ragged_k, "C": False}

    def described(name: str, tensor: torch.Tensor, **facts: Any) -> tuple[OperandSpec, bool]:
        ragged = is_ragged.get(name, is_ragged_m)  # out and whatever has its rows
        return describe(name, tensor, is_ragged=ragged, is_concat=request.is_concat(name), **facts)

    a, copy_a = described("A", request.A, transposed=False, prefer=prefer)
    b, copy_b = described("B", request.B, transposed=True, prefer=prefer)
    if 0 in request.A.shape or 0 in request.B.shape:
        # Never loaded, and an empty tensor has no useful address: any aligned layout will do.
        copy_a = copy_b = True

    def like_out(name: str, tensor: torch.Tensor, is_output: bool = True) -> OperandSpec:
        spec, _ = described(name, tensor, transposed=False, is_output=is_output)
        if is_ragged_m and spec.major is Major.OUTER:
            # TMA boxes begin at multiples of 16 bytes, groups at any row, and stores would reach into the next group's.
            spec = replace(spec, align=spec.dtype.bytes)
        return spec

    d = replace(like_out("out", request.out), is_halved=request.halves_out)
    c = None if request.used_c is None else like_out("C", request.used_c, is_output=False)
    a, b = replace(a, align=16, scaling=scaling), replace(b, align=16, scaling=scaling)
    if scaling is not None:
        a, b = replace(a, dtype=beside(a.dtype, b.dtype)), replace(b, dtype=beside(b.dtype, a.dtype))
    operands = OperandSpecs(a, b, d, c)
    fast_accum = request.fast_accum or not a.dtype.is_fp8
    base = GemmSpec(
        "",
        operands,
        GemmConfig(),
        tuple(op_spec(term, request.out.dim(), like_out) for term in request.terms),
        fast_accum,
        request.adapter,
        request.plan,
        is_permuted=request.batch_idx_permute is not None,
    )
    return shape, base, _swap(base, request.terms), (copy_a, copy_b)


def product_extents(request: GemmRequest) -> GemmShape:
    """Extents of the product, M being the rows of all groups if it is ragged."""
    batch = request.out.shape[0] if request.out.dim() == 3 else 1
    return GemmShape(request.out.shape[-2], request.B.shape[-1], 0, batch)


def is_batched(request: GemmRequest) -> bool:
    """Whether there are several problems, so that bias may have a row for each."""
    return request.A.dim() == 3 or request.adapter != DENSE


def check_shapes(request: GemmRequest) -> GemmShape:
    """The rules of the adapter; returns the extents, of an average group where only the device knows them."""
    if request.cu_seqlens_m is None and request.cu_seqlens_k is None:
        check_gather(request.A, request.A_idx, None)
    if request.cu_seqlens_m is not None and request.cu_seqlens_k is not None:
        raise ValueError("cu_seqlens_m and cu_seqlens_k exclude each other: pass one of them")
    if request.cu_seqlens_m is not None:
        return check_varlen_m(
            request.A, request.B, request.out, request.C, request.cu_seqlens_m, request.A_idx, request.halves_out
        )
    if request.cu_seqlens_k is not None:
        return check_varlen_k(
            request.A, request.B, request.out, request.C, request.cu_seqlens_k, request.A_idx, request.halves_out
        )
    return check_problem(request.A, request.B, request.out, request.C, request.halves_out)


def _swap(spec: GemmSpec, terms: tuple[Term, ...] = ()) -> Optional[GemmSpec]:
    """The same result computed as D^T = B^T A^T: every operand keeps its memory and changes its role. None if the epilogue has
    no form for that, columns are combined or a user decides what is stored."""
    a, b, d, c = spec.operands
    ops = swapped_ops(terms, spec.epilogue)
    if ops is None or d.is_halved or is_user_code(spec.plan):
        return None
    operands = OperandSpecs(b, a, mirror(d), mirror(c) if c is not None else None)
    return replace(spec, operands=operands, epilogue=ops)
