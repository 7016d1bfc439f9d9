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
        "gemm_add_inplace_ref",
        "gemm_ref",
        "gemm_add_ref",
        "gemm_tuned",
        "default_config",
        "explain",
    ),
    "quack.grouped": ("gemm_grouped", "gemm_grouped_out", "gemm_grouped_ref", "grouped_plan"),
    "quack.grouped_activation": (
        "gemm_grouped_act",
        "gemm_grouped_act_ref",
        "gemm_grouped_gated",
        "gemm_grouped_gated_ref",
        "gemm_grouped_dact",
        "gemm_grouped_dact_ref",
        "gemm_grouped_dgated",
        "gemm_grouped_dgated_ref",
    ),
    "quack.grouped_reduction": ("gemm_grouped_reduce", "gemm_grouped_reduce_ref"),
    "quack.gemm_activation": (
        "gemm_act",
        "gemm_act_out",
        "gemm_act_ref",
        "gemm_act_tuned",
        "gemm_gated",
        "gemm_gated_out",
        "gemm_gated_ref",
        "gemm_gated_tuned",
        "gemm_dact",
        "gemm_dact_out",
        "gemm_dact_ref",
        "gemm_dact_tuned",
        "gemm_dgated",
        "gemm_dgated_out",
        "gemm_dgated_ref",
        "gemm_dgated_tuned",
    ),
    "quack.gemm_norm": (
        "gemm_rms",
        "gemm_rms_out",
        "gemm_rms_ref",
        "gemm_norm_act",
        "gemm_norm_act_out",
        "gemm_norm_act_ref",
        "gemm_norm_act_tuned",
    ),
    "quack.blockscaled": ("gemm_blockscaled", "gemm_blockscaled_ref", "blocked_scales", "plain_scales"),
    "quack.gemm_reduction": ("gemm_reduce",),
    "quack.reduction": ("Reduction",),
    "quack.gemm_symmetry": ("gemm_symmetric", "gemm_symmetric_out", "gemm_symmetric_ref"),
    "quack.split_k": ("SplitKMode",),
    "quack.rounding": ("RoundingMode",),
    "quack.linear": ("Linear",),
    "quack.mlp": ("MLP",),
    "quack.gemm_config": ("GemmConfig",),
    "quack.runtime.spec": ("UnsupportedGemm",),
    "quack.runtime.pointwise": ("pointwise",),
    "quack.epilogue.protocol": (
        "EpilogueMixin",
        "EpilogueContext",
        "EpilogueFragment",
        "Scalar",
        "Integer",
        "RowVector",
        "ColVector",
        "TileInput",
        "TileOutput",
        "RowPartials",
        "ColPartials",
    ),
    "quack.gemm_problem_adapter": ("ProblemAdapter",),
    "quack.gemm_epilogue_plan": ("EpiloguePlan", "DefaultCommit"),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}

_MODULES = ("emulator", "ops")

__all__ = ["__version__", *_MODULES, *_HOME]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"quack.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'quack' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
