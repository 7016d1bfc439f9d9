"""Decodes what host code asks of CUDA into Python values and hands each kernel launch to a handler.

One `Interceptor` serves one call of a linked function, in one thread. An exception of the handler cannot cross the C
frames between: it is kept in `failure`, the C code reports an error through TVM-FFI, and `entry.call` raises the kept
exception in its place.
"""

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

from ..errors import EmulationError
from ..tensor_map import Atomicity, ElementType, Interleave, Swizzle, TensorMap
from .device import MAX_BLOCK, MAX_BLOCK_THREADS, MAX_CLUSTER, MAX_GRID, DeviceProperties
from .fake_cuda import MemoryRange

UNKNOWN_ERROR = 999  # cudaErrorUnknown


class LaunchRefused(EmulationError):
    """A launch that CUDA would refuse on this device, or that uses what the emulator lacks."""


class Extent(NamedTuple):
    """Of a grid in CTAs, of a block in threads, of a cluster in CTAs."""

    x: int
    y: int
    z: int

    @property
    def size(self) -> int:
        return self.x * self.y * self.z


@dataclass(frozen=True)
class Launch:
    """One kernel launch. `params`: bytes of each kernel parameter, in the order of the PTX. `memory`: the host memory that
    the kernel may touch. `pdl`: may start before the preceding kernel ends. `preferred_cluster`: a larger cluster that
    hardware may choose instead of `cluster`."""

    kernel: str
    grid: Extent
    block: Extent
    cluster: Extent
    dynamic_smem: int
    params: tuple[bytes, ...]
    memory: tuple[MemoryRange, ...]
    pdl: bool = False
    cooperative: bool = False
    preferred_cluster: Optional[Extent] = None


Handler = Callable[[Launch], None]
ParameterSizes = Callable[[str], Sequence[int]]  # kernel name -> bytes of each parameter


# ---- mirrors of shim.c ------------------------------------------------------------------------------------------------


class _Attribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int32), ("padding", ctypes.c_uint8 * 4), ("value", ctypes.c_uint32 * 16)]


class _Config(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("dynamic_smem", ctypes.c_uint64),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_count", ctypes.c_uint32),
    ]


_POINTERS = ctypes.POINTER(ctypes.c_void_p)
_U32, _U32S, _U64S = ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint32), ctypes.POINTER(ctypes.c_uint64)
_LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_Config), _POINTERS)
_ENCODE = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, _U32, _U32, ctypes.c_void_p, _U64S, _U64S, _U32S, _U32S, _U32, _U32, _U32, _U32
)


class _Session(ctypes.Structure):
    _fields_ = [
        ("launch", _LAUNCH),
        ("encode_tensor_map", _ENCODE),
        ("device_attributes", ctypes.POINTER(ctypes.c_int32 * 2)),
        ("device_attribute_count", ctypes.c_int32),
    ]


# cudaLaunchAttributeID.
_COOPERATIVE, _CLUSTER, _PDL, _PREFERRED_CLUSTER = 2, 4, 6, 11
_HARMLESS = {
    0: "ignore",
    1: "access policy window",
    3: "synchronization policy",
    5: "cluster scheduling policy",
    8: "priority",
    9: "memory synchronization domain map",
    10: "memory synchronization domain",
    14: "shared memory carveout",
}


class Interceptor:
    """The driver of one call: `handler` sees every launch."""

    def __init__(
        self,
        handler: Handler,
        device: DeviceProperties,
        parameter_sizes: ParameterSizes,
        memory: tuple[MemoryRange, ...] = (),
    ) -> None:
        self.handler, self.device, self.parameter_sizes, self.memory = handler, device, parameter_sizes, memory
        self.failure: Optional[BaseException] = None

    @contextlib.contextmanager
    def installed(self, library: ctypes.CDLL) -> Iterator[None]:
        """Serve the CUDA calls that `library` makes in this thread."""
        pairs = [(ctypes.c_int32 * 2)(*pair) for pair in self.device.attributes().items()]
        attributes = (ctypes.c_int32 * 2 * len(pairs))(*pairs)
        session = _Session(_LAUNCH(self._launch), _ENCODE(self._encode_tensor_map), attributes, len(pairs))
        enter = library.quack_shim_enter
        enter.restype, enter.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        previous = enter(ctypes.addressof(session))
        try:
            yield
        finally:
            enter(previous)

    def _launch(self, kernel: bytes, config: Any, params: Any) -> int:
        try:
            self.handler(self.decode(kernel.decode(), config.contents, params))
        except BaseException as error:  # noqa: BLE001 - raised again by `entry.call`
            self.failure = error
            return UNKNOWN_ERROR
        return 0

    def _encode_tensor_map(self, target: int, *fields: Any) -> int:
        try:
            ctypes.memmove(target, encoded_tensor_map(*fields), 128)
        except BaseException as error:  # noqa: BLE001 - raised again by `entry.call`
            self.failure = error
            return UNKNOWN_ERROR
        return 0

    def decode(self, kernel: str, config: _Config, params: Any) -> Launch:
        """The launch that the C structures describe."""
        values = {a.id: a.value for a in config.attributes[: config.attribute_count]}
        for number in values.keys() - {_COOPERATIVE, _CLUSTER, _PDL, _PREFERRED_CLUSTER} - _HARMLESS.keys():
            raise LaunchRefused(f"launch of {kernel}: the emulator does not know launch attribute {number}")
        preferred = values.get(_PREFERRED_CLUSTER)
        launch = Launch(
            kernel,
            grid=Extent(*config.grid),
            block=Extent(*config.block),
            cluster=Extent(*values[_CLUSTER][:3]) if _CLUSTER in values else Extent(1, 1, 1),
            dynamic_smem=config.dynamic_smem,
            params=tuple(ctypes.string_at(params[i], size) for i, size in enumerate(self.parameter_sizes(kernel))),
            memory=self.memory,
            pdl=_PDL in values and bool(values[_PDL][0]),
            cooperative=_COOPERATIVE in values and bool(values[_COOPERATIVE][0]),
            preferred_cluster=Extent(*preferred[:3]) if preferred else None,
        )
        if fault := launch_fault(launch, self.device):
            raise LaunchRefused(f"launch of {kernel} on {self.device.name}: {fault}")
        return launch


