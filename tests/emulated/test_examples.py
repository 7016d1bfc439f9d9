"""Every example runs on a machine without a GPU, and its numbers are right."""

import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import quack

FOLDER = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_runs_emulated_and_says_so(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """As scripts, but in this process, which has imported everything already."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    runpy.run_path(str(path), run_name="__main__")
    says_so(capsys.readouterr().out)


def test_runs_in_a_process_of_its_own():
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, SCRIPTS[0]], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    says_so(done.stdout)


def says_so(printed: str) -> None:
    assert "no CUDA device here" in printed and "emulator" in printed


def test_the_mixture_of_experts_learns():
    with quack.emulator.use("sm90", sms=8, schedule="latest"):
        losses = example("moe").train("cpu")
    assert all(later < earlier for earlier, later in zip(losses, losses[1:]))
    assert losses[-1] < 0.3 * losses[0]


def test_the_mlp_learns():
    with quack.emulator.use("sm90", sms=8, schedule="latest"):
        losses = example("06_mlp").train("cpu", rows=64)
    assert all(later < earlier for earlier, later in zip(losses, losses[1:]))
    assert losses[-1] < 0.4 * losses[0]
