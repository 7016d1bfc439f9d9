"""Runs a compiled function with its kernels emulated."""

import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from . import checks, isa  # noqa: F401  (isa fills the opcode table)
from .asynchrony import Schedule
from .errors import EmulationError
from .fan_out import fan_out
from .geometry import Dim3, LaunchShape
from .machine import Machine
from .memory import GlobalMemory
from .observer import Observer
from .program import Program
from .runtime.device import DEVICES, DeviceProperties
from .runtime.entry import call
from .runtime.intercept import Launch
from .runtime.linked import LinkedFunction, linked
from .settings import Settings, current


@dataclass
class KernelRun:
    """One emulated launch. instructions: warp instructions executed; seconds: of host time."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int]
    instructions: int
    seconds: float


@dataclass
class Report:
    """What one call of a compiled function ran."""

    arch: str
    kernels: list[KernelRun] = field(default_factory=list)

    @property
    def instructions(self) -> int:
        return sum(k.instructions for k in self.kernels)


_programs: "weakref.WeakKeyDictionary[LinkedFunction, dict[str, Program]]" = weakref.WeakKeyDictionary()


def launch(
    compiled: Any,
    *arguments: Any,
    reachable: Sequence[Any] = (),
    schedule: Optional[str] = None,
    checks: Optional[Sequence[str]] = None,
    sms: Optional[int] = None,
    observers: Sequence[Observer] = (),
) -> Report:
    """Call a TVM-FFI-compiled CuTe DSL function on host tensors; its kernels run emulated and write into these tensors.

    compiled: what `cute.compile(..., options="--enable-tvm-ffi --keep-ptx --dump-dir=DIR")` returned, for sm_90a, sm_100a
    or sm_120a (`quack.emulator.compile_options` gives these options); it may have been compiled before this module was
    imported. arguments: as on a GPU, with CPU tensors (anything with `__dlpack__`) in place of CUDA tensors; the stream
    comes from the TVM-FFI environment and is not among them. reachable: further tensors whose memory the kernels may
    touch because pointers to them are stored in memory. The others: as in `use`, whose settings hold by default.

    Raises EmulationError: IllegalAccess for memory outside the tensors, Deadlock, CheckFailed, UnknownInstruction, Misuse.
    """
    settings = current()
    if schedule is not None or checks is not None or sms is not None or observers:
        settings = Settings(
            settings.arch,
            Schedule.parse(schedule) if schedule is not None else settings.schedule,
            tuple(checks) if checks is not None else settings.checks,
            sms if sms is not None else settings.sms,
            (*settings.observers, *observers),
        )
    function = linked(compiled)
    arch = architecture(function)
    report = Report(arch)
    device = settings.device(arch)

    def handle(kernel_launch: Launch) -> None:
        report.kernels.append(_run(function, kernel_launch, device, settings))

    call(function, arguments, handle, device, reachable=reachable)
    return report


def architecture(function: LinkedFunction) -> str:
    """ "sm90", "sm100" or "sm120", from the PTX target."""
    targets = {kernel.target for kernel in function.kernels.values()}
    for target in targets:
        arch = target.rstrip("af").replace("_", "")
        if arch in DEVICES:
            return arch
        if arch.startswith("sm10"):
            return "sm100"
        if arch.startswith("sm12"):
            return "sm120"
    raise EmulationError(f"no emulated device for PTX target {', '.join(targets) or '(none)'}")


def _run(function: LinkedFunction, launched: Launch, device: DeviceProperties, settings: Settings) -> KernelRun:
    programs = _programs.setdefault(function, {})
    if launched.kernel not in programs:
        programs[launched.kernel] = Program(function.kernels[launched.kernel])
    program = programs[launched.kernel]
    kernel = program.kernel
    parameters = bytearray(kernel.parameter_bytes)
    for parameter, value in zip(kernel.parameters.values(), launched.params):
        parameters[parameter.offset : parameter.offset + parameter.size] = value
    machine = Machine(
        program,
        LaunchShape(
            Dim3(*launched.grid),
            Dim3(*launched.block),
            Dim3(*launched.cluster),
            launched.dynamic_smem,
            Dim3(*launched.preferred_cluster) if launched.preferred_cluster is not None else None,
        ),
        bytes(parameters),
        GlobalMemory(launched.memory),
        settings.schedule,
        fan_out([*checks.observers(settings.checks), *settings.observers]),
        device.sm_count,
    )
    start = time.perf_counter()
    machine.run()
    seconds = time.perf_counter() - start
    return KernelRun(launched.kernel, launched.grid, launched.block, launched.cluster, machine.instructions, seconds)
