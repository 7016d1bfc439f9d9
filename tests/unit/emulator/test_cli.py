"""`python -m quack.emulator`: arguments, exit codes, what it prints and writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quack.emulator import current, opcodes
from quack.emulator.cli import main
from tests.unit.emulator.ptx_kernels import kernel_text

ROOT = Path(__file__).resolve().parents[3]
SHOW = "import sys\nprint(sys.argv[1:], __name__)\n"


@pytest.fixture
def script(tmp_path):
    """Writes a script, returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "script.py"
        path.write_text(text)
        return str(path)

    return write


# ---- run --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "before, after, passed_on",
    [
        ([], [], []),
        (["--arch", "sm100"], ["a", "--size", "512", "b"], ["a", "--size", "512", "b"]),
        ([], ["a", "--size", "512", "--arch=sm100", "-x", "--sms", "3", "b"], ["a", "--size", "512", "-x", "b"]),
        (["--sms", "3"], ["--", "--arch", "sm90", "--", "--stats"], ["--arch", "sm90", "--", "--stats"]),
        ([], ["a", "--sms", "3", "-1", "--", "-h"], ["a", "-1", "-h"]),
    ],
)
def test_arguments(script, capsys, before, after, passed_on):
    path = script(SHOW + "import quack.emulator\ns = quack.emulator.current()\nprint(s.arch, s.sms)\n")
    assert main(["run", *before, path, *after]) == 0
    wants = ["sm100" if "sm100" in " ".join([*before, *after]) else None, 3 if "--sms" in [*before, *after] else None]
    assert capsys.readouterr().out == f"{passed_on} __main__\n{wants[0]} {wants[1]}\n"
    assert current().sms is None and path not in sys.argv


def test_settings(script, capsys):
    path = script(
        "import quack.emulator\ns = quack.emulator.current()\nprint(s.schedule, s.checks, len(s.observers))\n"
    )
    assert main(["run", path, "--schedule", "random:7", "--check", "races,exits", "--stats"]) == 0
    assert capsys.readouterr().out == "random:7 ('races', 'exits') 1\nno kernel was launched\n"


@pytest.mark.parametrize(
    "line, code, error",
    [
        ("sys.exit()", 0, ""),
        ("sys.exit(7)", 7, ""),
        ("sys.exit('no luck')", 1, "no luck\n"),
        (
            "from quack.emulator import Deadlock; raise Deadlock('stuck')",
            1,
            "python -m quack.emulator: Deadlock: stuck\n",
        ),
    ],
)
def test_exit_codes(script, capsys, line, code, error):
    assert main(["run", script(SHOW + line)]) == code
    assert capsys.readouterr().err == error


def test_tracebacks(script, capsys):
    failing = script("def f():\n    raise KeyError('x')\nf()\n")
    assert main(["run", failing]) == 1
    text = capsys.readouterr().err
    assert "line 3, in <module>" in text and text.endswith("KeyError: 'x'\n") and "cli.py" not in text
    emulator_error = script("from quack.emulator import Deadlock\nraise Deadlock('stuck')\n")
    assert main(["run", emulator_error, "--traceback"]) == 1
    assert "line 2, in <module>" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        (["nowhere.py"], "no such file: nowhere.py"),
        ([__file__, "--arch", "sm80"], "invalid choice: 'sm80'"),
        ([__file__, "--schedule", "late"], "expected eager, latest or random:SEED"),
        ([__file__, "--check", "all,typo"], "checkers typo"),
        ([__file__, "--sms", "0"], "'0' is not a number of at least 1"),
        ([], "SCRIPT"),
    ],
)
def test_wrong_command_lines(capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        main(["run", *options])
    assert stop.value.code == 2 and message in capsys.readouterr().err


GEMM = """
import sys
import torch
import quack
a, b = torch.ones(128, 64, dtype=torch.bfloat16), torch.ones(64, 128, dtype=torch.bfloat16)
assert (quack.gemm(a, b) == 64).all()
sys.exit(int(sys.argv[1]))
"""


def test_gemm(script, tmp_path):
    options = [
        "--arch",
        "sm90",
        "--sms",
        "2",
        "--schedule",
        "latest",
        "--stats",
        "--json",
        "s.json",
        "--trace",
        "t.json",
    ]
    command = [sys.executable, "-m", "quack.emulator", "run", script(GEMM), "5", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 5, done.stderr
    assert "multiply (wgmma)" in done.stdout and not done.stderr
    (kernel,) = json.loads((tmp_path / "s.json").read_text())["kernels"]
    assert kernel["work"]["mma_flops"] == 2 * 128 * 128 * 64
    names = {event["name"] for event in json.loads((tmp_path / "t.json").read_text())["traceEvents"]}
    assert {"tma load", "tma store"} <= names


# ---- opcodes and ptx --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--markdown"]])
def test_opcodes(capsys, options):
    assert main(["opcodes", *options]) == 0
    text = capsys.readouterr().out
    rows = [
        [cell.strip(" `") for cell in line.strip("| ").split("|" if options else "  ")] for line in text.splitlines()
    ]
    found = {row[0]: row[1:] for row in rows}
    for name, entry in opcodes.TABLE.items():
        assert any(cell.strip() == entry.section for cell in found[name])


GOOD, BAD = (
    kernel_text(body, 1)
    for body in ("add.u32 %r0, %r1, %r2;", "frob.u32 %r0;\n@%p0 frob.u32 %r1;\nadd.foo.u32 %r0, %r1, %r2;")
)


def test_ptx(tmp_path, capsys):
    for name, text in (("good", GOOD), ("bad", BAD), ("none", "what"), ("broken", GOOD.replace(".reg", ".frob"))):
        (tmp_path / f"{name}.ptx").write_text(text)
    files = [str(tmp_path / f"{name}.ptx") for name in ("good", "bad", "none", "broken", "missing")]
    assert main(["ptx", files[0]]) == 0
    assert capsys.readouterr().out.endswith("5 instructions, 5 different opcodes, all implemented\n")
    assert main(["ptx", *files[:2]]) == 1
    line = BAD.splitlines().index("frob.u32 %r0;") + 1
    assert capsys.readouterr().out.endswith(
        "7 instructions, 6 different opcodes, 3 instructions not implemented:\n"
        f"  frob.u32 %r0\n    opcode frob.u32 is not implemented\n    lines {line}, {line + 1}\n"
        f"  add.foo.u32 %r0, %r1, %r2\n    modifiers ['.foo'] are not implemented\n    line {line + 2}\n"
    )
    for file, message in zip(files[2:], ("no kernel (.entry) in it", "directive .frob", "No such file")):
        assert main(["ptx", file]) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["ptx", files[0], "--what"])
