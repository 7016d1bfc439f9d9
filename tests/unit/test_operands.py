"""What `describe` claims about a tensor holds, for random strides; copies keep values; a swap keeps the problem."""

import itertools
import random
from collections.abc import Iterator

import pytest
import torch

from quack import emulator
from quack.gemm_config import TMA_ALIGN_BYTES, Dtype, Major, OperandSpec
from quack.gemm_port import PortKind
from quack.runtime import plan
from quack.runtime.operands import DTYPE_OF_TORCH, aligned_copy, byte_span, describe, overlaps
from quack.runtime.plan import GemmRequest, describe_request
from tests.cases import Case, gemm_cases, operands

EXTENTS = (0, 1, 1, 2, 3, 5, 8, 16, 17)
STEPS = (0, 1, 2, 7, 8, 16, 24, 64)


def random_tensors(count: int, seed: int) -> Iterator[torch.Tensor]:
    """2-D and 3-D views: dense, padded, transposed, expanded, sliced, batch in the middle, and arbitrary strides."""
    draw = random.Random(seed)
    for _ in range(count):
        ndim = draw.choice((2, 3))
        shape = [draw.choice(EXTENTS) for _ in range(ndim)]
        dtype = draw.choice(tuple(DTYPE_OF_TORCH))
        if draw.random() < 0.3:
            strides = [draw.choice(STEPS) for _ in range(ndim)]
        else:
            order = draw.sample(range(ndim), ndim)
            strides, step = [0] * ndim, 1
            for dim in order:
                strides[dim] = step
                step *= max(shape[dim], 1)
                if draw.random() < 0.5:
                    step = -(-step // 16) * 16 + draw.choice((0, 0, 1, 16))
            strides = [
                draw.choice((stride, 0, 9, 16)) if extent == 1 else 0 if draw.random() < 0.05 else stride
                for extent, stride in zip(shape, strides)
            ]
        offset = draw.choice((0, 0, 0, 1, 8, 16))
        size = 1 + offset + sum(max(e - 1, 0) * s for e, s in zip(shape, strides))
        storage = torch.randint(0, 100, (size,), dtype=torch.int16).float().to(dtype)
        yield storage.as_strided(shape, strides, offset)


def same_values(x: torch.Tensor, y: torch.Tensor) -> bool:
    return torch.equal(x.float(), y.float())


def assert_true_of(spec: OperandSpec, tensor: torch.Tensor) -> None:
    """Every claim of `spec` that a compiled kernel relies on."""
    unit = spec.unit_stride_dim
    assert spec.ndim == tensor.dim() and spec.dtype is DTYPE_OF_TORCH[tensor.dtype]
    assert unit in (tensor.dim() - 1, tensor.dim() - 2)
    assert tensor.stride(unit) == 1 or tensor.shape[unit] <= 1
    assert spec.align % tensor.element_size() == 0
    assert tensor.data_ptr() % spec.align == 0
    for dim in range(tensor.dim()):
        if dim != unit and tensor.shape[dim] > 1:
            assert tensor.stride(dim) * tensor.element_size() % spec.align == 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("prefer", [None, Major.INNER, Major.OUTER])
def test_describe_is_true(seed: int, transposed: bool, prefer):
    described = 0
    for tensor in random_tensors(500, seed):
        last_two = [(tensor.shape[d], tensor.stride(d)) for d in (-1, -2)]
        possible = any(extent <= 1 or stride == 1 for extent, stride in last_two)
        if not possible:
            with pytest.raises(ValueError, match="X with shape .* has strides"):
                describe("X", tensor, transposed=transposed, prefer=prefer)
            continue
        described += 1
        spec, needs_copy = describe("X", tensor, transposed=transposed, prefer=prefer)
        assert spec.transposed is transposed
        assert_true_of(spec, tensor)
        assert needs_copy == (not spec.is_tma)
    assert described > 300


@pytest.mark.parametrize("shape", [(1, 64), (64, 1), (1, 1), (3, 1, 64), (3, 64, 1)])
@pytest.mark.parametrize("prefer", list(Major))
def test_preference_decides_between_equals(shape: tuple[int, ...], prefer: Major):
    """Padded to 16 bytes, so that both readings of an extent of 1 are aligned."""
    for transposed, unit in itertools.product((False, True), (-1, -2)):
        strides = [16 * 64, 16, 16][-len(shape) :]
        strides[unit] = 1
        if shape[-1] > 1 and shape[-2] == 1:
            strides[-1] = 1
        if shape[-2] > 1 and shape[-1] == 1:
            strides[-2] = 16
        tensor = torch.empty(16 * 64 * 8, dtype=torch.bfloat16).as_strided(shape, strides)
        spec, needs_copy = describe("X", tensor, transposed=transposed, prefer=prefer)
        assert_true_of(spec, tensor)
        assert not needs_copy
        if tensor.numel() == 1:
            assert spec.major is prefer


@pytest.mark.parametrize(
    ("tensor", "transposed", "major"),
    [
        (torch.empty(64, 32), False, Major.INNER),
        (torch.empty(64, 32).mT, False, Major.OUTER),
        (torch.empty(64, 32), True, Major.OUTER),
        (torch.empty(64, 32).mT, True, Major.INNER),
        (torch.empty(2, 64, 32), False, Major.INNER),
        (torch.empty(2, 64, 32).mT, True, Major.INNER),
        (torch.empty(64, 2, 32).transpose(0, 1), False, Major.INNER),
    ],
)
def test_describe_by_hand(tensor: torch.Tensor, transposed: bool, major: Major):
    spec, needs_copy = describe("X", tensor, transposed=transposed)
    assert (spec.dtype, spec.major, needs_copy) == (Dtype.FP32, major, False)


def test_misaligned_address_needs_a_copy():
    storage = torch.empty(64 * 64 + 8, dtype=torch.bfloat16)
    for offset, expected in ((0, False), (1, True), (4, True), (8, False)):
        _, needs_copy = describe("X", storage[offset : offset + 64 * 64].view(64, 64), transposed=False)
        assert needs_copy is expected


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("transposed", [False, True])
def test_aligned_copy(seed: int, transposed: bool):
    for tensor in random_tensors(500, seed):
        try:
            spec, _ = describe("X", tensor, transposed=transposed, prefer=Major.INNER)
        except ValueError:
            continue
        copy = aligned_copy(tensor, spec)
        assert copy.shape == tensor.shape and copy.dtype == tensor.dtype
        assert same_values(copy, tensor)
        assert copy.data_ptr() % TMA_ALIGN_BYTES == 0
        # Even for extents of 1: the kernel was compiled with these divisibilities.
        for dim in range(copy.dim()):
            if dim == spec.unit_stride_dim:
                assert copy.stride(dim) == 1
            else:
                assert copy.stride(dim) * copy.element_size() % TMA_ALIGN_BYTES == 0
        assert tensor.numel() == 0 or not overlaps(copy, tensor)


def addresses(tensor: torch.Tensor) -> set[int]:
    """Byte address of every element, one by one."""
    base, size = tensor.data_ptr(), tensor.element_size()
    return {
        base + size * sum(i * s for i, s in zip(index, tensor.stride()))
        for index in itertools.product(*(range(extent) for extent in tensor.shape))
    }


def test_byte_span_by_enumeration():
    for tensor in random_tensors(300, seed=9):
        used = addresses(tensor)
        assert byte_span(tensor) == (max(used) - min(used) + tensor.element_size() if used else 0)
        assert not used or min(used) == tensor.data_ptr()


def test_overlaps_misses_no_shared_element():
    draw = random.Random(3)
    storage = torch.empty(400, dtype=torch.bfloat16)

    def view() -> torch.Tensor:
        shape = draw.randint(0, 5), draw.randint(0, 5)
        return storage.as_strided(shape, (draw.randint(0, 20), draw.randint(0, 8)), draw.randint(0, 250))

    shared = 0
    for _ in range(2000):
        x, y = view(), view()
        assert overlaps(x, y) == overlaps(y, x)
        if addresses(x) & addresses(y):
            shared += 1
            assert overlaps(x, y)
        if not x.numel() or not y.numel():
            assert not overlaps(x, y)
    assert shared > 50


# ---- swapping A and B -------------------------------------------------------------------------------------------------


def kernel_view(tensor: torch.Tensor, spec: OperandSpec) -> torch.Tensor:
    """(..., outer, inner) as the kernel relabels the modes."""
    view = tensor.mT if spec.transposed else tensor
    contiguous = -1 if spec.major is Major.INNER else -2
    assert view.shape[contiguous] <= 1 or view.stride(contiguous) == 1
    return view


def swap_cases() -> list[Case]:
    return [case for case in gemm_cases() if case.config is None and case.m * case.n * max(case.k, 1) < 1 << 25]


@pytest.mark.parametrize("case", swap_cases(), ids=str)
def test_swapped_spec_describes_the_same_problem(case: Case):
    with emulator.use("sm90"):
        t = operands(case, "cpu", fill=False)
        for tensor in (t.A, t.B, t.C):
            if tensor is not None and tensor.numel():
                values = torch.randint(-2, 3, tensor.shape).float()
                if case.batching == "expanded" and tensor is t.A:
                    tensor[:1].copy_(values[:1])
                else:
                    tensor.copy_(values)
        shape, base, swapped, copies = describe_request(t.request(case))
    assert (shape.m, shape.n, shape.k, shape.batch) == (case.m, case.n, case.k, 1 if case.batch is None else case.batch)
    if copies[0] and case.k:
        t.A = aligned_copy(t.A, base.operands.a)
    if copies[1] and case.k:
        t.B = aligned_copy(t.B, base.operands.b)
    out, product = t.out.tensor, t.A.float() @ t.B.float()
    for spec, first, second, transpose in ((base, t.A, t.B, False), (swapped, t.B, t.A, True)):
        a, b = kernel_view(first, spec.operands.a), kernel_view(second, spec.operands.b)
        d = kernel_view(out, spec.operands.d)
        extents = shape.swapped() if transpose else shape
        assert a.shape[-2:] == (extents.m, extents.k)
        assert b.shape[-2:] == (extents.n, extents.k)
        assert d.shape[-2:] == (extents.m, extents.n)
        result = a.float() @ b.float().mT
        assert torch.equal(result, product.mT if transpose else product)
        assert d.data_ptr() == out.data_ptr()
        assert sorted(d.stride()) == sorted(out.stride())
        used_c = t.request(case).used_c
        if used_c is not None:
            assert spec.operands.c is not None
            c = kernel_view(t.C, spec.operands.c)
            assert same_values(c.mT if transpose else c, t.C)
        assert (spec.operands.c is None) == (used_c is None)
    kinds = [[port.kind for op in spec.epilogue for port in op.ports] for spec in (base, swapped)]
    turned = {PortKind.ROW_VECTOR: PortKind.COL_VECTOR}
    assert kinds[1] == [turned.get(kind, kind) for kind in kinds[0]]
    assert plan._swap(swapped).operands == base.operands
    assert base.fast_accum == swapped.fast_accum


def test_equal_layouts_have_equal_specs():
    """The spec is the cache key: extents, addresses and strides must not leak into it."""
    with emulator.use("sm90"):
        specs = {
            describe_request(GemmRequest(*(torch.empty(s, dtype=torch.bfloat16) for s in ((m, k), (k, n), (m, n)))))[1]
            for m, n, k in ((64, 64, 64), (128, 8, 16), (1024, 72, 8), (2, 16, 24))
        }
    assert len(specs) == 1
