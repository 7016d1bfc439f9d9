"""From a compiled CuTe DSL function to Python: linking, fake CUDA tensors, decoded launches, errors that come back."""

import dataclasses
import gc
import os
import struct
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import NamedTuple

import cutlass
import cutlass.experimental.cuda as experimental_cuda
import numpy as np
import pytest
import torch
import tvm_ffi
from cuda.bindings.driver import CUstream
from cutlass import cute
from cutlass.cute.nvgpu import cpasync
from cutlass.cute.runtime import find_runtime_libraries, make_fake_stream, make_fake_tensor

from quack.emulator.runtime import shim
from quack.emulator.runtime.device import DEVICES
from quack.emulator.runtime.entry import call
from quack.emulator.runtime.fake_cuda import MemoryRange, NotAHostTensor, as_cuda, present
from quack.emulator.runtime.intercept import Launch, LaunchRefused
from quack.emulator.runtime.linked import NotEmulatable, linked, load, ptx_of
from quack.emulator.runtime.options import compile_environment, compile_options
from quack.emulator.tensor_map import TensorMap

ROOT = Path(__file__).resolve().parents[3]
H200 = DEVICES["sm90"]
ENV_STREAM = make_fake_stream(use_tvm_ffi_env_stream=True)


# ---- functions to launch ----------------------------------------------------------------------------------------------


@cute.kernel
def scale_kernel(x: cute.Tensor, factor: cutlass.Float32):
    i = cute.arch.thread_idx()[0]
    x[i] = x[i] * factor


@cute.jit
def scale(x: cute.Tensor, factor: cutlass.Float32, blocks: cutlass.Int32, stream):
    scale_kernel(x, factor).launch(grid=(blocks, 1, 1), block=(32, 1, 1), stream=stream)


@cute.jit
def scale_with_attributes(x: cute.Tensor, stream):
    launcher = scale_kernel(x, cutlass.Float32(1))
    launcher.launch(
        grid=(4, 2, 3), block=(8, 4, 2), cluster=[2, 2, 1], smem=1 << 10, stream=stream, use_pdl=True, cooperative=True
    )


@cute.jit
def scale_preferring_clusters(x: cute.Tensor, stream):
    launcher = scale_kernel(x, cutlass.Float32(1))
    launcher.launch(grid=(4, 1, 1), block=(32, 1, 1), cluster=[4, 1, 1], fallback_cluster=[2, 1, 1], stream=stream)


@cute.jit
def scale_twice(x: cute.Tensor, factors: tuple[cutlass.Float32, cutlass.Float32], stream: CUstream):
    for factor in factors:
        scale_kernel(x, factor).launch(grid=(1, 1, 1), block=(32, 1, 1), stream=stream)


@cute.kernel
def prefetch_kernel(
    atom: cute.CopyAtom, tensor_map: cutlass.GridConstant[experimental_cuda.TensorMap], out: cute.Tensor
):
    """Uses both descriptors, so that both are parameters."""
    cpasync.prefetch_descriptor(atom)
    out[0] = tensor_map.get_ptr().toint()


