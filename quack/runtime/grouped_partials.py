"""Partial reductions of grouped problems: one allocation for all of them, such that few launches finish them.

What an epilogue reduces is left as one number per line of D and part: lines are the rows of D that a ROW_PARTIALS port reduces, parts
the tiles along them; or columns and row blocks. Problems of a launch with about as many parts (within a factor of 2) share a
*strip*, a matrix (lines of all, most parts), so that a call has few of them however many problems it has, and none is half empty.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Optional

import torch

from ..gemm_port import PortKind
from ..reduction import Reduction
from .epilogue import partials_shape
from .row_sum import sum_rows
from .spec import GemmShape, GemmSpec

ALIGN_WORDS = 4  # strips begin at multiples of 16 bytes, for `sum_rows`
NEUTRAL = {
    Reduction.SUM: 0.0,
    Reduction.SUM_OF_SQUARES: 0.0,
    Reduction.MAX: float("-inf"),
    Reduction.LOG_SUM_EXP: float("-inf"),
}


class Share(NamedTuple):
    """What one problem has of a strip."""

    problem: int
    first_line: int
    lines: int
    parts: int


class Strip(NamedTuple):
    """(lines, parts) fp32 from word `first` of the buffer on, in memory (parts, lines) if parts_outside."""

    first: int
    lines: int
    parts: int
    parts_outside: bool
    shares: tuple[Share, ...]

    @property
    def pitch(self) -> int:
        """What the kernel steps by from line to line, or from part to part."""
        return self.lines if self.parts_outside else self.parts

    @property
    def is_padded(self) -> bool:
        return any(share.parts < self.parts for share in self.shares)

    def word(self, share: Share) -> int:
        """Of the buffer, where the problem begins."""
        return self.first + share.first_line * (1 if self.parts_outside else self.parts)

    def matrix(self, buffer: torch.Tensor) -> torch.Tensor:
        """(lines, parts)."""
        flat = buffer[self.first : self.first + self.lines * self.parts]
        return flat.view(self.parts, self.lines).mT if self.parts_outside else flat.view(self.lines, self.parts)


class PortPartials:
    """The partials of one port of a call. skipped: problems without a launch, and how many lines they have."""

    def __init__(self, kind: PortKind) -> None:
        self.kind = kind
        self.strips: list[Strip] = []
        self.skipped: list[tuple[int, int]] = []

    @property
    def all_lines(self) -> int:
        return sum(strip.lines for strip in self.strips) + sum(lines for _, lines in self.skipped)

    def views(self, buffer: torch.Tensor, count: int) -> list[torch.Tensor]:
        """By problem: (lines, parts) of row partials, (parts, lines) of column partials."""
        found = [buffer[:0]] * count
        for problem, lines in self.skipped:
            found[problem] = buffer.new_empty(lines, 0)
        for strip in self.strips:
            matrix = strip.matrix(buffer)
            for problem, first, lines, parts in strip.shares:
                found[problem] = matrix[first : first + lines, :parts]
        return found if self.kind is PortKind.ROW_PARTIALS else [view.mT for view in found]


class PartialsLayout:
    """Where the partials of all launches of a call are. words: of the buffer."""

    def __init__(self) -> None:
        self.ports: dict[str, PortPartials] = {}
        self.words = 0

    def skip(self, name: str, kind: PortKind, problem: int, shape: GemmShape) -> None:
        """A problem with nothing to compute."""
        port = self.ports.setdefault(name, PortPartials(kind))
        port.skipped.append((problem, shape.m if kind is PortKind.ROW_PARTIALS else shape.n))

    def place(
        self, name: str, kind: PortKind, finishing: GemmSpec, problems: Iterable[tuple[int, GemmShape]]
    ) -> list[Strip]:
        """Strips for the problems (index, extents as the caller has them) of a launch. finishing: the spec that runs the epilogue."""
        port = self.ports.setdefault(name, PortPartials(kind))
        is_row = (kind is PortKind.ROW_PARTIALS) != finishing.config.swap_ab
        classes: dict[int, list[tuple[int, int, int]]] = {}  # by parts: problem, lines, parts
        for problem, shape in problems:
            extents = partials_shape(kind, finishing, shape, False)
            lines, parts = extents if is_row else extents[::-1]
            classes.setdefault((parts - 1).bit_length(), []).append((problem, lines, parts))
        strips = []
        for members in classes.values():
            shares, lines = [], 0
            for problem, own_lines, own_parts in members:
                shares.append(Share(problem, lines, own_lines, own_parts))
                lines += own_lines
            strips.append(Strip(self.words, lines, max(parts for _, _, parts in members), not is_row, tuple(shares)))
            self.words += -(-lines * strips[-1].parts // ALIGN_WORDS) * ALIGN_WORDS
        port.strips += strips
        return strips


class Totals(NamedTuple):
    """A port whose partials the call combines itself."""

    name: str
    reduction: Reduction


class PartialsMemory:
    """Partials of one call, or of the calls of a plan. lists: by port name what the caller gets, a tensor for each problem;
    steps: the launches behind the GEMM that finish totals."""

    def __init__(self, layout: PartialsLayout, totals: tuple[Totals, ...], like: torch.Tensor, count: int):
        self.buffer = like.new_empty(layout.words, dtype=torch.float32)
        if like.device.type == "cpu":  # the emulator's: what nobody writes shows
            self.buffer.fill_(float("nan"))
        self.lists: dict[str, list[torch.Tensor]] = {}
        self.steps: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        reductions = dict(totals)
        for name, port in layout.ports.items():
            reduction: Optional[Reduction] = reductions.get(name)
            if reduction is None:
                self.lists[name] = port.views(self.buffer, count)
            else:
                self.lists[name] = self._totals(port, reduction, count)

    def _totals(self, port: PortPartials, reduction: Reduction, count: int) -> list[torch.Tensor]:
        """(lines,) of every problem, filled by `steps`."""
        totals = self.buffer.new_empty(port.all_lines)
        found, first = [totals[:0]] * count, 0
        for strip in port.strips:
            matrix = strip.matrix(self.buffer)
            if strip.is_padded:
                matrix.fill_(NEUTRAL[reduction])
            self.steps.append((_combine, (matrix, reduction, totals[first : first + strip.lines])))
            for share in strip.shares:
                found[share.problem] = totals[first + share.first_line :][: share.lines]
            first += strip.lines
        for problem, lines in port.skipped:
            found[problem] = totals[first : first + lines].fill_(NEUTRAL[reduction])
            first += lines
        return found

    def finish(self) -> None:
        """On the current stream, behind the GEMM."""
        for function, arguments in self.steps:
            function(*arguments)


def _combine(partials: torch.Tensor, reduction: Reduction, out: torch.Tensor) -> None:
    """Of each line; sums by a kernel, which starts under the tail of the GEMM."""
    if reduction is Reduction.MAX:
        torch.amax(partials, -1, out=out)
    elif reduction is Reduction.LOG_SUM_EXP:
        torch.logsumexp(partials, -1, out=out)
    else:
        sum_rows(partials, out=out)
