"""From `GemmSpec` to a callable: compile in a worker process, keep the object file, load it.

The only module above the kernels that touches CuTe DSL, and only inside functions, so importing it costs nothing.
Compilation runs in one long-lived worker process: two compiles in threads of one process abort it (CuTe DSL 4.8.1), and
the worker needs no GPU. Classes and functions of users exist in this process only, and are compiled here.
"""

import atexit
import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import unittest.mock
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Optional, TypeGuard, Union

from ..arch import ARCHES
from ..block_scales import BLOCK_WORDS
from ..gemm_config import Dtype, OperandSpec, OperandSpecs
from ..gemm_port import ArgumentKind, PortKind, PortSource, PortSpec, argument_ports
from ..grouped_table import LINE_WORDS
from .cache import get_or_build
from .kernel_spec import KernelSpec, Number, TensorSpec
from .spec import GemmSpec, is_user_code
from .user_code import user_class, user_modules

FUNCTION_NAME = "quack_gemm"
EMULATED_SUFFIX, OBJECT_MEMBER, PTX_MEMBER = ".emulated.zip", "function.o", "kernels.ptx"
DSL_PACKAGES = ("nvidia-cutlass-dsl", "nvidia-cutlass-dsl-libs-cu12", "nvidia-cutlass-dsl-libs-cu13", "apache-tvm-ffi")
PACKAGE_ROOT = Path(__file__).resolve().parents[1]

Spec = Union[GemmSpec, KernelSpec]


def resolve(name: str) -> Any:
    """The object that "module:qualname" names, or a user's class."""
    if is_user_code(name):
        return user_class(name)
    module, _, qualname = name.partition(":")
    return functools.reduce(getattr, qualname.split("."), importlib.import_module(module))


# ---- tracing (worker process, or this one) ----------------------------------------------------------------------------


def trace(spec: Spec, extra_options: str = "") -> Any:
    """Compile `spec` with CuTe DSL in this process; not thread-safe."""
    options = f"--enable-tvm-ffi {extra_options} --gpu-arch"
    if isinstance(spec, KernelSpec):
        return _trace_kernel(spec, f"{options} {spec.arch}")
    return _trace_gemm(spec, f"{options} {spec.target or spec.arch}")


def _trace_kernel(spec: KernelSpec, options: str) -> Any:
    from cutlass import cute
    from cutlass.cute import runtime as cute_runtime

    stream = cute_runtime.make_fake_stream(use_tvm_ffi_env_stream=True)
    kernel = resolve(spec.kernel)(*spec.statics)
    return cute.compile(kernel, *map(_fake_kernel_argument, spec.arguments), stream, options=options)


def _trace_gemm(spec: GemmSpec, options: str) -> Any:
    import cutlass
    from cutlass import cute
    from cutlass.cute import runtime as cute_runtime

    from ..compose import combining, compose, permuted, pieces, split

    mixins = [resolve(op.mixin) for op in spec.epilogue]
    adapter = resolve(spec.adapter)
    if spec.is_permuted:
        adapter = permuted(adapter)
    plan = resolve(spec.plan)
    if spec.combine is not None:
        combine = resolve(spec.combine)
        adapter = split(adapter, combine) if spec.pieces_of is None else pieces(adapter, spec.pieces_of)
        plan = combining(combine, plan)
    kernel_class = compose(resolve(ARCHES[spec.arch].execution.kernel_of(spec.operands)), adapter, plan, *mixins)
    kernel = kernel_class(spec.operands, spec.config, spec.epilogue, spec.fast_accum, spec.cancels)
    counter = None
    if spec.config.is_dynamic_persistent and not spec.cancels:
        counter = cute_runtime.make_fake_tensor(cutlass.Int32, (1,), (1,), assumed_align=4)
    ports = tuple(_fake_port(port) for port in argument_ports(spec.epilogue))
    operands = spec.operands
    scales = (_fake_scales(), _fake_scales()) if operands.is_scaled else ()
    arguments = (*scales, *(_fake_argument(kind) for kind in adapter.arguments.values()))
    return cute.compile(
        kernel,
        _fake_operand(operands.a),
        _fake_operand(operands.b),
        _fake_operand(operands.c) if operands.c is not None else None,
        _fake_operand(operands.d),
        arguments or None,
        ports or None,
        counter,
        cutlass.Int32(1),
        cute_runtime.make_fake_stream(use_tvm_ffi_env_stream=True),
        options=options,
    )


