"""Calls a compiled function so that its kernels go to a handler in Python."""

from collections.abc import Sequence
from typing import Any

from .device import DeviceProperties
from .fake_cuda import CPU, present
from .intercept import Handler, Interceptor
from .linked import linked

COMPILED_FOR_CPU = "expected device_type=cpu"


def call(
    compiled: Any,
    arguments: Sequence[Any],
    handler: Handler,
    device: DeviceProperties,
    *,
    reachable: Sequence[Any] = (),
) -> Any:
    """Run the host code of `compiled` on host tensors; `handler` is called with each `Launch`, in order.

    arguments: positional, as for a call on a GPU (the stream of the TVM-FFI environment is not among them). `reachable`:
    further tensors that a kernel finds through pointers stored in memory. What the handler raises, this raises.
    """
    target = linked(compiled)
    memory: list[Any] = []
    presented = present(tuple(arguments), memory)
    present(tuple(reachable), memory)
    interceptor = Interceptor(handler, device, target.parameter_sizes, tuple(memory))
    with interceptor.installed(target.library):
        try:
            try:
                return target.function(*presented)
            except ValueError as error:
                # Compiled with CPU tensors as examples, as `from_dlpack` makes them where there is no GPU.
                if COMPILED_FOR_CPU not in str(error):
                    raise
            return target.function(*present(tuple(arguments), [], CPU))
        except Exception:
            if interceptor.failure is None:
                raise
    # Outside of the `except`, so that it keeps its own cause and context.
    assert interceptor.failure is not None
    raise interceptor.failure
