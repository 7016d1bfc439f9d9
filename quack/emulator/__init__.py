"""Runs compiled CuTe DSL kernels, as the PTX that the compiler made, on a machine without a GPU.

    with quack.emulator.use("sm90"):              # every quack call on CPU tensors
        D = quack.gemm(A, B)

    compiled = cute.compile(kernel, ..., options=quack.emulator.compile_options("sm100"))
    quack.emulator.launch(compiled, a, b, c)      # any TVM-FFI-compiled CuTe DSL function

The same from the environment: QUACK_EMULATE=sm90 (see `settings`). Command line: `python -m quack.emulator run script.py`.
Knows nothing of quack's kernels. See docs/emulator.md.
"""

import importlib
from typing import Any

# Loaded when first used: asking whether emulation is on must not cost the import of the emulator.
_EXPORTS = {
    "quack.emulator.errors": (
        "CheckFailed",
        "Deadlock",
        "EmulationError",
        "IllegalAccess",
        "Misuse",
        "UnknownInstruction",
    ),
    "quack.emulator.launching": ("KernelRun", "Report", "launch"),
    "quack.emulator.observer": ("Observer",),
    "quack.emulator.runtime.linked": ("load",),
    "quack.emulator.runtime.options": ("compile_environment", "compile_options"),
    "quack.emulator.settings": ("SWITCH", "Settings", "current", "use"),
    "quack.emulator.stats": ("Stats",),
    "quack.emulator.trace": ("Trace",),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'quack.emulator' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
