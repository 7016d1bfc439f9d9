"""Every example runs on a machine without a GPU, and its numbers are right."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import quack

FOLDER = Path(__file__).resolve().parents[2] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda p: p.stem)
def test_runs_emulated_and_says_so(path: Path):
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, path], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "no CUDA device here" in done.stdout and "emulator" in done.stdout


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
