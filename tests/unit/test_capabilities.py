"""The matrix of what works where: every cell is legal or says why not and what instead, a sample of them compiles."""

import itertools
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from quack.arch import ARCHES
from quack.capabilities import AXES, Cell, Verdict, cells, judge, sweep
from quack.capabilities.axes import base_spec
from quack.capabilities.matrix import USUAL
from quack.capabilities.render import BEGIN, END, FORMATS, put_into, summarise
from quack.runtime.legality import legality
from quack.runtime.spec import SYMMETRIC_COMMIT

ROOT = Path(__file__).resolve().parents[2]
BUILT = [name for name, arch in ARCHES.items() if arch.has_kernel]
SAMPLE = 20


@pytest.fixture(scope="module", params=sorted(ARCHES))
def verdicts(request) -> dict[Cell, Verdict]:
    return {cell: judge(cell) for cell in cells([request.param])}


def test_every_cell_is_legal_or_refused_with_a_reason_and_an_alternative(verdicts: dict[Cell, Verdict]):
    arch = next(iter(verdicts)).arch
    for cell, verdict in verdicts.items():
        assert verdict.cell == cell and verdict.ok == (verdict.reason is None)
        if verdict.ok:
            assert all(legality(spec).ok and spec.arch == arch for spec in verdict.kernels)
            continue
        assert verdict.reason and verdict.alternative, cell
        assert verdict.nearest is not None and judge(verdict.nearest).ok, cell
    legal = sum(verdict.ok for verdict in verdicts.values())
    assert legal > 1000 and legal < len(verdicts) if arch in BUILT else legal == 0


def test_the_nearest_cell_differs_in_as_little_as_possible(verdicts: dict[Cell, Verdict]):
    refused = [verdict for verdict in verdicts.values() if not verdict.ok and verdict.cell.arch in BUILT]
    for verdict in random.Random(5).sample(refused, min(100, len(refused))):
        changed = sum(a != b for a, b in zip(verdict.cell, verdict.nearest))
        fewer = itertools.chain.from_iterable(itertools.combinations(Cell._fields, n) for n in range(1, changed))
        for axes in fewer:
            assert not judge(verdict.cell._replace(**{axis: getattr(USUAL, axis) for axis in axes})).ok


def test_cells_are_what_they_say():
    """Coordinates reach the spec: none is decoration."""
    specs = {}
    for axis, values in AXES.items():
        for value in values:
            cell = USUAL._replace(**{axis: value})
            if axis == "arch":
                specs[cell] = (base_spec(cell),)
            elif judge(cell).ok:
                specs[cell] = judge(cell).kernels
    assert len(set(specs.values())) == len(specs) > 25
    (symmetric,) = judge(USUAL._replace(commit="symmetric")).kernels
    assert symmetric.plan == SYMMETRIC_COMMIT
    first, second = judge(USUAL._replace(commit="split-K separate", epilogue="bias")).kernels
    assert first.epilogue == () and len(second.epilogue) == 1 and second.pieces_of == first.config
    assert (
        judge(USUAL._replace(adapter="grouped", epilogue="bias")).kernels[0].epilogue[0].ports[0].source.value
        == "table"
    )


def test_precise_accumulation_is_no_cell_where_there_is_no_other():
    for name, arch in ARCHES.items():
        precise = {cell for cell in cells([name]) if cell.inputs == "e4m3 precise"}
        assert bool(precise) != arch.execution.precise_fp8


def test_the_matrix_needs_no_cute_dsl():
    code = f"import sys; from quack.capabilities import *; judge({USUAL!r}); print('cutlass' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "False\n"


def test_json_has_every_cell():
    matrix = json.loads(FORMATS["json"](["sm_90a", "sm_103a"]))
    assert {axis: tuple(values) for axis, values in matrix["axes"].items()} == AXES
    assert len(matrix["cells"]) == len(list(cells(["sm_90a", "sm_103a"])))
    for row in matrix["cells"]:
        cell = Cell(*(row[axis] for axis in AXES))
        verdict = judge(cell)
        assert row.get("reason") == verdict.reason and ("config" in row) == verdict.ok


