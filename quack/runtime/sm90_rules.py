"""What only Hopper's kernel refuses; `legality` applies it. Pure Python."""

from collections.abc import Iterator

from .spec import GATHERING, GemmSpec


def sm90_refusals(spec: GemmSpec) -> Iterator[tuple[str, str]]:
    """(reason, alternative)."""
    config, a_bytes = spec.config, spec.operands.a.dtype.bytes
    if (
        spec.adapter in GATHERING
        and config.tile_m == 192
        and not config.pingpong
        and (config.tile_k or 0) * a_bytes > 128
    ):
        yield (
            f"tile_m=192 leaves loading warps 32 registers, too few to gather tile_k={config.tile_k}",
            f"tile_k={128 // a_bytes}",
        )
