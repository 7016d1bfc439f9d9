"""Compile worker, cache key and loading, without a GPU."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace

import pytest
import torch
from cutlass import cute

import quack
from quack.arch import ARCH_OF_CAPABILITY, ARCHES
from quack.emulator.runtime.device import DEVICES
from quack.gemm_config import GemmConfig
from quack.gemm_port import EpilogueOpSpec
from quack.runtime import call, plan
from quack.runtime import compile as compiling
from quack.runtime.compile import CompileError, cache_key, compiled_function, example_spec, load_object, source_hash
from quack.runtime.dispatch import get_function
from quack.runtime.spec import UnsupportedGemm
from quack.sm90.gemm import GemmSm90

SMALL = replace(example_spec(), config=GemmConfig(64, 32, cluster_m=1).with_tile_k(example_spec().operands.a.dtype))


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("QUACK_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_key_depends_on_spec_toolchain_and_sources(monkeypatch):
    key = cache_key(SMALL)
    assert cache_key(replace(SMALL)) == key
    assert cache_key(replace(SMALL, fast_accum=False)) != key
    monkeypatch.setattr(compiling, "toolchain", lambda: "another")
    assert cache_key(SMALL) != key
    monkeypatch.undo()
    monkeypatch.setattr(compiling, "source_hash", lambda roots: "another")
    assert cache_key(SMALL) != key


def test_key_is_the_same_in_every_process():
    code = "from quack.runtime.compile import *; print(cache_key(example_spec()))"
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(compiling.PACKAGE_ROOT.parent)}
        printed = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert printed.stdout.strip() == cache_key(example_spec())


def test_source_hash_follows_imports_and_nothing_else(monkeypatch):
    source_hash.cache_clear()
    read = set()
    original = compiling._module_file

    def recording(module):
        read.add(module)
        return original(module)

    monkeypatch.setattr(compiling, "_module_file", recording)
    cache_key(SMALL)
    source_hash.cache_clear()
    needed = {
        "sm90.gemm",
        "sm90.resources",
        "execution.warpgroups",
        "tile_scheduler",
        "gemm_work",
        "work_stream",
        "gemm_epilogue_plan",
    }
    assert {f"quack.{name}" for name in needed} <= read
    assert not {name for name in read if name.startswith(("quack.runtime", "quack.gemm_interface", "quack.heuristics"))}


def test_compile_and_load_within_two_seconds_each():
    compiled_function(SMALL)  # starts the worker
    other = replace(SMALL, config=replace(SMALL.config, tile_n=48))
    start = time.monotonic()
    function = compiled_function(other)
    cold = time.monotonic() - start
    start = time.monotonic()
    compiled_function(other)
    warm = time.monotonic() - start
    assert callable(function)
    assert cold < 4.0  # 0.5 s on an idle machine; CI shares its two cores among workers
    assert warm < 0.2  # 2 ms on an idle machine


def test_worker_reports_failures_and_goes_on():
    broken = replace(SMALL, config=replace(SMALL.config, tile_m=100))
    with pytest.raises(CompileError, match="tile_m"):
        compiled_function(broken)
    assert callable(compiled_function(SMALL))


def test_worker_is_restarted_when_it_dies(monkeypatch):
    worker = compiling._Worker()
    monkeypatch.setattr(compiling, "_worker", worker)
    compiled_function(SMALL)
    assert worker.process is not None
    worker.process.kill()
    worker.process.wait()
    assert callable(compiled_function(replace(SMALL, config=replace(SMALL.config, tile_n=64))))
    worker.stop()


def test_threads_may_ask_at_once():
    specs = [replace(SMALL, config=replace(SMALL.config, tile_n=n)) for n in (16, 80, 96)]
    results, threads = {}, []
    for spec in specs:
        threads.append(threading.Thread(target=lambda s=spec: results.update({s: get_function(s)})))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert all(callable(results[spec]) for spec in specs)


def test_mixin_of_a_user_compiles_in_the_worker(tmp_path, monkeypatch):
    (tmp_path / "users_mixins.py").write_text(
        textwrap.dedent(
            """
            from dataclasses import dataclass
            from quack.epilogue.protocol import EpilogueMixin

            @dataclass(frozen=True)
            class Square(EpilogueMixin):
                def visit(self, ctx, state, frag):
                    frag.acc.store(frag.acc.load() * frag.acc.load())
                    return state
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    worker = compiling._Worker()
    monkeypatch.setattr(compiling, "_worker", worker)
    spec = replace(SMALL, epilogue=(EpilogueOpSpec("users_mixins:Square", ()),))
    assert cache_key(spec) != cache_key(SMALL)
    assert callable(compiled_function(spec))
    worker.stop()


def test_object_survives_a_reload(tmp_path):
    path = tmp_path / "kernel.o"
    compiling.write_entry(SMALL, str(path))
    assert callable(load_object(path))


@pytest.mark.parametrize("arch", sorted(ARCHES))
def test_the_spec_decides_the_target(arch, monkeypatch):
    """One process compiles for every architecture, with the kernel class that the table names for it."""
    entry = ARCHES[arch]
    stand_in = replace(
        entry.execution, kernel=ARCHES["sm_90a"].execution.kernel
    )  # traced no further than its constructor
    monkeypatch.setattr(compiling, "ARCHES", {**ARCHES, arch: replace(entry, execution=stand_in)})
    calls = []
    monkeypatch.setattr(cute, "compile", lambda kernel, *arguments, options: calls.append((kernel, options)))
    compiling.trace(replace(SMALL, arch=arch))
    ((kernel, options),) = calls
    assert f"--gpu-arch {arch} " in options and options.count("--gpu-arch") == 1
    assert isinstance(kernel, GemmSm90)
    compiling.trace(SMALL)
    assert "--gpu-arch sm_90a " in calls[1][1]


def test_targets_of_one_kernel_class_have_keys_of_their_own():
    """sm_100a and sm_103a share their sources; the objects do not run on each other."""
    specs = [example_spec(arch) for arch in ARCHES]
    assert len({cache_key(spec) for spec in specs}) == len(ARCHES)
    assert [spec.config.device_capacity for spec in specs] == [arch.capability[0] for arch in ARCHES.values()]


@pytest.mark.parametrize("family", ["sm90", "sm100", "sm120"])
def test_the_emulated_device_decides_the_spec(family, monkeypatch):
    asked = []

    def get_function(spec, emulated):
        asked.append((spec, emulated))
        return lambda *arguments: None

    monkeypatch.setattr(plan, "get_function", get_function)
    monkeypatch.setattr(call, "_calls", {})
    arch = ARCH_OF_CAPABILITY[DEVICES[family].compute_capability]
    A, B = torch.zeros(64, 64, dtype=torch.bfloat16), torch.zeros(64, 64, dtype=torch.bfloat16)
    with quack.emulator.use(family):
        if not ARCHES[arch].has_kernel:
            with pytest.raises(UnsupportedGemm, match=f"no kernel for {arch} yet"):
                quack.gemm(A, B)
            return
        quack.gemm(A, B)
    ((spec, emulated),) = asked
    assert spec.arch == arch and emulated and spec.config.device_capacity == ARCHES[arch].capability[0]
