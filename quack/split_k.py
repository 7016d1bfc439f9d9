"""How the parts of a sum over K that several CTAs compute are put together."""

import enum


class SplitKMode(enum.Enum):
    """Who adds the fp32 partial sums of an output tile. The whole epilogue runs once per tile, in every mode.

    | mode | partial sums meet | same bits every time |
    |---|---|---|
    | SERIAL | one part after the other adds its own to a running sum, the last one finishes the tile | yes |
    | PARALLEL | all but the last are added to the workspace by reductions in memory, in any order | no (yes for 2 parts) |
    | SEPARATE | each part has a workspace of its own, and a second launch adds them up | yes |
    | STREAM | as SERIAL, but only tiles that would make a partly empty last wave are cut, at any k ("stream-K") | yes |

    STREAM takes no number of parts: the work of the last waves is shared out evenly. For dense and batched problems.
    """

    SERIAL = "serial"
    PARALLEL = "parallel"
    SEPARATE = "separate"
    STREAM = "stream"

    @property
    def is_deterministic(self) -> bool:
        """Whether equal calls give equal bits for any number of parts."""
        return self is not SplitKMode.PARALLEL