@cute.jit
def describe(x: cute.Tensor, out: cute.Tensor, stream):
    """The same TMA descriptor twice: inline code of the DSL, and a call of cuTensorMapEncodeTiled."""
    swizzled = cute.make_composed_layout(cute.make_swizzle(2, 4, 3), 0, cute.make_layout((16, 32), stride=(32, 1)))
    atom, _ = cpasync.make_tiled_tma_atom(cpasync.CopyBulkTensorTileG2SOp(), x, swizzled, (16, 32))
    tensor_map = experimental_cuda.create_tensor_map_tiled(
        global_address=x.iterator.toint(),
        dtype=cutlass.BFloat16,
        global_dims=[x.shape[1], x.shape[0]],
        global_strides=[x.stride[0] * 2 // 16],
        box_dims=[32, 16],
        swizzle=experimental_cuda.TensorMapSwizzle.s64b,
        l2_promotion=experimental_cuda.TensorMapL2Promotion.l2_128b,
    )
    prefetch_kernel(atom, tensor_map, out).launch(grid=(1, 1, 1), block=(32, 1, 1), stream=stream)


def vector(dtype=cutlass.Float32):
    return make_fake_tensor(dtype, (cute.sym_int(),), (1,), assumed_align=4)


def compile_scale(options: str):
    return cute.compile(scale, vector(), cutlass.Float32(1), cutlass.Int32(1), ENV_STREAM, options=options)


@pytest.fixture(scope="module")
def scaling():
    return compile_scale(compile_options("sm90"))


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """One cache for this module; the shim is compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("cache")
        patch.setenv("QUACK_CACHE_DIR", str(directory))
        yield directory


def launches_of(compiled, *arguments, device=H200, **options) -> list[Launch]:
    found: list[Launch] = []
    call(compiled, arguments, found.append, device, **options)
    return found


# ---- launches ---------------------------------------------------------------------------------------------------------


def test_launch_is_decoded(scaling):
    x = torch.arange(64.0)
    (launch,) = launches_of(scaling, x, 2.5, 3)
    assert "scale_kernel" in launch.kernel and launch.kernel in linked(scaling).kernels
    assert (launch.grid, launch.block, launch.cluster) == ((3, 1, 1), (32, 1, 1), (1, 1, 1))
    assert launch.dynamic_smem == 0 and launch.preferred_cluster is None
    assert not launch.pdl and not launch.cooperative
    assert [len(p) for p in launch.params] == linked(scaling).parameter_sizes(launch.kernel)
    assert struct.unpack("<Q", launch.params[0][:8])[0] == x.data_ptr()
    assert struct.unpack("<f", launch.params[1])[0] == 2.5
    assert launch.memory == (MemoryRange(x.data_ptr(), 256),)


def test_handler_may_write_the_tensors(scaling):
    x = torch.zeros(4)

    def fill(launch: Launch) -> None:
        for address, size in launch.memory:
            np.ctypeslib.as_array((np.ctypeslib.ctypes.c_float * (size // 4)).from_address(address))[:] = 7

    call(scaling, (x, 1.0, 1), fill, H200)
    assert x.tolist() == [7.0] * 4


def test_launch_attributes():
    options = compile_options("sm90")
    (launch,) = launches_of(cute.compile(scale_with_attributes, vector(), ENV_STREAM, options=options), torch.zeros(4))
    assert (launch.grid, launch.block, launch.cluster) == ((4, 2, 3), (8, 4, 2), (2, 2, 1))
    assert launch.dynamic_smem == 1024 and launch.pdl and launch.cooperative
    compiled = cute.compile(scale_preferring_clusters, vector(), ENV_STREAM, options=compile_options("sm100"))
    (launch,) = launches_of(compiled, torch.zeros(4), device=DEVICES["sm100"])
    assert launch.cluster == (2, 1, 1) and launch.preferred_cluster == (4, 1, 1)


def test_two_launches_nested_arguments_and_an_explicit_stream():
    factors = (cutlass.Float32(1), cutlass.Float32(1))
    compiled = cute.compile(scale_twice, vector(), factors, make_fake_stream(), options=compile_options("sm90"))
    found = launches_of(compiled, torch.zeros(4), (2.0, np.float32(3)), CUstream(0))
    assert [struct.unpack("<f", launch.params[1])[0] for launch in found] == [2.0, 3.0]


def test_descriptor_of_the_driver_call_equals_the_inline_one():
    rows = make_fake_tensor(
        cutlass.BFloat16, (cute.sym_int(), cute.sym_int()), (cute.sym_int64(divisibility=8), 1), assumed_align=16
    )
    compiled = cute.compile(describe, rows, vector(cutlass.Int64), ENV_STREAM, options=compile_options("sm90"))
    x = torch.zeros(48, 80, dtype=torch.bfloat16)[:, :72]
    (launch,) = launches_of(compiled, x, torch.zeros(1, dtype=torch.int64))
    inline, encoded = (param for param in launch.params if len(param) == 128)
    assert struct.unpack_from("<Q", inline)[0] == x.data_ptr()
    assert TensorMap.decode(inline) == TensorMap.decode(encoded)
    assert TensorMap.decode(encoded).dims == (72, 48) and TensorMap.decode(encoded).strides == (160,)


def test_further_reachable_memory(scaling):
    x, y = torch.zeros(4), torch.zeros(8)
    (launch,) = launches_of(scaling, x, 1.0, 1, reachable=[y, (y[2:4],)])
    spans = [(x.data_ptr(), 16), (y.data_ptr(), 32), (y.data_ptr() + 8, 8)]
    assert list(launch.memory) == spans


@pytest.mark.parametrize(("blocks", "fault"), [(0, "no extent may be 0")])
def test_illegal_launch_is_refused(scaling, blocks, fault):
    with pytest.raises(LaunchRefused, match=fault):
        launches_of(scaling, torch.zeros(4), 1.0, blocks)


def test_shared_memory_limit_of_the_device(scaling):
    compiled = cute.compile(scale_with_attributes, vector(), ENV_STREAM, options=compile_options("sm90"))
    small = dataclasses.replace(H200, smem_per_block=1000)
    with pytest.raises(LaunchRefused, match="1024 bytes of dynamic shared memory exceed 1000"):
        launches_of(compiled, torch.zeros(4), device=small)


# ---- errors -----------------------------------------------------------------------------------------------------------


class Stop(BaseException):
    """Not an Exception, like KeyboardInterrupt."""


@pytest.mark.parametrize("kind", [ValueError, Stop])
def test_exception_of_the_handler_comes_back_itself(scaling, kind):
    raised = kind("from the handler")

    def fail(launch: Launch) -> None:
        raise raised from KeyError("its cause")

    with pytest.raises(kind) as caught:
        call(scaling, (torch.zeros(4), 1.0, 1), fail, H200)
    assert caught.value is raised and isinstance(raised.__cause__, KeyError)
    assert len(launches_of(scaling, torch.zeros(4), 1.0, 1)) == 1  # and leaves nothing behind


def test_errors_of_tvm_ffi_stay(scaling):
    with pytest.raises(TypeError, match="Expects 3 parameters"):
        launches_of(scaling, torch.zeros(4))


def test_call_without_a_handler_is_an_error(scaling):
    tensor, _ = as_cuda(torch.zeros(4))
    function = load(*_exported(scaling), ptx_of(scaling)).function
    with pytest.raises(RuntimeError, match="outside an emulated call"):
        function(tensor, 1.0, 1)


def _exported(compiled) -> tuple[Path, str]:
    path = shim.cache_dir() / "exported.o"
    compiled.export_to_c(str(path), function_name="scale", export_only_tvm_ffi_symbols=True)
    return path, "scale"


def test_threads_have_handlers_of_their_own(scaling):
    seen: dict[int, set[int]] = {}

    def work(number: int) -> None:
        tensor, values = torch.zeros(4), seen.setdefault(number, set())
        for _ in range(50):
            call(scaling, (tensor, 1.0, number), lambda launch: values.add(launch.grid.x), H200)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {n: {n} for n in range(1, 5)}


def test_functions_that_cannot_be_emulated_say_why(tmp_path):
    with pytest.raises(NotEmulatable, match="--keep-ptx --dump-dir"):
        linked(compile_scale("--enable-tvm-ffi --gpu-arch sm_90a"))
    missing = tmp_path / "absent"
    with pytest.raises(NotEmulatable, match="--dump-dir must name an existing directory"):
        linked(compile_scale(f"--enable-tvm-ffi --gpu-arch sm_90a --keep-ptx --dump-dir={missing}"))
    with pytest.raises(NotEmulatable, match="compile it with `--enable-tvm-ffi`"):
        linked(compile_scale(f"--gpu-arch sm_90a --keep-ptx --dump-dir={tmp_path}"))
    with pytest.raises(NotEmulatable, match="loaded from an object file"):
        linked(tvm_ffi.convert(lambda: None))


# ---- linking ----------------------------------------------------------------------------------------------------------


def test_function_is_linked_once_and_forgotten_with_it(scaling):
    assert linked(scaling) is linked(scaling) and linked(linked(scaling)) is linked(scaling)
    compiled = compile_scale(compile_options("sm90"))
    alive = weakref.ref(linked(compiled))
    assert alive() is not linked(scaling)
    del compiled
    gc.collect()
    assert alive() is None


def test_nvidias_library_in_the_process_does_not_interfere(scaling):
    """A function for the architecture of this machine is bound to it at once, and loads it for the whole process."""
    engine = compile_scale("--enable-tvm-ffi")
    assert len(launches_of(scaling, torch.zeros(4), 1.0, 1)) == 1
    with pytest.raises(ValueError, match="cuda"):
        engine(torch.zeros(4), 1.0, 1)


def test_object_file_is_loaded_without_cute_dsl(scaling, tmp_path):
    path, name = _exported(scaling)
    (tmp_path / "scale.ptx").write_text(ptx_of(scaling))
    script = f"""
import sys, numpy as np
from pathlib import Path
from quack.emulator.runtime.device import DEVICES
from quack.emulator.runtime.entry import call
from quack.emulator.runtime.linked import load
function = load({str(path)!r}, {name!r}, Path({str(tmp_path / "scale.ptx")!r}).read_text())
call(function, (np.zeros(4, np.float32), 1.0, 5), lambda launch: print(*launch.grid), DEVICES["sm90"])
assert not {{"cutlass", "torch"}} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "5 1 1\n", done.stderr


def test_environment_makes_plain_compiles_emulatable(tmp_path):
    (tmp_path / "program.py").write_text("""
import cutlass, torch
from cutlass import cute
from cutlass.cute.runtime import make_fake_tensor
from quack.emulator.runtime.device import DEVICES
from quack.emulator.runtime.entry import call
@cute.kernel
def kernel(x: cute.Tensor):
    x[0] = cutlass.Float32(1)
@cute.jit
def host(x: cute.Tensor):
    kernel(x).launch(grid=(1, 1, 1), block=(32, 1, 1))
compiled = cute.compile(host, make_fake_tensor(cutlass.Float32, (4,), (1,)))
call(compiled, (torch.zeros(4),), lambda launch: print(*launch.block), DEVICES["sm120"])
assert ".target sm_120a" in compiled.__ptx__
""")
    environment = {**os.environ, **compile_environment("sm120"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "32 1 1\n", done.stderr


def test_unknown_symbol_of_a_future_release(tmp_path):
    with pytest.raises(shim.EmulatorUnavailable, match="_cudaNovelty"):
        shim.link(compiled_c(tmp_path, "int _cudaNovelty(void); int __tvm_ffi_f(void) { return _cudaNovelty(); }"))


def compiled_c(directory: Path, source: str) -> Path:
    (directory / "f.c").write_text(source)
    subprocess.run([*shim.compiler(), "-c", "-fPIC", "-w", "f.c", "-o", "f.o"], cwd=directory, check=True)
    return directory / "f.o"


# Calls an entry point and raises its error as generated host code does.
C_CALL = """
int {name}(); void CuteDSLRT_TVMFFISetRaisedCudaError(void *, int); void TVMFFIErrorSetRaisedFromCStrParts();
int __tvm_ffi_f(void *self, void *arguments, int count, void *result) {{
  int value, error = {name}({arguments});
  if (!error) return 0;
  CuteDSLRT_TVMFFISetRaisedCudaError(TVMFFIErrorSetRaisedFromCStrParts, error);
  return -1;
}}
"""


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("_cudaMalloc", "&value, 16L", "does not implement cudaMalloc"),
        ("_cudaGraphLaunch", "0, 0", "does not implement cudaGraphLaunch"),
        ("_cudaSetDevice", "1", "has one device"),
        ("_cudaDeviceGetAttribute", "&value, 4711, 0", r"cudaDeviceGetAttribute\(4711\) is not known"),
        ("_cuKernelGetAttribute", "&value, 4, 0, 0", r"cuKernelGetAttribute\(4\) is not emulated"),
        ("_cudaDeviceGetAttribute", "&value, 97, 0) || value != 232448 || _cudaGetDevice(&value", None),
    ],
)
def test_entry_points(tmp_path, name, arguments, message):
    function = load(compiled_c(tmp_path, C_CALL.format(name=name, arguments=arguments)), "f", "")
    if message is None:
        call(function, (), pytest.fail, H200)
        return
    with pytest.raises(RuntimeError, match=message):
        call(function, (), pytest.fail, H200)


def symbols(path: str, *options: str) -> set[str]:
    lines = subprocess.run(["nm", *options, "--defined-only", path], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].split("@")[0] for line in lines.splitlines() if " T " in line}


