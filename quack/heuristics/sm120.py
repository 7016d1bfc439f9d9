"""Numbers for mma.sync kernels of sm_120, from data sheets: nothing here has been measured.

99 KB of shared memory hold two to four stages of such tiles, and there is no multicast.
"""

from ..arch import Arch
from .tuning import Roofline, Tuning

TILES = {
    (128, 128, False): 0.95,
    (128, 128, True): 0.97,
    (128, 64, False): 0.88,
    (128, 64, True): 0.90,
    (64, 128, True): 0.88,
    (64, 64, True): 0.75,
    (64, 32, True): 0.50,
    (64, 16, True): 0.30,
}


def tuning(arch: Arch) -> Tuning:
    return Tuning(
        roofline=Roofline.of(arch),
        tiles={16: TILES},
        fp8_precise=TILES,
        clusters=((1, 1),),
        ragged_clusters=((1, 1),),
        gather_clusters=((1, 1),),
        symmetric_tiles=((128, True), (64, True), (128, False)),
        smallest=(64, 64, True),
    )
