"""From `GemmSpec` to the loaded function, once per spec and process."""

import threading
from collections.abc import Callable

from .compile import compiled_function
from .legality import legality
from .spec import GemmSpec

_functions: dict[GemmSpec, Callable[..., None]] = {}
_lock = threading.Lock()


def get_function(spec: GemmSpec) -> Callable[..., None]:
    """The TVM-FFI function (a, b, c, d, epilogue_arguments, counter, max_active_clusters); `UnsupportedGemm` if illegal."""
    function = _functions.get(spec)
    if function is None:
        legality(spec).require()
        with _lock:
            function = _functions.get(spec)
            if function is None:
                function = _functions[spec] = compiled_function(spec)
    return function
