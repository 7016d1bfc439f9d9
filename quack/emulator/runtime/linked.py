"""A function compiled by CuTe DSL, linked with the emulator's CUDA, and the PTX of its kernels.

The code that was compiled is not touched: its host part is exported as an object file and linked anew, so it does not
matter when the function was compiled, nor whether it can also run on a GPU of this machine. CuTe DSL is not imported.
"""

import ctypes
import functools
import tempfile
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import tvm_ffi

from ..errors import EmulationError
from ..ptx import Kernel, parse
from .shim import link

EXPORT_NAME = "emulated"
HOW_TO_KEEP_PTX = (
    "compile it with `--keep-ptx --dump-dir=DIRECTORY` (an existing directory; quack.emulator's `compile_options` gives "
    "both), or set CUTE_DSL_KEEP=ptx and CUTE_DSL_DUMP_DIR=DIRECTORY before CuTe DSL is imported"
)


class NotEmulatable(EmulationError, TypeError):
    """The function was compiled in a way that leaves nothing to emulate; the message says which option to add."""


@dataclass(frozen=True, eq=False)
class LinkedFunction:
    """`function` takes CUDA tensors and calls the CUDA in `library`."""

    function: tvm_ffi.Function
    library: ctypes.CDLL
    ptx: str

    @functools.cached_property
    def kernels(self) -> dict[str, Kernel]:
        """The kernels in `ptx` by name."""
        return parse(self.ptx)

    def parameter_sizes(self, kernel: str) -> list[int]:
        """Bytes of each parameter."""
        if kernel not in self.kernels:
            raise EmulationError(f"the host code launches {kernel}, which is not in the PTX: {', '.join(self.kernels)}")
        return [parameter.size for parameter in self.kernels[kernel].parameters.values()]


def ptx_of(compiled: Any) -> str:
    """The PTX text of a compiled function."""
    kept = getattr(compiled, "__ptx__", None)
    if not kept:
        raise NotEmulatable(f"{_describe(compiled)} was compiled without keeping its PTX: {HOW_TO_KEEP_PTX}")
    if "\n" in kept:
        return kept
    path = Path(kept)
    if not path.is_file():  # CuTe DSL leaves the path there if it could not write the file
        raise NotEmulatable(
            f"{_describe(compiled)} should have its PTX in {path}, which does not exist: --dump-dir must name an existing "
            "directory when the function is compiled"
        )
    return path.read_text()


_linked: dict[int, LinkedFunction] = {}  # by id: functions without an engine are all equal
_linking = threading.Lock()  # CuTe DSL must not work in two threads


def linked(compiled: Any) -> LinkedFunction:
    """A function that `cute.compile(..., options="--enable-tvm-ffi --keep-ptx ...")` returned. Linked once."""
    if isinstance(compiled, LinkedFunction):
        return compiled
    with _linking:
        if id(compiled) not in _linked:
            _check_tvm_ffi(compiled)
            _linked[id(compiled)] = _link_compiled(compiled)
            weakref.finalize(compiled, _linked.pop, id(compiled), None)
    return _linked[id(compiled)]


def _link_compiled(compiled: Any) -> LinkedFunction:
    ptx = ptx_of(compiled)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "function.o"
        compiled.export_to_c(str(path), function_name=EXPORT_NAME, export_only_tvm_ffi_symbols=True)
        return load(path, EXPORT_NAME, ptx)


def load(path: Union[str, Path], function_name: str, ptx: str) -> LinkedFunction:
    """An object file written by `export_to_c(path, function_name, ...)` of such a function. It does not hold PTX."""
    library = link(Path(path))
    try:
        entry = library[f"__tvm_ffi_{function_name}"]
    except AttributeError:
        raise NotEmulatable(f"{path} has no TVM-FFI function {function_name!r}") from None
    address = ctypes.cast(entry, ctypes.c_void_p).value
    return LinkedFunction(tvm_ffi.Function.__from_extern_c__(address, keep_alive_object=library), library, ptx)


def _check_tvm_ffi(compiled: Any) -> None:
    is_tvm_ffi = isinstance(compiled, tvm_ffi.Function) or hasattr(compiled, "__tvm_ffi_object__")
    if hasattr(compiled, "export_to_c") and is_tvm_ffi:
        return
    if is_tvm_ffi:
        raise NotEmulatable(
            "this function was loaded from an object file and is bound to NVIDIA's CUDA: load the file with the emulator, "
            "which also needs its PTX"
        )
    raise NotEmulatable(f"{_describe(compiled)} is not a TVM-FFI function: compile it with `--enable-tvm-ffi`")


def _describe(compiled: Any) -> str:
    name = getattr(compiled, "function_name", "")
    return f"the function {name[:80]}" if name else f"this {type(compiled).__name__}"