def test_every_entry_point_of_the_real_library_exists():
    """A new release of CuTe DSL may bring more: then add them to shim.c."""
    (runtime,) = find_runtime_libraries(enable_tvm_ffi=False)
    prefixes = ("_cu", "cuda_dialect_", "CuteDSLRT_TVMFFI")
    expected = {s for s in symbols(runtime, "-D") if s.startswith(prefixes)}
    assert len(expected) > 50 and not expected - symbols(str(shim.shim_object()))


# ---- the compiler -----------------------------------------------------------------------------------------------------


def test_shim_is_compiled_once_for_each_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("QUACK_CACHE_DIR", str(tmp_path))
    first = shim.shim_object()
    stamp = first.stat().st_mtime_ns
    assert shim.shim_object() == first and first.stat().st_mtime_ns == stamp
    monkeypatch.setenv("CC", " ".join([*shim.compiler(), "-g"]))
    assert shim.shim_object() != first
    assert sorted(p.suffix for p in (tmp_path / "emulator").iterdir()) == [".o", ".o"]


def test_missing_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    with pytest.raises(shim.EmulatorUnavailable, match="'no-such-compiler', which is not on the path"):
        shim.shim_object()
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(shim.EmulatorUnavailable, match="install gcc or clang"):
        shim.shim_object()


