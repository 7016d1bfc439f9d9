"""Object files on disk, shared by processes: one file per key, written atomically under a lock of its own.

Knows nothing of GEMM: a key is a string, an entry is whatever `build(path)` writes.
"""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


def cache_dir() -> Path:
    """`QUACK_CACHE_DIR`, else `$XDG_CACHE_HOME/quack`, else `~/.cache/quack`."""
    if explicit := os.environ.get("QUACK_CACHE_DIR"):
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "quack"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Exclusive between processes; the kernel drops it if the holder dies."""
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def get_or_build(key: str, suffix: str, build: Callable[[Path], None]) -> Path:
    """Path of the entry for `key`, built by the first process that asks; the others wait for it."""
    directory = cache_dir() / key[:2]
    entry = directory / f"{key}{suffix}"
    if entry.exists():
        return entry
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory / f"{key}.lock"):
        if not entry.exists():
            with tempfile.TemporaryDirectory(dir=directory, prefix=".build-") as scratch:
                partial = Path(scratch) / entry.name
                build(partial)
                os.replace(partial, entry)
    return entry
