"""Which memory the tensors of a grouped call may share."""

from typing import Any

from .grouped_call import Families
from .operands import byte_span


def check_disjoint(families: Families, names: dict[str, str], outputs: frozenset[str]) -> None:
    """No output may share memory with another, or with an input other than out with its own C. names: of the caller's lists, by
    operand; outputs: operands."""
    spans = []  # (first byte, last byte + 1, operand, problem, tensor)
    for name, family in families.items():
        for index, tensor in enumerate(family):
            size = byte_span(tensor)
            if size:
                spans.append((tensor.data_ptr(), tensor.data_ptr() + size, name, index, tensor))
    spans.sort(key=lambda span: span[:2])
    open_spans: list[Any] = []
    for span in spans:
        open_spans = [other for other in open_spans if other[1] > span[0]]
        for other in open_spans:
            if not {span[2], other[2]} & outputs or _is_own_c(span, other) or _are_disjoint_columns(span, other):
                continue
            out, peer = (span, other) if span[2] in outputs else (other, span)
            name, peer_name = (names.get(x[2], x[2]) for x in (out, peer))
            raise ValueError(f"{name}[{out[3]}] overlaps {peer_name}[{peer[3]}] in memory: pass one of its own")
        open_spans.append(span)


def _is_own_c(x: Any, y: Any) -> bool:
    """C of the same problem, the same tensor as out (in place)."""
    same = x[3] == y[3] and {x[2], y[2]} == {"C", "out"}
    return same and x[0] == y[0] and x[4].stride() == y[4].stride() and x[4].dtype == y[4].dtype


def _are_disjoint_columns(x: Any, y: Any) -> bool:
    """Slices of rows of one pitch whose columns do not meet, although their address ranges do."""
    pitches = {max(t.stride()) * t.element_size() for t in (x[4], y[4])}
    if len(pitches) != 1 or x[4].dim() != 2 or y[4].dim() != 2:
        return False
    pitch = pitches.pop()
    widths = []
    for tensor in (x[4], y[4]):
        unit = tensor.stride().index(min(tensor.stride()))
        if tensor.stride(unit) != 1:
            return False
        widths.append(tensor.shape[unit] * tensor.element_size())
    offset = (y[0] - x[0]) % pitch
    return widths[0] <= offset and offset + widths[1] <= pitch