def test_summary_says_what_the_cells_say():
    summary = summarise("sm_90a")
    texts = dict(summary.rows)
    column = dict(zip(AXES["adapter"], texts["symmetric"]))
    legal = [name for name in summary.inputs if judge(USUAL._replace(commit="symmetric", inputs=name)).ok]
    assert "bf16" in legal and len(legal) < len(summary.inputs)
    assert column["dense"].startswith(f"{', '.join(legal)} [") and re.fullmatch(r"\[\d+\]", column["grouped"])
    number = int(column["grouped"].strip("[]"))
    assert "symmetric" in summary.footnotes[number - 1] and "instead: " in summary.footnotes[number - 1]
    assert texts["default"][0] == "all" and f"{summary.legal} are legal" in summary.caption
    named = {int(n) for row in texts.values() for text in row for n in re.findall(r"\[(\d+)\]", text)}
    assert named <= set(range(1, len(summary.footnotes) + 1)) and max(named) == len(summary.footnotes)


@pytest.mark.parametrize("form", ["text"])
def test_command_line(form: str):
    code = [sys.executable, "-m", "quack.capabilities", "--format", form, "--arch", "sm_90a"]
    printed = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed == FORMATS[form](["sm_90a"])
    refused = subprocess.run([*code[:-1], "sm_75"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and "sm_120a" in refused.stderr


def test_readme_is_current():
    text = (ROOT / "README.md").read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    assert put_into(text) == text, "run `make capabilities`"


@pytest.mark.parametrize("cell", sweep.sample(ARCHES, SAMPLE), ids=str)
def test_a_legal_cell_compiles(cell: Cell):
    assert sweep.failure(result := sweep.compile_cell(cell)) is None, result
    mma = ARCHES[cell.arch].execution.mma
    assert result["kernels"][0][mma] > 0  # a second launch only adds up


def test_the_sample_is_the_same_every_time_and_of_every_kernel():
    cells_of = sweep.sample(ARCHES, SAMPLE)
    assert cells_of == sweep.sample(ARCHES, SAMPLE) and len(set(cells_of)) == SAMPLE
    counts = {arch: sum(cell.arch == arch for cell in cells_of) for arch in BUILT}
    assert min(counts.values()) >= SAMPLE // len(BUILT)


# ---- the sweep --------------------------------------------------------------------------------------------------------

THREE = [USUAL, USUAL._replace(epilogue="bias"), USUAL._replace(commit="split-K separate")]


def test_a_sweep_resumes_and_forgets_what_is_gone(tmp_path, monkeypatch, capsys):
    """Only the file connects two sweeps; what it has is not compiled again, what nobody asks for is dropped."""
    compiled: list[Cell] = []

    def run(self, missing, jobs):
        for key, cell in missing:
            compiled.append(cell)
            self.results[key] = {"kernels": [{"spill_bytes": 8 if cell is THREE[1] else 0}]}
        self.save()

    monkeypatch.setattr(sweep.Sweep, "run", run)
    monkeypatch.setattr(sweep, "cells", lambda arches: THREE[:2])
    path = tmp_path / "build" / "matrix.json"
    failures = sweep.compile_all(["sm_90a"], path, 2)
    assert compiled == THREE[:2]
    assert failures == [f"{THREE[1]}: spill_bytes=8"] and "1 of 2 failed" in capsys.readouterr().out
    monkeypatch.setattr(sweep, "cells", lambda arches: THREE[1:])
    assert sweep.compile_all(["sm_90a"], path, 2) == failures
    assert compiled == THREE and "2 legal cells, 1 to compile" in capsys.readouterr().out
    kept = json.loads(path.read_text())
    assert len(kept) == 2 and not any(key.startswith(f"{THREE[0]} ") for key in kept)
    monkeypatch.setattr(sweep, "cache_key", lambda spec: "another source")
    sweep.compile_all(["sm_90a"], path, 2)
    assert compiled == THREE + THREE[1:]


def test_processes_compile_and_may_die(tmp_path, monkeypatch):
    """A process that CuTe DSL takes down costs its cell only."""
    bad = USUAL._replace(adapter="no such adapter")  # raises in the process
    doomed = Doomed(*USUAL)
    work = sweep.Sweep({}, tmp_path / "matrix.json")
    work.run([("good", USUAL), ("bad", bad), ("doomed", doomed), ("after", USUAL._replace(inputs="fp16"))], 1)
    assert sweep.failure(work.results["good"]) is None and sweep.failure(work.results["after"]) is None
    assert "KeyError" in str(sweep.failure(work.results["bad"]))
    assert "died with exit code" in str(sweep.failure(work.results["doomed"]))
    assert json.loads((tmp_path / "matrix.json").read_text()) == work.results


class Doomed(Cell):
    """Ends the process that unpickles it."""

    def __reduce__(self):
        import os

        return os._exit, (3,)
