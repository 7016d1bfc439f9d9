"""How the parts of a sum over K that several CTAs compute are put together."""

import enum


class SplitKMode(enum.Enum):
    """Who adds the fp32 partial sums of an output tile. The whole epilogue runs once per tile, in every mode.

    | mode | partial sums meet | same bits every time |
    |---|---|---|
    | SERIAL | one part after the other adds its own to a running sum, the last one finishes the tile | yes |
    | PARALLEL | all but the last are added to the workspace by reductions in memory, in any order | no (yes for 2 parts) |
    | SEPARATE | each part has a workspace of its own, and a second launch adds them up | yes |
    """

    SERIAL = "serial"
    PARALLEL = "parallel"
    SEPARATE = "separate"

    @property
    def is_deterministic(self) -> bool:
        """Whether equal calls give equal bits for any number of parts."""
        return self is not SplitKMode.PARALLEL
