"""The reductions that an epilogue can make of rows and columns. Host only: neither torch nor CuTe DSL; see `epilogue.reduction`."""

import enum


class Reduction(enum.Enum):
    """What is computed of the fp32 values x of a row or column. `value` is the public name.

    log_sum_exp is the natural one. Of no values: 0, 0, -inf, -inf. NaN anywhere gives NaN.
    """

    SUM = "sum"
    SUM_OF_SQUARES = "sum_of_squares"
    MAX = "max"
    LOG_SUM_EXP = "log_sum_exp"

    @classmethod
    def of(cls, name: object) -> "Reduction":
        """The member with this public name, or the member itself. ValueError: names the legal ones."""
        try:
            return cls(name)
        except ValueError:
            legal = ", ".join(repr(member.value) for member in cls)
            raise ValueError(f"reduction is {name!r}, expected one of {legal}") from None
