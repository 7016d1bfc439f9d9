"""Tiny PTX kernels around a few instructions, run on the emulator's machine without a compiler or a runtime."""

from typing import Optional

import numpy as np

from quack.emulator import isa as isa  # fills the table of opcodes
from quack.emulator.asynchrony import Schedule
from quack.emulator.machine import Dim3, LaunchShape, Machine
from quack.emulator.memory import GlobalMemory
from quack.emulator.observer import Observer
from quack.emulator.program import Program
from quack.emulator.ptx import parse


def kernel_text(body: str, buffers: int, target: str = "sm_120a") -> str:
    """A kernel with a pointer parameter for each buffer, in registers %in0, %in1, ...; %lane is the thread's index."""
    parameters = ",\n".join(f".param .u64 .ptr .global .align 16 p{i}" for i in range(buffers))
    loads = "\n".join(f"ld.param.u64 %in{i}, [p{i}];" for i in range(buffers))
    return f"""
.version 9.1
.target {target}
.address_size 64
.extern .shared .align 1024 .b8 smem[];
.visible .entry tiny({parameters})
{{
.reg .b64 %in<{buffers}>;
.reg .b64 %rd<64>;
.reg .b32 %r<128>;
.reg .b16 %rs<16>;
.reg .f64 %fd<64>;
.reg .pred %p<8>;
.reg .b32 %lane;
{loads}
mov.u32 %lane, %tid.x;
{body}
ret;
}}
"""


def run_kernel(
    body: str,
    *buffers: np.ndarray,
    shared: int = 0,
    threads: int = 32,
    schedule: str = "eager",
    grid: int = 1,
    cluster: int = 1,
    sms: int = 132,
    observer: Optional[Observer] = None,
) -> Machine:
    """Run `body` (see `kernel_text`); the kernel reads and writes `buffers` in place. grid, cluster: CTAs along x."""
    program = Program(parse(kernel_text(body, len(buffers)))["tiny"])
    parameters = b"".join(b.ctypes.data.to_bytes(8, "little") for b in buffers)
    memory = GlobalMemory([(b.ctypes.data, b.nbytes) for b in buffers])
    shape = LaunchShape(Dim3(grid), Dim3(threads), Dim3(cluster), shared)
    machine = Machine(program, shape, parameters, memory, Schedule.parse(schedule), observer, sms)
    machine.run()
    return machine


def lane_address(register: str, base: str, bytes_per_lane: int) -> str:
    """PTX that sets `register` to base + lane * bytes_per_lane."""
    return f"mad.wide.u32 {register}, %lane, {bytes_per_lane}, {base};"


def load_registers(registers: list[str], base: str, scratch: str, bits: int = 32) -> str:
    """PTX that loads one row of a (32, len(registers)) array per lane."""
    size = bits // 8
    loads = [f"ld.global.b{bits} {r}, [{scratch}+{i * size}];" for i, r in enumerate(registers)]
    return "\n".join([lane_address(scratch, base, size * len(registers)), *loads])


def store_registers(registers: list[str], base: str, scratch: str, bits: int = 32) -> str:
    """The opposite of `load_registers`."""
    size = bits // 8
    stores = [f"st.global.b{bits} [{scratch}+{i * size}], {r};" for i, r in enumerate(registers)]
    return "\n".join([lane_address(scratch, base, size * len(registers)), *stores])
