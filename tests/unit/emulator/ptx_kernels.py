"""Tiny PTX kernels around a few instructions, run on the emulator's machine without a compiler or a runtime."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Optional, Union

import numpy as np

from quack.emulator import isa as isa  # fills the table of opcodes
from quack.emulator.asynchrony import Schedule
from quack.emulator.geometry import Dim3, LaunchShape
from quack.emulator.machine import Machine
from quack.emulator.memory import GlobalMemory
from quack.emulator.observer import Observer
from quack.emulator.program import Program
from quack.emulator.ptx import parse

Extent = Union[int, tuple[int, ...]]
SCHEDULES = ("eager", "latest", "random:1", "random:2", "random:3")


def kernel_text(body: str, buffers: int, target: str = "sm_120a", descriptors: int = 0, module: str = "") -> str:
    """A kernel with a pointer parameter for each buffer, in registers %in0, %in1, ...; %lane is the thread's index.

    descriptors: TMA descriptors in parameters, whose generic addresses are in %map0, %map1, ... module: declarations at
    module level. Shared memory is `smem`; its address is in %smem.
    """
    parameters = [f".param .u64 .ptr .global .align 16 p{i}" for i in range(buffers)]
    parameters += [f".param .align 128 .b8 d{i}[128]" for i in range(descriptors)]
    loads = [f"ld.param.u64 %in{i}, [p{i}];" for i in range(buffers)]
    loads += [f"mov.b64 %map{i}, d{i};\ncvta.param.u64 %map{i}, %map{i};" for i in range(descriptors)]
    lines = ",\n".join(parameters), "\n".join(loads)
    return f"""
.version 9.1
.target {target}
.address_size 64
.extern .shared .align 1024 .b8 smem[];
{module}
.visible .entry tiny({lines[0]})
{{
.reg .b64 %in<{buffers}>;
.reg .b64 %map<{descriptors}>;
.reg .b64 %rd<64>;
.reg .b32 %r<128>;
.reg .b16 %rs<16>;
.reg .f64 %fd<64>;
.reg .pred %p<8>;
.reg .b32 %lane, %smem;
{lines[1]}
mov.u32 %lane, %tid.x;
mov.b32 %smem, smem;
{body}
ret;
}}
"""


@functools.lru_cache(maxsize=64)
def _program(text: str) -> Program:
    return Program(parse(text)["tiny"])


def extent(size: Extent) -> Dim3:
    return Dim3(size) if isinstance(size, int) else Dim3(*size)


def run_kernel(
    body: str,
    *buffers: np.ndarray,
    shared: int = 0,
    threads: Extent = 32,
    schedule: str = "eager",
    grid: Extent = 1,
    cluster: Extent = 1,
    sms: int = 132,
    descriptors: Sequence[bytes] = (),
    module: str = "",
    observer: Optional[Observer] = None,
    target: str = "sm_120a",
    preferred: Optional[Extent] = None,
) -> Machine:
    """Run `body` (see `kernel_text`), by default on one CTA; the kernel reads and writes `buffers` in place."""
    program = _program(kernel_text(body, len(buffers), target, len(descriptors), module))
    parameters = b"".join(b.ctypes.data.to_bytes(8, "little") for b in buffers)
    if descriptors:
        parameters += bytes(-len(parameters) % 128) + b"".join(descriptors)
    machine = Machine(
        program,
        LaunchShape(
            extent(grid), extent(threads), extent(cluster), shared, None if preferred is None else extent(preferred)
        ),
        parameters,
        GlobalMemory([(b.ctypes.data, b.nbytes) for b in buffers]),
        Schedule.parse(schedule),
        observer,
        sms=sms,
    )
    machine.run()
    return machine


def aligned(shape: Union[int, tuple[int, ...]], dtype: Any, alignment: int = 128) -> np.ndarray:
    """Zeros at a multiple of `alignment` bytes."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + size].view(dtype).reshape(shape)


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


# ---- one instruction on registers, lane by lane -----------------------------------------------------------------------


class Lanewise(NamedTuple):
    """An instruction that works lane by lane.

    text: with {d} and perhaps {e} for its destinations, {0}, {1}, ... for its sources. sources, outs: widths of their
    registers, 1 for predicates. reference: from raw unsigned integers to one, or to a tuple for two destinations.
    literal: how a source is written as a literal, by its width and value; None: sources are registers only.
    """

    text: str
    sources: tuple[int, ...]
    outs: tuple[int, ...]
    reference: Callable[..., object]
    literal: Union[Callable[[int, int], str], None] = lambda bits, value: hex(value)

    def __str__(self) -> str:
        return self.text.partition(" ")[0]


def signed(value: int, bits: int) -> int:
    """Two's complement."""
    return value - (1 << bits) if value >> (bits - 1) & 1 else value


def signed_literal(bits: int, value: int) -> str:
    return str(signed(value, bits))


def float_literal(bits: int, value: int) -> str:
    return f"0f{value:08X}" if bits == 32 else f"0d{value:016X}"


def edge_values(rng: np.random.Generator, bits: int, count: int) -> list[int]:
    """Raw integers: corners of the range, small numbers, random bits, random magnitudes."""
    if bits == 1:
        return rng.integers(0, 2, count).tolist()
    mask, top = (1 << bits) - 1, 1 << (bits - 1)
    corners = [0, 1, 2, mask, mask - 1, top, top - 1, top + 1, bits - 1, bits, bits + 1]
    values = []
    for _ in range(count):
        kind, raw = rng.integers(4), int(rng.integers(0, 1 << 64, dtype=np.uint64))
        values.append([corners[raw % len(corners)], raw & mask, raw & 127, raw % (1 << 1 + raw % bits)][kind] & mask)
    return values


