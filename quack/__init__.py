"""quack: a composable GEMM framework for NVIDIA GPUs on CuTe DSL.

Names are loaded when first used: `import quack` imports neither CuTe DSL nor the interface and creates no CUDA context.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "quack.gemm_interface": (
        "gemm",
        "gemm_out",
        "gemm_add",
        "gemm_add_out",
        "gemm_add_inplace",
        "gemm_ref",
        "gemm_add_ref",
        "gemm_tuned",
        "default_config",
        "explain",
    ),
    "quack.grouped": ("gemm_grouped", "grouped_plan"),
    "quack.gemm_config": ("GemmConfig",),
    "quack.split_k": ("SplitKMode",),
    "quack.runtime.spec": ("UnsupportedGemm",),
    "quack.epilogue.protocol": ("EpilogueMixin",),
    "quack.gemm_problem_adapter": ("ProblemAdapter",),
    "quack.gemm_epilogue_plan": ("EpiloguePlan",),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = ["__version__", "emulator", *_HOME]


def __getattr__(name: str) -> Any:
    if name == "emulator":
        return importlib.import_module("quack.emulator")
    if name not in _HOME:
        raise AttributeError(f"module 'quack' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