def launch_fault(launch: Launch, device: DeviceProperties) -> Optional[str]:
    """Why CUDA would refuse this launch, or None."""
    grid, block, cluster, preferred = launch.grid, launch.block, launch.cluster, launch.preferred_cluster
    if not (grid.size and block.size and cluster.size):
        return f"no extent may be 0: grid {tuple(grid)}, block {tuple(block)}, cluster {tuple(cluster)}"
    if any(n > limit for n, limit in zip(grid, MAX_GRID)):
        return f"grid {tuple(grid)} exceeds {MAX_GRID}"
    if any(n > limit for n, limit in zip(block, MAX_BLOCK)) or block.size > MAX_BLOCK_THREADS:
        return f"block {tuple(block)} exceeds {MAX_BLOCK} or {MAX_BLOCK_THREADS} threads"
    if cluster.size > MAX_CLUSTER or any(n % step for n, step in zip(grid, cluster)):
        return f"cluster {tuple(cluster)} has more than {MAX_CLUSTER} CTAs or does not divide the grid {tuple(grid)}"
    if preferred is not None and (
        preferred.size > MAX_CLUSTER
        or any(n % step for n, step in zip(preferred, cluster))
        or any(n % step for n, step in zip(grid, preferred))
    ):
        return (
            f"preferred cluster {tuple(preferred)} has more than {MAX_CLUSTER} CTAs, is no multiple of the cluster "
            f"{tuple(cluster)} or does not divide the grid {tuple(grid)}"
        )
    if launch.dynamic_smem > device.smem_per_block:
        return f"{launch.dynamic_smem} bytes of dynamic shared memory exceed {device.smem_per_block}"
    return None


# ---- cuTensorMapEncodeTiled -------------------------------------------------------------------------------------------

# In the order of CUtensorMapDataType, which is not that of `tensormap.replace`.
_DRIVER_TYPES = (
    *(ElementType.U8, ElementType.U16, ElementType.U32, ElementType.S32, ElementType.U64, ElementType.S64),
    *(ElementType.F16, ElementType.F32, ElementType.F64, ElementType.BF16, ElementType.F32_FTZ, ElementType.TF32),
    *(ElementType.TF32_FTZ, ElementType.B4X16, ElementType.B4X16_P64, ElementType.B6X16_P32),
)
# In the order of CUtensorMapSwizzle.
_DRIVER_SWIZZLES = (
    *((swizzle, Atomicity.B16) for swizzle in (Swizzle.NONE, Swizzle.B32, Swizzle.B64, Swizzle.B128)),
    *((Swizzle.B128, atomicity) for atomicity in (Atomicity.B32, Atomicity.B32_FLIP_8B, Atomicity.B64)),
)


def encoded_tensor_map(
    element: int,
    rank: int,
    address: Optional[int],
    dims: Any,
    strides: Any,
    box: Any,
    element_strides: Any,
    *modes: int,
) -> bytes:
    """The descriptor that cuTensorMapEncodeTiled(map, ...) writes; modes: interleave, swizzle, L2 promotion, fill."""
    interleave, swizzle, l2_promotion, fill = modes
    pattern, atomicity = _DRIVER_SWIZZLES[swizzle]
    return TensorMap(
        address=address or 0,
        element_type=_DRIVER_TYPES[element],
        dims=tuple(dims[:rank]),
        strides=tuple(strides[: rank - 1]),
        box=tuple(box[:rank]),
        element_strides=tuple(element_strides[:rank]),
        swizzle=pattern,
        atomicity=atomicity,
        interleave=Interleave(interleave),
        nan_fill=bool(fill),
        l2_promotion=l2_promotion,
    ).encode()
