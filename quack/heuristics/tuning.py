"""What the model counts with on one architecture: rates, and which tiles and clusters are worth trying."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..arch import Arch, Figure
from ..runtime.spec import DENSE, GATHERING, GemmSpec

Tile = tuple[int, int, bool]  # tile_m, tile_n, pingpong
Tiles = Mapping[Tile, float]  # and the share of the MMA rate that its main loop reaches
Clusters = tuple[tuple[int, int], ...]

# Shares of the data sheet's figures that an H200 sustains, for chips that nobody has measured.
MMA_SHARE = {32: 0.83, 16: 0.83, 8: 0.81, 4: 0.81}
L2_SHARE = 0.63
L2_BURST_SHARE = 0.94
HBM_SHARE = 0.85
STORE_SHARE = 0.24  # of the L2 rate
PARTIAL_SHARE = 0.28  # the same for partial sums, which take no way through shared memory
L2_TOTAL_SHARE = 0.36  # of the L2 rate of all SMs together
L2_KEPT_SHARE = 0.76  # of the L2's capacity


@dataclass(frozen=True)
class Roofline:
    """Rates that are sustained. Bytes and flops per ns; of one SM unless the comment says device."""

    mma_flops_per_ns: Mapping[int, float]  # large tiles, by element bits
    l2_bytes_per_ns: float  # after multicast
    l2_burst_bytes_per_ns: float  # the same for the first `burst_bytes` of a launch
    hbm_bytes_per_ns: float  # device
    store_bytes_per_ns: float  # draining a tile
    partial_bytes_per_ns: float  # partial sums, to or from the L2
    l2_total_bytes_per_ns: float  # device
    l2_bytes: float  # of partial tiles that stay in the L2
    grouped_l2_bytes_per_ns: float  # as l2_bytes_per_ns where neighbouring tiles often belong to different problems
    gather_bytes_per_ns: float  # of A: what the copying warps reach beside the multiplication
    smem_bytes_per_ns: float  # shared memory, of reads and as many of writes beside them
    burst_bytes: float = 800e3
    tile_start_ns: float = 700.0  # pipeline fill of a tile
    launch_ns: float = 2500.0
    cluster_ns: float = 900.0  # more for a launch of clusters; measured on an H200 with 1024^3
    turn_ns: float = 1500.0  # from one part's release of its tile to the next one's first loads
    second_launch_ns: float = 3000.0

    @staticmethod
    def of(arch: Arch) -> "Roofline":
        """From the data sheet, with the shares that an H200 sustains of its own."""
        chip = arch.chip
        l2 = chip[Figure.L2_BYTES_PER_CLK] * chip[Figure.CLOCK_GHZ]
        return Roofline(
            mma_flops_per_ns={bits: share * chip.mma_flops_per_ns(bits) for bits, share in MMA_SHARE.items()},
            l2_bytes_per_ns=L2_SHARE * l2,
            l2_burst_bytes_per_ns=L2_BURST_SHARE * l2,
            hbm_bytes_per_ns=HBM_SHARE * chip[Figure.HBM_BYTES_PER_NS],
            store_bytes_per_ns=STORE_SHARE * l2,
            partial_bytes_per_ns=PARTIAL_SHARE * l2,
            l2_total_bytes_per_ns=L2_TOTAL_SHARE * l2 * chip.sms,
            l2_bytes=L2_KEPT_SHARE * chip[Figure.L2_BYTES],
            grouped_l2_bytes_per_ns=0.8 * L2_SHARE * l2,
            gather_bytes_per_ns=0.2 * l2,
            smem_bytes_per_ns=chip[Figure.SMEM_BYTES_PER_CLK] * chip[Figure.CLOCK_GHZ],
        )


@dataclass(frozen=True)
class Tuning:
    """One architecture as the model sees it.

    operand_reads: bytes of shared memory that a CTA's multiplication reads of one k tile; the spec's tile_k is filled in.
    tiles: by the bits of the inputs. fp8_precise: for sums that the kernel itself keeps in fp32.
    dense_only: of these the ones for dense operands of 16 bits only.
    smallest: the tile that is asked for a reason if no tile is legal, and symmetric ones of square tiles.
    split_clusters: to try besides where K is split.
    overlaps_drain: whether tiles that are not ping-pong drain behind the next multiplication too.
    ragged_*: factors on the time of such tiles with a ragged M. grouped_swap: on that of grouped problems as D^T.
    """

    roofline: Roofline
    operand_reads: Callable[[GemmSpec], int]
    tiles: Mapping[int, Tiles]
    fp8_precise: Tiles
    clusters: Clusters
    ragged_clusters: Clusters
    gather_clusters: Clusters
    symmetric_tiles: tuple[tuple[int, bool], ...]  # (tile_m = tile_n, pingpong)
    smallest: Tile
    dense_only: frozenset[Tile] = frozenset()
    overlaps_drain: bool = False
    split_clusters: Clusters = ()
    # Of N that the tiles of a strip cover: every strip reads all of A again. An H200 that is not held back by its power limit
    # multiplied 4096^3 with 128 x 128 tiles in 178 us in strips of 2048 columns, in 198 us in strips of 512 (limited: 203, 206).
    strip_columns: int = 2048
    ragged_swizzle: int = 16
    ragged_cooperative: float = 1.0
    ragged_wide: float = 1.0
    grouped_swap: float = 1.0

    def tiles_of(self, spec: GemmSpec) -> Tiles:
        """The tiles worth trying for these operands and this accumulation, and how well they run."""
        dtype = spec.operands.a.dtype
        if dtype.is_fp8 and not spec.fast_accum:
            return self.fp8_precise
        tiles = self.tiles.get(dtype.bits, self.tiles[16])
        if spec.adapter == DENSE and dtype.bits == 16:
            return tiles
        return {tile: share for tile, share in tiles.items() if tile not in self.dense_only}

    def clusters_of(self, spec: GemmSpec, is_ragged_m: bool) -> Clusters:
        """The clusters worth trying."""
        if spec.adapter in GATHERING:
            return self.gather_clusters
        return self.ragged_clusters if is_ragged_m else self.clusters
