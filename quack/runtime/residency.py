"""How many clusters a device holds at once."""

from ..gemm_config import GemmConfig


def cluster_count(config: GemmConfig, sms: int) -> int:
    """Clusters that run at once, one CTA an SM. A cluster stays within a GPC, which has 16 or 18 SMs: of four CTAs an H200 held
    30, not 33 (with 31 a launch took a second wave: 35 us instead of 27 for 256 x 256 x 65536). What they leave over smaller ones
    take, if the configuration has such; these count as parts."""
    ctas = config.cluster_m * config.cluster_n
    clusters = max(sms // ctas, 1)
    is_filled = ctas < 4 or config.fallback_cluster is not None
    return clusters if is_filled else clusters - clusters // 11
