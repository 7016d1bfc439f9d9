"""The object cache: one build per key, atomic, no lock held across keys."""

import multiprocessing
import time
from pathlib import Path

import pytest

from quack.runtime import cache


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("QUACK_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_directory_from_the_environment(monkeypatch, tmp_path):
    assert cache.cache_dir() == tmp_path
    monkeypatch.delenv("QUACK_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache.cache_dir() == Path("/xdg/quack")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_dir() == Path.home() / ".cache" / "quack"


def test_second_call_finds_the_entry():
    builds = []

    def build(path: Path) -> None:
        builds.append(path)
        path.write_bytes(b"object")

    first = cache.get_or_build("ab12", ".o", build)
    assert cache.get_or_build("ab12", ".o", build) == first
    assert first.read_bytes() == b"object" and len(builds) == 1


def test_failed_build_leaves_nothing(directory):
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        cache.get_or_build("ab12", ".o", fail)
    assert [p.name for p in directory.rglob("*") if p.is_file()] == ["ab12.lock"]
    assert cache.get_or_build("ab12", ".o", lambda path: path.write_bytes(b"good")).read_bytes() == b"good"


def _slow_build(key: str, log: str, seconds: float) -> None:
    def build(path: Path) -> None:
        with open(log, "a") as out:
            out.write(f"{key}\n")
        time.sleep(seconds)
        path.write_bytes(key.encode())

    assert cache.get_or_build(key, ".o", build).read_bytes() == key.encode()


def _run(processes: list[multiprocessing.process.BaseProcess]) -> float:
    start = time.monotonic()
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return time.monotonic() - start


def test_processes_build_a_key_once(directory):
    context, log = multiprocessing.get_context("fork"), str(directory / "log")
    _run([context.Process(target=_slow_build, args=("cd34", log, 0.3)) for _ in range(4)])
    assert Path(log).read_text() == "cd34\n"


def test_different_keys_do_not_wait_for_each_other(directory):
    context, log = multiprocessing.get_context("fork"), str(directory / "log")
    seconds = _run([context.Process(target=_slow_build, args=(f"ef{i}", log, 1.0)) for i in range(4)])
    assert seconds < 3.0
