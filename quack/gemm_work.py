"""The unit of work that one CTA computes, as every role of a kernel sees it."""

from dataclasses import dataclass

from cutlass import Boolean, Int32


@dataclass(frozen=True)
class WorkDesc:
    """One output tile of one problem, for this CTA. Written by a tile scheduler, read by every role.

    A frozen dataclass of numbers is a legal loop-carried value of a dynamic `while work.is_valid`: rebind it,
    never change it.

    tile_m, tile_n: coordinates of the tile in units of CTA tiles (first row = tile_m * cta_tile_m). They
        differ between the CTAs of a cluster, and may lie beyond the edge of the tile grid when the cluster
        shape does not divide it: such a CTA still takes part in multicast and in every barrier, and TMA clips
        its loads and stores.
    problem: batch or group index, the same in all CTAs of a cluster. The problem adapter turns it into
        pointers and extents.
    start: first element of the problem's part of a ragged dimension (varlen-M: rows), else 0.
    split, split_count: which part of the tile's k tiles this is, and of how many; the last part finishes the tile.
    k_tile_begin, k_tile_count: the k tiles of the work, set where tiles are cut at any k tile (`stream_works`), else 0.
    slot: number of the tile, different for all tiles and CTAs of a launch; only set where tiles are split.
    m, n, k: extents of the problem that the scheduler had to look up to find the work, else 0. Spares each role the
        lookup; the adapter knows which are set.
    is_valid: False once the cluster is out of work; the same in all its CTAs. The other fields then mean
        nothing.
    """

    tile_m: Int32
    tile_n: Int32
    problem: Int32
    start: Int32
    m: Int32
    n: Int32
    k: Int32
    split: Int32
    split_count: Int32
    k_tile_begin: Int32
    k_tile_count: Int32
    slot: Int32
    is_valid: Boolean