def _fake_kernel_argument(argument: Union[TensorSpec, Number]) -> Any:
    import cutlass
    from cutlass import cute
    from cutlass.cute import runtime as cute_runtime

    from ..cute_dtype import CUTE_DTYPE

    if isinstance(argument, Number):
        return cutlass.Int32(1) if argument is Number.INT32 else cutlass.Float32(1.0)
    divisibility = max(1, argument.align // argument.dtype.bytes)
    strides: list[Any] = [cute.sym_int64(divisibility=divisibility) for _ in range(argument.ndim)]
    if argument.is_contiguous:
        strides[-1] = 1
    shape = tuple(cute.sym_int() for _ in range(argument.ndim))
    return cute_runtime.make_fake_tensor(
        CUTE_DTYPE[argument.dtype], shape, tuple(strides), assumed_align=argument.align
    )


def _fake_operand(operand: OperandSpec) -> Any:
    import cutlass
    from cutlass import cute
    from cutlass.cute import runtime as cute_runtime

    from ..cute_dtype import CUTE_DTYPE

    # Smaller elements come as the bytes that hold them.
    dtype, size = (cutlass.Uint8, 1) if operand.dtype.is_packed else (CUTE_DTYPE[operand.dtype], operand.dtype.bytes)
    divisibility = max(1, operand.align // size)
    strides: list[Any] = [cute.sym_int64(divisibility=divisibility) for _ in range(operand.ndim)]
    strides[operand.unit_stride_dim] = 1
    shape = tuple(cute.sym_int() for _ in range(operand.ndim))
    return cute_runtime.make_fake_tensor(dtype, shape, tuple(strides), assumed_align=max(operand.align, size))


def _fake_scales() -> Any:
    """Words as `block_scales` has them: (L, row blocks, words)."""
    import cutlass
    from cutlass import cute
    from cutlass.cute import runtime as cute_runtime

    strides = (cute.sym_int64(divisibility=BLOCK_WORDS), cute.sym_int64(divisibility=BLOCK_WORDS), 1)
    shape = tuple(cute.sym_int() for _ in range(3))
    return cute_runtime.make_fake_tensor(cutlass.Int64, shape, strides, assumed_align=16)


def _fake_argument(kind: ArgumentKind) -> Any:
    import cutlass
    from cutlass import cute
    from cutlass.cute import runtime as cute_runtime

    if kind is ArgumentKind.INT32:
        return cutlass.Int32(1)
    if kind is ArgumentKind.INT64_ROWS:
        shape, stride = (cute.sym_int(), cute.sym_int()), (cute.sym_int64(divisibility=LINE_WORDS), 1)
        return cute_runtime.make_fake_tensor(cutlass.Int64, shape, stride, assumed_align=8 * LINE_WORDS)
    if kind is ArgumentKind.FP32_VECTOR:
        return cute_runtime.make_fake_tensor(cutlass.Float32, (cute.sym_int(),), (1,), assumed_align=16)
    return cute_runtime.make_fake_tensor(cutlass.Int32, (cute.sym_int(),), (1,), assumed_align=4)


def _fake_port(port: PortSpec) -> Any:
    import cutlass
    from cutlass import cute
    from cutlass.cute import runtime as cute_runtime

    from ..cute_dtype import CUTE_DTYPE

    if port.layout is not None:
        return _fake_operand(port.layout)
    if port.source is PortSource.HOST:
        return cutlass.Int32(1) if port.kind is PortKind.INTEGER else cutlass.Float32(1.0)
    assert port.dtype is not None
    shape = tuple(cute.sym_int() for _ in range(port.ndim))
    strides = (*(cute.sym_int64() for _ in range(port.ndim - 1)), 1)
    return cute_runtime.make_fake_tensor(CUTE_DTYPE[port.dtype], shape, strides, assumed_align=port.dtype.bytes)


def write_entry(spec: Spec, path: str, extra_options: str = "") -> None:
    """Compile `spec` and write its cache entry: the relocatable object (host stub with the cubin inside).

    A path that ends in EMULATED_SUFFIX becomes a zip file of the object and the PTX.
    """
    if not path.endswith(EMULATED_SUFFIX):
        _export(trace(spec, extra_options), path)
        return
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(path, "w") as archive:
        compiled = trace(spec, f"--keep-ptx --dump-dir={scratch} {extra_options}")
        _export(compiled, f"{scratch}/{OBJECT_MEMBER}")
        archive.write(f"{scratch}/{OBJECT_MEMBER}", OBJECT_MEMBER)
        archive.writestr(PTX_MEMBER, compiled.__ptx__)


def _export(compiled: Any, path: str) -> None:
    compiled.export_to_c(path, function_name=FUNCTION_NAME, export_only_tvm_ffi_symbols=True)


def load_object(path: Path) -> Callable[..., None]:
    """The TVM-FFI function in an object file."""
    from cutlass import cute

    return getattr(cute.runtime.load_module(str(path), enable_tvm_ffi=True), FUNCTION_NAME)


# ---- cache key --------------------------------------------------------------------------------------------------------


@functools.cache
def toolchain() -> str:
    """Versions of everything that turns a spec into an object."""

    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "-"

    return " ".join(f"{p}={version(p)}" for p in DSL_PACKAGES)


@functools.cache
def source_hash(roots: tuple[str, ...]) -> str:
    """Hash of the files of these modules and of all quack modules they import, directly or not."""
    hashes, pending, seen = hashlib.sha256(), list(roots), set()
    while pending:
        module = pending.pop()
        path = _module_file(module)
        if module in seen or path is None:
            continue
        seen.add(module)
        text = path.read_text()
        pending += _quack_imports(module, path, text)
    for module in sorted(seen):
        path = _module_file(module)
        assert path is not None
        hashes.update(module.encode() + path.read_bytes())
    return hashes.hexdigest()


def _module_file(module: str) -> Optional[Path]:
    if module.partition(".")[0] != "quack":
        loaded = sys.modules.get(module) or importlib.import_module(module)
        return Path(loaded.__file__) if loaded.__file__ else None
    base = PACKAGE_ROOT.joinpath(*module.split(".")[1:])
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


def _quack_imports(module: str, path: Path, text: str) -> list[str]:
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = re.findall(r"^from quack\.([\w.]+) import", text, re.M)
    absolute = [f"quack.{name}" for name in found]
    for dots, name in re.findall(r"^from (\.+)([\w.]*) import", text, re.M):
        base = package[: len(package) - (len(dots) - 1)]
        absolute.append(".".join([*base, name] if name else base))
    return absolute if module.partition(".")[0] == "quack" or found else []


def cache_key(spec: Spec) -> str:
    """Identity of the object: spec, toolchain, and the sources that this kernel imports."""
    roots = (spec.kernel.partition(":")[0],) if isinstance(spec, KernelSpec) else _gemm_roots(spec)
    text = f"{spec!r} {toolchain()} {source_hash(roots)}"
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _gemm_roots(spec: GemmSpec) -> tuple[str, ...]:
    """The modules that a GEMM kernel begins with."""
    names = (
        ARCHES[spec.arch].execution.kernel_of(spec.operands), spec.adapter, spec.plan, *(op.mixin for op in spec.epilogue)
    )  # fmt: skip
    modules = {name.partition(":")[0] for name in names if not is_user_code(name)}
    modules.update(*(user_modules(name) for name in names if is_user_code(name)))
    return ("quack.compose", *sorted(modules))


# ---- worker -----------------------------------------------------------------------------------------------------------


class CompileError(RuntimeError):
    """CuTe DSL or ptxas failed on a spec that `legality` admits: a bug in quack, or in a user's class."""


class _Worker:
    """A process that compiles one spec at a time. Frames are length-prefixed pickles: (spec, path) -> error or None."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: Optional[subprocess.Popen[bytes]] = None

    def start(self) -> subprocess.Popen[bytes]:
        if self.process is None or self.process.poll() is not None:
            env = dict(os.environ, CUDA_VISIBLE_DEVICES="")
            env["PYTHONPATH"] = os.pathsep.join([str(PACKAGE_ROOT.parent), *sys.path])
            self.process = subprocess.Popen(
                [sys.executable, "-m", "quack.runtime.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
            )
        return self.process

    def compile(self, spec: Spec, path: Path) -> None:
        with self.lock:
            process = self.start()
            assert process.stdin is not None and process.stdout is not None
            try:
                pickle.dump((spec, str(path)), process.stdin)
                process.stdin.flush()
                error = pickle.load(process.stdout)
            except (EOFError, BrokenPipeError) as exc:
                raise CompileError(f"the compile worker died on {spec}") from exc
        if error is not None:
            raise CompileError(f"could not compile {spec}:\n{error}")

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


_worker = _Worker()
_in_process = threading.Lock()
atexit.register(_worker.stop)


def _needs_this_process(spec: Spec) -> TypeGuard[GemmSpec]:
    return isinstance(spec, GemmSpec) and any(
        is_user_code(name) for name in (spec.plan, *(op.mixin for op in spec.epilogue))
    )


def compiled_function(spec: Spec) -> Callable[..., None]:
    """Load `spec` from the disk cache, compiling it first if no process has done so."""

    def build(path: Path) -> None:
        # Loading needs CuTe DSL in this process too (1.4 s, once): import it while the worker compiles.
        loader = threading.Thread(target=importlib.import_module, args=("cutlass.cute",), daemon=True)
        loader.start()
        _build(spec, path)
        loader.join()

    return load_object(get_or_build(cache_key(spec), ".o", build))


def emulated_entry(spec: Spec) -> tuple[Path, str, str]:
    """(object file, function name, PTX of its kernels) of `spec`, compiled if no process has done so."""
    archive_path = get_or_build(cache_key(spec), EMULATED_SUFFIX, functools.partial(_build, spec))
    folder = Path(tempfile.mkdtemp(prefix="quack-emulated-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with zipfile.ZipFile(archive_path) as archive:
        return Path(archive.extract(OBJECT_MEMBER, folder)), FUNCTION_NAME, archive.read(PTX_MEMBER).decode()


def _build(spec: Spec, path: Path) -> None:
    if _needs_this_process(spec):
        _build_user_code(spec, path)
    else:
        _worker.compile(spec, path)


def _build_user_code(spec: GemmSpec, path: Path) -> None:
    """In this process. `legality` cannot know what a user's class holds in registers, so say what ptxas found."""
    with tempfile.TemporaryDirectory() as scratch, _in_process:
        remarks = Path(scratch) / "remarks.yaml"
        try:
            write_entry(spec, str(path), _remark_options(remarks))
        except Exception as exc:
            raise CompileError(f"an epilogue or commit policy of yours does not compile: {exc}\nin {spec}") from exc
        spilled = _spilled_bytes(remarks.read_text())
    if spilled:
        names = ", ".join(name for name in (*(op.mixin for op in spec.epilogue), spec.plan) if is_user_code(name))
        warnings.warn(
            f"{names} spills {spilled} bytes of registers with {spec.config}, which is slow: hold less in the state, or pin a "
            "smaller tile_n with quack.gemm_tuned.fn(..., config=quack.GemmConfig(...))",
            RuntimeWarning,
            stacklevel=2,
        )


def _remark_options(path: Path) -> str:
    return f"--remark-filter .* --remark-output {path}"


def _spilled_bytes(remarks: str) -> int:
    return sum(int(n) for n in re.findall(r"(\d+) bytes spill", remarks))


# ---- cross-compilation facts ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _without_locations() -> Iterator[None]:
    """ptxas' remarks make CuTe DSL 4.8.1 look up the source line of every operation, which nobody reads here: 37 % of a trace
    and compile. Not for user code, whose errors are reported by line."""
    import cutlass.base_dsl.dsl as dsl

    switch = "_set_enable_frame_filtering"  # private: where it has gone, facts only take longer
    enable = getattr(dsl, switch, lambda enabled: None)
    with unittest.mock.patch.object(dsl, switch, lambda enabled: enable(False), create=True):
        yield


def kernel_facts(spec: Spec) -> dict[str, Any]:
    """Compile for `spec.arch` without a GPU and report what the ledger keeps; in this process."""
    execution = ARCHES[spec.arch].execution
    with tempfile.TemporaryDirectory() as scratch, _in_process, _without_locations():
        remarks = Path(scratch) / "remarks.yaml"
        start = time.perf_counter()
        compiled = trace(spec, f"--keep-ptx --dump-dir={scratch} {_remark_options(remarks)}")
        seconds = time.perf_counter() - start
        ptx = compiled.__ptx__
        report = remarks.read_text()
    used = re.findall(r"Used (\d+) registers", report)
    allocated = re.findall(r"Shared memory allocated: (\d+) bytes", report)
    assert used, report
    return {
        "registers": max(map(int, used)),  # of the larger kernel, if there are two
        "wgmma_serialized": report.count("wgmma.mma_async instructions are serialized"),
        "spill_bytes": _spilled_bytes(report),
        "smem_bytes": max(map(int, allocated), default=0),
        execution.mma: len(re.findall(rf"\b{re.escape(execution.mnemonic)}\.", ptx)),
        "tma_load": len(re.findall(r"cp\.async\.bulk\.tensor\.\dd\.shared", ptx)),
        "tma_store": len(re.findall(r"cp\.async\.bulk\.tensor\.\dd\.global", ptx)),
        "compile_s": round(seconds, 2),
    }


def example_spec(arch: str = "sm_90a") -> GemmSpec:
    """bf16 A (M, K) x W.T with W (N, K): the commonest call."""
    from ..gemm_config import GemmConfig, Major

    def operand(transposed: bool) -> OperandSpec:
        return OperandSpec(Dtype.BF16, 2, transposed, Major.INNER)

    operands = OperandSpecs(operand(False), operand(True), operand(False))
    return GemmSpec(arch, operands, GemmConfig()).configured(GemmConfig(128, 128, cluster_m=1))
