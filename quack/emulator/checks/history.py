"""Who accessed each cell of a memory since it was last written, cell by cell, for whole arrays at once.

A cell is four bytes (of TMEM: 32 bits). All cells with the same history share one `State`, so an access by one instruction
costs one look at the cells and some Python for each different state among them, mostly one or two.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Union

import numpy as np

from .ordering import Event

Where = Union[slice, np.ndarray, tuple[slice, slice]]
WORD = 4
ALL_BYTES = 15
_LIMIT = 100_000  # states, before those that no cell has are dropped
_MAX_READS = 64  # of one cell; older ones are forgotten

Marks = tuple[tuple[Event, int], ...]


class State(NamedTuple):
    """The last writes and the reads since, with a mask of the bytes of the cell."""

    writes: Marks
    reads: Marks


class Words:
    """Splits accesses into cells and masks of bytes. Several checkers ask for one access, so the last answer is kept."""

    def __init__(self) -> None:
        self.asked: Any = (None, 0)
        self.answer: list[tuple[Where, int]] = []

    def __call__(self, offsets: np.ndarray, size: int) -> list[tuple[Where, int]]:
        """(cells, mask of bytes of each) of `size` bytes at each of `offsets`."""
        if self.asked[0] is not offsets or self.asked[1] != size:
            self.answer = _split(offsets, size)
            self.asked = (offsets, size)
        return self.answer


def _split(offsets: np.ndarray, size: int) -> list[tuple[Where, int]]:
    if len(offsets) == 1:
        start = int(offsets[0])
        if start % WORD == 0 and size % WORD == 0:
            return [(slice(start // WORD, (start + size) // WORD), ALL_BYTES)]
    elif size % WORD == 0 and not int(np.bitwise_or.reduce(offsets)) % WORD:
        if size == WORD:
            return [(offsets // WORD, ALL_BYTES)]
        return [(((offsets // WORD)[:, None] + np.arange(size // WORD)).reshape(-1), ALL_BYTES)]
    places = (offsets[:, None] + np.arange(size)).reshape(-1)
    words, inverse = np.unique(places // WORD, return_inverse=True)
    masks = np.zeros(len(words), np.int64)
    np.bitwise_or.at(masks, inverse, 1 << places % WORD)
    return [(words[masks == mask], int(mask)) for mask in np.unique(masks)]


class History:
    """The states of all memories of a launch. Cells are int32 arrays of indices into `states`; 0: never accessed."""

    def __init__(self) -> None:
        self.states = [State((), ())]
        self.numbers: dict[State, int] = {self.states[0]: 0}
        self.limit = _LIMIT

    def access(
        self,
        cells: np.ndarray,
        where: Where,
        mask: int,
        event: Event,
        is_write: bool,
        knows: Callable[[Event], bool],
        fail: Callable[[Event, bool, int], None],
    ) -> None:
        """Record an access; fail(event, was_write, i) if it conflicts with an earlier one in the i-th of these cells."""
        numbers = cells[where]
        if not numbers.size:
            return
        first = int(numbers.flat[0])
        if numbers.size == 1 or not (numbers != first).any():
            after = self._after(first, mask, event, is_write, knows, fail, numbers)
            if after != first:
                cells[where] = after
            return
        values, inverse = np.unique(numbers, return_inverse=True)
        results = [self._after(v, mask, event, is_write, knows, fail, numbers) for v in values.tolist()]
        cells[where] = np.array(results, np.int32)[inverse].reshape(numbers.shape)

    def _after(
        self,
        number: int,
        mask: int,
        event: Event,
        is_write: bool,
        knows: Callable[[Event], bool],
        fail: Callable[[Event, bool, int], None],
        numbers: np.ndarray,
    ) -> int:
        """The state of a cell that is accessed."""
        writes, reads = self.states[number]
        known = {}
        for marks, was_write in ((writes, True), (reads, False)):
            for other, bytes_ in marks:
                known[other] = knows(other)
                if known[other] or not bytes_ & mask or (other.is_strong and event.is_strong):
                    continue
                if is_write or was_write:
                    fail(other, was_write, int(np.flatnonzero(numbers.reshape(-1) == number)[0]))
        if is_write:
            writes = _without(writes, mask, known) + ((event, mask),)
            reads = _without(reads, mask, known)
        else:
            reads = (_without(reads, mask, known) + ((event, mask),))[-_MAX_READS:]
        state = State(writes, reads)
        found = self.numbers.get(state)
        if found is None:
            found = self.numbers[state] = len(self.states)
            self.states.append(state)
        return found

    def compact(self, memories: list[np.ndarray]) -> None:
        """Forget states that no cell of `memories` (all there are) has; call it now and then."""
        if len(self.states) < self.limit:
            return
        live = np.unique(np.concatenate([np.zeros(1, np.int32), *(np.unique(cells) for cells in memories)]))
        renumbered = np.zeros(len(self.states), np.int32)
        renumbered[live] = np.arange(len(live))
        for cells in memories:
            cells[...] = renumbered[cells]
        self.states = [self.states[i] for i in live.tolist()]
        self.numbers = {state: i for i, state in enumerate(self.states)}
        self.limit = max(_LIMIT, 2 * len(self.states))


def _without(marks: Marks, mask: int, known: dict[Event, bool]) -> Marks:
    """Marks that a new access to the bytes of `mask` does not make superfluous: of other bytes, or not ordered before."""
    return tuple(
        (event, bytes_ & ~mask if known[event] else bytes_)
        for event, bytes_ in marks
        if not known[event] or bytes_ & ~mask
    )
