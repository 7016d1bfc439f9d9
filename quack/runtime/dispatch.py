"""From `GemmSpec` to the loaded function, once per spec, way of running it and process."""

import threading
from collections.abc import Callable

from .compile import Spec, compiled_function, emulated_entry
from .device import emulated_function
from .legality import legality
from .spec import GemmSpec

_functions: dict[tuple[Spec, bool], Callable[..., None]] = {}
_lock = threading.Lock()


def get_function(spec: Spec, emulated: bool = False) -> Callable[..., None]:
    """The TVM-FFI function (a, b, c, d, problem_arguments, epilogue_arguments, counter, clusters) of a GEMM, `UnsupportedGemm` if
    illegal; of another kernel that of its spec's arguments.

    emulated: it takes CPU tensors and its kernels run in `quack.emulator`.
    """
    key = (spec, emulated)
    function = _functions.get(key)
    if function is None:
        if isinstance(spec, GemmSpec):
            legality(spec).require()
        with _lock:
            function = _functions.get(key)
            if function is None:
                function = emulated_function(*emulated_entry(spec)) if emulated else compiled_function(spec)
                _functions[key] = function
    return function
