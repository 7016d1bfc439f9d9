"""How a function must be compiled to be emulated: as options of `cute.compile` or as environment variables."""

import atexit
import functools
import shutil
import tempfile

ARCHITECTURES = {"sm90": "sm_90a", "sm100": "sm_100a", "sm120": "sm_120a"}


@functools.cache
def _dump_dir() -> str:
    """CuTe DSL writes the PTX there and reads it back at once."""
    path = tempfile.mkdtemp(prefix="quack-ptx-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def compile_options(arch: str) -> str:
    """For `cute.compile(function, ..., options=compile_options("sm100"))`."""
    return f"--enable-tvm-ffi --gpu-arch {ARCHITECTURES[arch]} --keep-ptx --dump-dir={_dump_dir()}"


def compile_environment(arch: str) -> dict[str, str]:
    """The same for a program that passes no options; CuTe DSL reads these variables when it is imported."""
    return {
        "CUTE_DSL_ENABLE_TVM_FFI": "1",
        "CUTE_DSL_ARCH": ARCHITECTURES[arch],
        "CUTE_DSL_KEEP": "ptx",
        "CUTE_DSL_DUMP_DIR": _dump_dir(),
    }
