"""The one map from `gemm_config.Dtype` to CuTe DSL element types."""

import cutlass

from .gemm_config import Dtype

CUTE_DTYPE = {
    Dtype.BF16: cutlass.BFloat16,
    Dtype.FP16: cutlass.Float16,
    Dtype.FP32: cutlass.Float32,
    Dtype.E4M3: cutlass.Float8E4M3FN,
    Dtype.E5M2: cutlass.Float8E5M2,
    Dtype.E2M1: cutlass.Float4E2M1FN,
    Dtype.WIDE_E2M1: cutlass.Float4E2M1FN,
    Dtype.E8M0: cutlass.Float8E8M0FNU,
}


def stored_dtype(dtype: Dtype):
    """What shared memory is laid out as for elements of this type."""
    return cutlass.Uint8 if dtype is Dtype.WIDE_E2M1 else CUTE_DTYPE[dtype]
