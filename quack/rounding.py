"""How the fp32 result is rounded to the output's dtype. Host only: neither torch nor CuTe DSL; see `epilogue.rounding`."""

import enum


class RoundingMode(enum.IntEnum):
    """RN: to nearest, ties to even. RS: stochastically, up or down with probabilities that make the expectation exact."""

    RN = 0
    RS = 1
