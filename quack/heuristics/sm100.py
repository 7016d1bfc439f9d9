"""Numbers for tcgen05 kernels, from data sheets: nothing here has been measured.

A tile of 256 rows is shared by two CTAs. Accumulators alternate between two halves of TMEM, so every tile drains behind the
next one's multiplication.
"""

from ..arch import Arch
from ..runtime.spec import GemmSpec
from .tuning import Roofline, Tuning
from .work import line_bytes, loaded_columns

# One MMA of 128 rows and two CTAs' MMA of 256 rows reach the full rate from 128 and from 64 columns on; narrower ones read
# more shared memory for each product than it delivers.
TILES = {
    (256, 256, False): 1.0,
    (256, 192, False): 0.99,
    (256, 128, False): 0.96,
    (128, 256, False): 0.97,
    (128, 192, False): 0.94,
    (128, 128, False): 0.86,
    (256, 64, False): 0.70,
    (128, 64, False): 0.50,
    (128, 32, False): 0.28,
}


def operand_reads(spec: GemmSpec) -> int:
    """What the CTA has loaded is read once. Of a pair, each CTA's half of B goes to the tensor cores of both."""
    a_line, b_line = line_bytes(spec)
    return spec.config.cta_tile_m * a_line + loaded_columns(spec) * b_line


def tuning(arch: Arch) -> Tuning:
    return Tuning(
        roofline=Roofline.of(arch),
        operand_reads=operand_reads,
        tiles={16: TILES},
        fp8_precise=TILES,
        clusters=((2, 1), (1, 1), (1, 2), (2, 2), (4, 1)),
        ragged_clusters=((2, 1), (1, 1), (1, 2)),
        gather_clusters=((1, 1), (2, 1)),
        symmetric_tiles=((128, False),),
        smallest=(128, 64, False),
        overlaps_drain=True,
    )