def test_failing_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("QUACK_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CC", " ".join([*shim.compiler(), "--no-such-option"]))
    with pytest.raises(shim.EmulatorUnavailable, match="no-such-option"):
        shim.shim_object()
    assert not list((tmp_path / "emulator").iterdir())


# ---- tensors ----------------------------------------------------------------------------------------------------------

TORCH_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.float4_e2m1fn_x2),
)


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_every_dtype_becomes_cuda(dtype):
    source = torch.empty(6, 10, 16, dtype=torch.uint8).view(dtype)[1:4, ::2]
    fake, span = as_cuda(source)
    assert str(fake.device) == "cuda:0" and fake.dtype == tvm_ffi.from_dlpack(source).dtype
    assert tuple(fake.shape) == tuple(source.shape) and tuple(fake.strides) == source.stride()
    last = source.storage_offset() + sum((n - 1) * s for n, s in zip(source.shape, source.stride())) + 1
    begin = source.data_ptr()
    assert span == (begin, last * source.element_size() - source.storage_offset() * source.element_size())


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2)])
def test_small_shapes(shape):
    source = torch.zeros(shape)
    fake, span = as_cuda(source)
    assert tuple(fake.shape) == shape
    assert span == (source.data_ptr(), 4 * source.numel())


def test_negative_and_zero_strides():
    base = np.arange(12, dtype=np.int32).reshape(3, 4)
    fake, span = as_cuda(base[::-1, ::-1])
    assert tuple(fake.strides) == (-4, -1) and span == (base.ctypes.data, 48)
    expanded = torch.zeros(4).expand(5, 4)
    assert as_cuda(expanded)[1] == (expanded.data_ptr(), 16)


