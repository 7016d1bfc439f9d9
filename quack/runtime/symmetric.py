"""A prepared symmetric GEMM call: which kernel computes D = alpha * A @ B + beta * C where D = D^T."""

from dataclasses import replace
from typing import Union

import torch

from ..gemm_config import Major, OperandSpec, OperandSpecs
from ..gemm_port import EpilogueOpSpec, PortKind, PortSource, PortSpec
from ..heuristics import symmetric as heuristics
from .device import device_of
from .epilogue import mirror
from .plan import EmptyPlan, GemmPlan, GemmRequest, describe_request
from .spec import MIRROR, SYMMETRIC, SYMMETRIC_COMMIT, GemmSpec

MIRRORED = ("out",)  # D once more, for the mirrored tiles


def prepare_symmetric(request: GemmRequest) -> Union[GemmPlan, EmptyPlan]:
    """As `plan.prepare`. A pinned configuration is one of the triangular kernel."""
    shape, base, swapped, copies = describe_request(request)
    if shape.m != shape.n:
        raise ValueError(
            f"A {tuple(request.A.shape)} and B {tuple(request.B.shape)} give {shape.m} x {shape.n} results, and a symmetric "
            "one is square: pass B = A.mT, or call gemm"
        )
    if 0 in (shape.m, shape.batch):
        return EmptyPlan(request)
    device = device_of(request.A)
    triangular = symmetric_spec(base.on(device.arch, device.target))
    if request.config is not None:
        return GemmPlan(triangular.configured(request.config), device, request, copies, repeats=MIRRORED)
    whole = None
    if is_transpose(request.A, request.B) and swapped is not None:
        whole = base.on(device.arch, device.target), swapped.on(device.arch, device.target)
    spec = heuristics.choose(triangular, shape, device.sms, whole)
    if request.dynamic:
        spec = replace(spec, config=replace(spec.config, is_dynamic_persistent=True))
    return GemmPlan(spec, device, request, copies, repeats=MIRRORED if spec.plan == SYMMETRIC_COMMIT else ())


def symmetric_spec(base: GemmSpec) -> GemmSpec:
    """The triangular kernel for the operands and epilogue of `base`, its configuration still open. C and D are their own
    transposes, so both are taken as N-major; if they are one tensor, they stay one view."""
    a, b, d, c = base.operands
    d, c = n_major(d), None if c is None else n_major(c)
    twice = PortSpec(PortKind.TILE_OUTPUT, PortSource.DEVICE, layout=mirror(d))
    return replace(
        base,
        operands=OperandSpecs(a, b, d, c),
        epilogue=(*base.epilogue, EpilogueOpSpec(MIRROR, (twice,))),
        adapter=SYMMETRIC,
        plan=SYMMETRIC_COMMIT,
    )


def n_major(matrix: OperandSpec) -> OperandSpec:
    """A symmetric matrix with its modes swapped if that makes it N-major."""
    return matrix if matrix.major is Major.INNER else mirror(matrix)


def is_transpose(A: torch.Tensor, B: torch.Tensor) -> bool:
    """Whether B is A.mT, the same memory."""
    transposed = A.mT
    return (
        B.data_ptr() == A.data_ptr()
        and B.dtype == A.dtype
        and B.shape == transposed.shape
        and B.stride() == transposed.stride()
    )