class _Instance(NamedTuple):
    """How one use of an instruction gets its operands: "lane", "uniform" or "literal" each, from a set of values."""

    sample: int
    kinds: tuple[str, ...]
    guard: bool = False


UNIFORM_LANE = 5  # uniform operands take the value that this lane has


def _instances(case: Lanewise, samples: int) -> Iterator[_Instance]:
    count = len(case.sources)
    for sample in range(samples):
        yield _Instance(sample, ("lane",) * count)
        yield _Instance(sample, ("uniform",) * count)
        yield _Instance(sample, ("lane",) * count, guard=True)
        if case.literal is not None:
            yield _Instance(sample, ("literal",) * count)
            yield _Instance(sample, ("lane",) + ("literal",) * (count - 1))
        for k in range(count if count > 1 else 0):
            yield _Instance(sample, tuple("uniform" if i == k else "lane" for i in range(count)))
    yield _Instance(0, ("uniform",) * count, guard=True)


def _declare(names: list[str], widths: tuple[int, ...]) -> str:
    kinds = {1: ".pred", 8: ".b8", 16: ".b16", 32: ".b32", 64: ".b64"}
    return "\n".join(f".reg {kinds[bits]} {name};" for name, bits in zip(names, widths))


def _load(name: str, bits: int, address: str) -> str:
    if bits == 1:
        return f"ld.global.b32 %word, [{address}];\nsetp.ne.u32 {name}, %word, 0;"
    return f"ld.global.b{bits} {name}, [{address}];"


def _store(name: str, bits: int, address: str) -> str:
    if bits == 1:
        return f"selp.u32 %word, 1, 0, {name};\nst.global.b32 [{address}], %word;"
    return f"st.global.b{bits} [{address}], {name};"


def before(bits: int) -> int:
    """What destinations hold before a guarded use."""
    return 0x5A5A5A5A5A5A5A5A & (1 << bits) - 1 if bits > 1 else 1


def check_lanewise(case: Lanewise, operands: np.ndarray) -> None:
    """Compare an instruction with its reference for per-lane, uniform, literal and mixed operands, guarded and not.

    operands: uint64 (samples, sources, 32).
    """
    samples, count = operands.shape[:2]
    sources, outs = [f"%s{k}" for k in range(count)], ["%d", "%e"][: len(case.outs)]
    slot = 8 * 32
    lines = [
        "{", ".reg .b32 %word;\n.reg .pred %guard;\n.reg .b64 %from, %to;", _declare(sources, case.sources),
        _declare(outs, case.outs), lane_address("%from", "%in0", 8), lane_address("%to", "%in1", 8),
        "and.b32 %word, %lane, 5;\nsetp.eq.u32 %guard, %word, 1;",
    ]  # fmt: skip
    instances = list(_instances(case, samples))
    for number, instance in enumerate(instances):
        texts = []
        for k, (kind, bits) in enumerate(zip(instance.kinds, case.sources)):
            at = slot * (instance.sample * count + k)
            if kind == "literal" and bits > 1 and case.literal is not None:
                texts.append(case.literal(bits, int(operands[instance.sample, k, UNIFORM_LANE])))
                continue
            address = f"%from+{at}" if kind == "lane" else f"%in0+{at + 8 * UNIFORM_LANE}"
            lines.append(_load(sources[k], bits, address))
            texts.append(sources[k])
        if instance.guard:
            kinds = ["pred" if bits == 1 else f"b{bits}" for bits in case.outs]
            lines += [f"mov.{kind} {out}, {before(bits)};" for kind, out, bits in zip(kinds, outs, case.outs)]
        lines.append("@%guard " * instance.guard + case.text.format(*texts, d=outs[0], e=outs[-1]))
        for j, (out, bits) in enumerate(zip(outs, case.outs)):
            lines.append(_store(out, bits, f"%to+{slot * (number * len(outs) + j)}"))
    results = np.zeros((len(instances), len(outs), 32), np.uint64)
    run_kernel("\n".join([*lines, "}"]), operands, results)
    for number, instance in enumerate(instances):
        for lane in range(32):
            lanes = [lane if kind == "lane" else UNIFORM_LANE for kind in instance.kinds]
            values = [int(operands[instance.sample, k, at]) for k, at in enumerate(lanes)]
            expected = case.reference(*values)
            for j, (want, bits) in enumerate(zip(expected if isinstance(expected, tuple) else (expected,), case.outs)):
                if instance.guard and lane & 5 != 1:
                    want = before(bits)
                got = int(results[number, j, lane])
                assert got == int(want), (
                    f"{case.text} with {instance}, lane {lane}, operands {[hex(v) for v in values]}: "
                    f"{got:#x}, expected {int(want):#x} in destination {j}"
                )


def random_operands(case: Lanewise, seed: int = 0, samples: int = 3) -> np.ndarray:
    """Operands for `check_lanewise`."""
    rng = np.random.default_rng(seed)
    values = [[edge_values(rng, bits, 32) for bits in case.sources] for _ in range(samples)]
    return np.array(values, np.uint64).reshape(samples, len(case.sources), 32)