class OnlyArrayInterface:
    """Not even DLPack."""

    def __init__(self) -> None:
        self.array = np.arange(6.0)
        self.__array_interface__ = self.array.__array_interface__


def test_other_exporters():
    source = OnlyArrayInterface()
    assert as_cuda(source)[1] == (source.array.ctypes.data, 48)
    assert as_cuda(tvm_ffi.from_dlpack(source.array))[1] == (source.array.ctypes.data, 48)
    needs_grad = torch.zeros(3, requires_grad=True)
    assert as_cuda(needs_grad)[1] == (needs_grad.data_ptr(), 12)


def test_what_is_not_host_memory():
    fake, _ = as_cuda(torch.zeros(3))
    with pytest.raises(NotAHostTensor, match=r"tvm_ffi\S* is on another device"):
        as_cuda(fake)
    with pytest.raises(NotAHostTensor, match="cannot be shared"):
        as_cuda(torch.zeros(3, device="meta"))


def test_source_lives_as_long_as_the_fake():
    source = np.zeros(3)
    alive = weakref.ref(source)
    fake, _ = as_cuda(source)
    del source
    gc.collect()
    assert alive() is not None
    del fake
    gc.collect()
    assert alive() is None


class Pair(NamedTuple):
    left: object
    right: object


@dataclasses.dataclass
class Bundle:
    tensor: object
    scale: float


def test_nested_arguments():
    memory: list[MemoryRange] = []
    x = torch.zeros(2)
    number, nothing, pair, bundle = present([np.int64(3), None, Pair(x, "text"), Bundle(x, 2.0)], memory)
    assert number == 3 and type(number) is int and nothing is None
    assert pair[1] == "text" and bundle[1] == 2.0
    assert all(isinstance(t, tvm_ffi.Tensor) for t in (pair[0], bundle[0]))
    assert memory == [(x.data_ptr(), 8)] * 2
