"""The matrix as JSON (every cell), text or markdown (per architecture: adapters against commit policies and epilogues)."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from ..arch import ARCHES
from .axes import AXES, Cell
from .matrix import USUAL, Verdict, cells, judge

EVERY = "all"


@dataclass
class Footnotes:
    """Reasons with their alternatives, numbered as they come up."""

    texts: list[str] = field(default_factory=list)

    def mark(self, verdict: Verdict) -> str:
        text = f"{verdict.reason}; instead: {verdict.alternative}"
        if text not in self.texts:
            self.texts.append(text)
        return f"[{self.texts.index(text) + 1}]"


@dataclass(frozen=True)
class Summary:
    """Architectures of which the same is said. rows: (name, a cell of text per adapter); inputs: those that they multiply."""

    arches: tuple[str, ...]
    inputs: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    footnotes: tuple[str, ...]
    legal: int
    total: int
    missing: str  # why there is nothing, empty if there is something

    @property
    def heading(self) -> str:
        kernel = ARCHES[self.arches[0]].execution.kernel.partition(":")[2]
        chips = ", ".join(ARCHES[arch].chip.name for arch in self.arches)
        return f"{', '.join(self.arches)} ({kernel}, e.g. {chips})"

    @property
    def caption(self) -> str:
        if self.missing:
            return f"{self.missing}."
        return (
            f"{EVERY}: {', '.join(self.inputs)}. Of {self.total} combinations of inputs, adapter, commit policy and epilogue "
            f"{self.legal} are legal."
        )


def summarise(arch: str) -> Summary:
    """Commit policies without epilogue, then epilogues with the default commit."""
    verdicts = {cell: judge(cell) for cell in cells([arch])}
    plain = USUAL._replace(arch=arch)
    inputs = tuple(name for name in AXES["inputs"] if _is_legal(verdicts, plain._replace(inputs=name)))
    legal = sum(verdict.ok for verdict in verdicts.values())
    if not inputs:
        return Summary((arch,), (), (), (), legal, len(verdicts), str(verdicts[plain].reason))
    footnotes = Footnotes()
    refused = [plain._replace(inputs=name) for name in AXES["inputs"] if name not in inputs]
    for cell in refused:
        if cell in verdicts:
            footnotes.mark(verdicts[cell])
    named = [(name, plain._replace(commit=name)) for name in AXES["commit"]]
    named += [(name, plain._replace(epilogue=name)) for name in AXES["epilogue"] if name != USUAL.epilogue]
    rows = []
    for name, row in named:
        texts = tuple(_text(verdicts, row._replace(adapter=a), inputs, footnotes) for a in AXES["adapter"])
        rows.append((name, texts))
    return Summary((arch,), inputs, tuple(rows), tuple(footnotes.texts), legal, len(verdicts), "")


def summaries(arches: Iterable[str]) -> list[Summary]:
    """Architectures whose summaries differ in nothing but their names share one."""
    found: list[Summary] = []
    for summary in map(summarise, arches):
        (arch,) = summary.arches
        same = (s for s in found if ARCHES[s.arches[0]].execution is ARCHES[arch].execution)
        first = next((s for s in same if replace(summary, arches=s.arches) == s), None)
        if first is None:
            found.append(summary)
        else:
            found[found.index(first)] = replace(first, arches=(*first.arches, arch))
    return found


def _is_legal(verdicts: dict[Cell, Verdict], cell: Cell) -> bool:
    return cell in verdicts and verdicts[cell].ok


def _text(verdicts: dict[Cell, Verdict], cell: Cell, inputs: Sequence[str], footnotes: Footnotes) -> str:
    """Which inputs are legal, and footnotes for the others."""
    of_inputs = [verdicts[cell._replace(inputs=name)] for name in inputs]
    legal = [verdict.cell.inputs for verdict in of_inputs if verdict.ok]
    marks = dict.fromkeys(footnotes.mark(verdict) for verdict in of_inputs if not verdict.ok)
    said = EVERY if len(legal) == len(inputs) else ", ".join(legal)
    return " ".join([*([said] if said else []), *marks])


def markdown(arches: Iterable[str]) -> str:
    """Tables and numbered footnotes, one architecture after the other."""
    parts = []
    for summary in summaries(arches):
        lines = [f"**{summary.heading}** {summary.caption}"]
        if summary.rows:
            lines += ["", "| | " + " | ".join(AXES["adapter"]) + " |", "|---" * (1 + len(AXES["adapter"])) + "|"]
            lines += [f"| {name} | " + " | ".join(texts) + " |" for name, texts in summary.rows]
            lines += ["", *(f"{i}. {text}" for i, text in enumerate(summary.footnotes, 1))]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def text(arches: Iterable[str]) -> str:
    """The same in aligned columns."""
    parts = []
    for summary in summaries(arches):
        lines = [f"{summary.heading}: {summary.caption}"]
        if summary.rows:
            table = [("", AXES["adapter"]), *summary.rows]
            cells_of = [(name, *texts) for name, texts in table]
            widths = [max(len(row[i]) for row in cells_of) for i in range(len(cells_of[0]))]
            lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells_of]
            lines += [f"[{i}] {text}" for i, text in enumerate(summary.footnotes, 1)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def as_json(arches: Iterable[str]) -> str:
    """{"axes": {...}, "cells": [...]}: of every cell its coordinates and either the configuration or reason, alternative and
    nearest legal cell; one line each."""
    rows = []
    for verdict in map(judge, cells(arches)):
        row: dict[str, object] = dict(verdict.cell._asdict())
        if verdict.ok:
            row["config"] = str(verdict.kernels[0].config)
        else:
            near = None if verdict.nearest is None else list(verdict.nearest)
            row |= {"reason": verdict.reason, "alternative": verdict.alternative, "nearest": near}
        rows.append(json.dumps(row))
    lines = ",\n".join(rows)
    return f'{{"axes": {json.dumps(AXES)},\n"cells": [\n{lines}\n]}}\n'


BEGIN, END = "<!-- capabilities: make capabilities -->", "<!-- end of capabilities -->"


def put_into(document: str) -> str:
    """The document with the markdown of every architecture between the markers."""
    before, rest = document.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{markdown(AXES['arch'])}{END}{after}"


FORMATS = {"text": text, "markdown": markdown, "json": as_json}
