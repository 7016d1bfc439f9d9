"""What a kernel of symmetric results asks of a `GemmSpec`; `legality` applies it. Pure Python."""

from collections.abc import Iterator

from ..gemm_config import OperandSpec
from .spec import DENSE, MIRROR, SYMMETRIC, SYMMETRIC_COMMIT, GemmSpec

CLUSTERS = ((1, 1), (2, 1), (1, 2))  # those of `triangular_scheduler`
LINEAR = "quack.epilogue.linear:"
SYMMETRIC_MIXINS = (LINEAR + "ScaleAccumulator", LINEAR + "AddC", LINEAR + "AddScaledC")
ASYMMETRIC = {
    LINEAR + "RowBias": "adds a value per column, which the mirrored tile would need per row",
    LINEAR + "ColBias": "adds a value per row, which the mirrored tile would need per column",
}


def symmetric_refusals(spec: GemmSpec) -> Iterator[tuple[str, str]]:
    """(reason, alternative) of every rule that refuses."""
    is_symmetric = spec.plan == SYMMETRIC_COMMIT
    if is_symmetric and spec.adapter not in (DENSE, SYMMETRIC):
        yield (
            "a symmetric result is stored twice by a schedule for dense problems only",
            "one call of gemm_symmetric per problem",
        )
    if is_symmetric != (spec.adapter == SYMMETRIC):
        yield (
            f"adapter {spec.adapter} with plan {spec.plan}: only one tile of each mirrored pair is visited if and only if it "
            "is stored twice",
            f"adapter {SYMMETRIC} with plan {SYMMETRIC_COMMIT}",
        )
    if not is_symmetric:
        return
    config, operands = spec.config, spec.operands
    if spec.combine is not None:
        yield "split-K has no schedule over mirrored pairs of tiles", "split_k=1"
    if config.swap_ab:
        yield "a symmetric result is its own transpose: swapping A and B changes nothing", "swap_ab=False"
    if config.cta_tile_m != config.tile_n:
        yield (
            f"tile_m={config.tile_m} and tile_n={config.tile_n}: the mirror of a tile is a tile only if tiles are square",
            f"tile_n={config.cta_tile_m}",
        )
    if (config.cluster_m, config.cluster_n) not in CLUSTERS:
        yield f"cluster {(config.cluster_m, config.cluster_n)} has no schedule over mirrored pairs", "cluster (2, 1)"
    for name, operand in (("A", operands.a), ("B", operands.b), ("out", operands.d)):
        if operand.dtype.is_fp8:
            yield (
                f"{name} is {operand.dtype.value}: symmetric results have kernels for bf16, fp16 or fp32",
                f"{name}.bfloat16()",
            )
    if any(operand is not None and operand.is_concat for operand in operands):
        yield "concat_layout names an operand of a symmetric result: its rows and columns would differ", "logical order"
    yield from _epilogue_refusals(spec)


def _epilogue_refusals(spec: GemmSpec) -> Iterator[tuple[str, str]]:
    """Values are computed once per pair of mirrored tiles, so the epilogue must not tell rows from columns."""
    names = [op.mixin for op in spec.epilogue]
    for name in names:
        if name not in (*SYMMETRIC_MIXINS, MIRROR):
            why = ASYMMETRIC.get(name, "is not known to treat rows and columns alike")
            yield f"{name.rpartition(':')[2]} {why}", "alpha and beta * C only"
    if names.count(MIRROR) != 1 or names[-1] != MIRROR:
        yield "a symmetric result is stored twice, the second time by the mixin Mirror", "Mirror as the last mixin"
    else:
        layout = spec.epilogue[-1].ports[0].layout
        if layout is None or not _is_mirror(spec.operands.d, layout):
            yield (
                f"Mirror stores to {layout}, which is not out {spec.operands.d} with its modes swapped",
                "the mirror of out",
            )


def _is_mirror(d: OperandSpec, mirror: OperandSpec) -> bool:
    swapped = mirror.transposed is not d.transposed and mirror.major is not d.major
    return swapped and (mirror.dtype, mirror.ndim, mirror.align) == (d.dtype, d.ndim, d.align)
