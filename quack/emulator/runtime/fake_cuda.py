"""Host tensors as TVM-FFI sees CUDA tensors: the same memory under a DLPack header that states device type kDLCUDA.

TVM-FFI refuses host tensors where a kernel expects device memory. Any object that exports DLPack is taken, so all
element types come along (bf16, fp8, packed fp4), and nothing is copied.
"""

import ctypes
import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
import tvm_ffi

from ..errors import EmulationError

CPU, CUDA = 1, 2  # DLDeviceType
CAPSULE = b"dltensor"


class NotAHostTensor(EmulationError, TypeError):
    """A tensor that does not lie in host memory, or cannot be exported."""


class MemoryRange(NamedTuple):
    """Host bytes [address, address + size)."""

    address: int
    size: int


class _Device(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("index", ctypes.c_int32)]


class _DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    """DLTensor: strides are in elements and may be absent (C order)."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


_api = ctypes.pythonapi
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", _api)
)
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))

# What an exported header points to, by its address, until its consumer calls the deleter. The capsule of the source
# is never renamed to "used": dropping it releases the source.
_exported: dict[int, tuple[Any, ...]] = {}


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _release(address: int) -> None:
    _exported.pop(address, None)


def is_tensor(value: Any) -> bool:
    """Whether `as_cuda` takes it. NumPy scalars are numbers."""
    return not isinstance(value, np.generic) and any(hasattr(value, a) for a in ("__dlpack__", "__array_interface__"))


def as_cuda(source: Any, device_type: int = CUDA) -> tuple[tvm_ffi.Tensor, MemoryRange]:
    """The memory of a host tensor as a CUDA tensor of device 0, and the bytes that its elements span.

    device_type: CPU for functions that were compiled for CPU tensors.

    `source` lives at least as long as the result. A tensor that requires grad is taken without its graph.
    """
    capsule = _export(source)
    managed = _Managed.from_address(_capsule_pointer(capsule, CAPSULE))
    tensor = managed.tensor
    if tensor.device.type != CPU:
        raise NotAHostTensor(f"the emulator works on host memory; this {_name(source)} is on another device")
    shape = tensor.shape[: tensor.ndim]
    strides = tensor.strides[: tensor.ndim] if tensor.strides else _c_order(shape)
    base = (tensor.data or 0) + tensor.byte_offset
    c_shape, c_strides = ((ctypes.c_int64 * tensor.ndim)(*values) for values in (shape, strides))
    pointer = ctypes.POINTER(ctypes.c_int64)
    header = _Managed(
        _Tensor(
            tensor.data,
            _Device(device_type, 0),
            tensor.ndim,
            tensor.dtype,
            ctypes.cast(c_shape, pointer),
            ctypes.cast(c_strides, pointer),
            tensor.byte_offset,
        ),
        None,
        ctypes.cast(_release, ctypes.c_void_p),
    )
    _exported[ctypes.addressof(header)] = (header, c_shape, c_strides, capsule)
    exported = tvm_ffi.from_dlpack(_new_capsule(ctypes.addressof(header), CAPSULE, None))
    return exported, _span(base, shape, strides, tensor.dtype.bits * tensor.dtype.lanes)


def _export(source: Any) -> Any:
    if not hasattr(source, "__dlpack__"):
        source = np.asarray(source)
    if getattr(source, "requires_grad", False):
        source = source.detach()
    try:
        return source.__dlpack__()
    except (BufferError, TypeError, ValueError, RuntimeError) as error:
        raise NotAHostTensor(f"this {_name(source)} cannot be shared with the emulator: {error}") from error


def _name(source: Any) -> str:
    return f"{type(source).__module__}.{type(source).__qualname__}"


def _c_order(shape: list[int]) -> list[int]:
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]


def _span(base: int, shape: list[int], strides: list[int], bits: int) -> MemoryRange:
    """Bytes from the lowest to the highest element."""
    if 0 in shape:
        return MemoryRange(base, 0)
    reach = [(size - 1) * stride for size, stride in zip(shape, strides)]
    low, high = sum(min(0, r) for r in reach), sum(max(0, r) for r in reach) + 1
    return MemoryRange(base + low * bits // 8, -(-(high - low) * bits // 8))


def present(arguments: Any, memory: list[MemoryRange], device_type: int = CUDA) -> Any:
    """Arguments for a TVM-FFI function: tensors as CUDA tensors, tuples, lists and dataclasses as tuples, NumPy scalars as
    numbers, the rest as it is. The bytes of each tensor are appended to `memory`."""
    if isinstance(arguments, (tuple, list)):
        return tuple(present(argument, memory, device_type) for argument in arguments)
    if is_tensor(arguments):
        tensor, span = as_cuda(arguments, device_type)
        if span.size:
            memory.append(span)
        return tensor
    if isinstance(arguments, np.generic):
        return arguments.item()
    if dataclasses.is_dataclass(arguments) and not isinstance(arguments, type):
        return tuple(present(getattr(arguments, f.name), memory, device_type) for f in dataclasses.fields(arguments))
    return arguments
