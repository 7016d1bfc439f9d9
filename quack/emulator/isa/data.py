"""Moving data: mov, ld, st, address conversion (PTX ISA 9.7.9.3 to 9.7.9.24)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import IllegalAccess, Misuse, UnknownInstruction
from ..memory import LOCAL_WINDOW, OFFSET_MASK, PARAM_WINDOW, RANK_SHIFT, SHARED_WINDOW
from ..observer import Access, Proxy
from ..opcodes import opcode
from ..program import CLOCKS, Address, Binder, Execute
from ..ptx import TYPE_BITS
from ..values import LANES, MASK, SIGNED, UNSIGNED, row, signed, uniform

ORDERS = ("weak", "relaxed", "acquire", "release", "acq_rel", "volatile", "mmio")
SCOPES = ("cta", "cluster", "gpu", "sys")
SPACES = ("param", "shared", "shared::cta", "shared::cluster", "global", "local", "const", "param::entry")
CACHE_HINTS = (
    "ca", "cg", "cs", "cv", "lu", "wb", "wt", "nc", "unified", "level::eviction_priority", "L1::evict_normal",
    "L1::evict_unchanged", "L1::evict_first", "L1::evict_last", "L1::no_allocate", "L2::evict_normal",
    "L2::evict_first", "L2::evict_last", "L2::cache_hint", "L2::64B", "L2::128B", "L2::256B",
)  # fmt: skip


# ---- mov --------------------------------------------------------------------------------------------------------------


def _split_value(value: Any, parts: int, bits: int) -> list[Any]:
    """A value as `parts` values of `bits`, lowest first."""
    if value.__class__ is not np.ndarray:
        whole = uniform(value, parts * bits, 0)
        return [whole >> bits * i & MASK[bits] for i in range(parts)]
    value = row(value, parts * bits)
    if value.dtype == object:
        kind = UNSIGNED[bits]
        return [np.array([v >> bits * i & MASK[bits] for v in value], kind) for i in range(parts)]
    return list(np.ascontiguousarray(value).view(UNSIGNED[bits]).reshape(LANES, parts).T.copy())


def _join_values(values: list[Any], bits: int) -> Any:
    """The opposite of `_split_value`."""
    if not any(v.__class__ is np.ndarray for v in values):
        return sum(uniform(v, bits, 0) << bits * i for i, v in enumerate(values))
    total = bits * len(values)
    if total == 128:
        lanes = [row(v, bits) for v in values]
        return np.array([sum(int(v[k]) << bits * i for i, v in enumerate(lanes)) for k in range(LANES)], object)
    joined = np.empty((LANES, len(values)), UNSIGNED[bits])
    for i, value in enumerate(values):
        joined[:, i] = row(value, bits)
    return joined.view(UNSIGNED[total]).reshape(LANES)


@opcode("mov", section="9.7.9.3 / 9.7.9.4")
def move(b: Binder) -> Execute:
    """mov between registers, from special registers and addresses, packing and unpacking vectors."""
    bits = TYPE_BITS[b.type()]
    target, source = b.operands
    if target.startswith("{"):
        outs, x = b.outs(0), b.src(1, bits)
        part = bits // len(outs)

        def unpack(w: Any) -> None:
            regs = w.regs
            for out, value in zip(outs, _split_value(regs[x], len(outs), part)):
                regs[out] = value

        return unpack
    out = b.out(0)
    if source.startswith("{"):
        names = b.vector(1)
        part = bits // len(names)
        sources = [b.src(name, part) for name in names]

        def pack(w: Any) -> None:
            regs = w.regs
            regs[out] = _join_values([regs[s] for s in sources], part)

        return pack
    if source in CLOCKS:
        # Time is counted in instructions of the warp.
        def clock(w: Any) -> None:
            w.state["clock"] = w.state.get("clock", 0) + 1
            w.regs[out] = w.machine.instructions + w.state["clock"]

        return clock
    x = b.src(1, bits)
    if b.program.slot_bits[x] > bits and source.partition("+")[0].strip() in b.program.kernel.variables:

        def symbol(w: Any) -> None:
            w.regs[out] = w.regs[x] & MASK[bits]

        return symbol

    def copy(w: Any) -> None:
        regs = w.regs
        regs[out] = regs[x]

    return copy


# ---- addresses --------------------------------------------------------------------------------------------------------


@opcode("cvta", section="9.7.9.20")
def convert_address(b: Binder) -> Execute:
    """cvta[.to].space: between window and generic addresses."""
    is_to = b.flag("to")
    space = b.one_of(*SPACES)
    bits = TYPE_BITS[b.type()]
    out, x = b.out(0), b.src(1, bits)
    if not space.startswith("shared"):

        def same(w: Any) -> None:
            w.regs[out] = w.regs[x]

        return same

    def run(w: Any) -> None:
        value = w.regs[x]
        if is_to:
            w.regs[out] = value & ~SHARED_WINDOW if value.__class__ is int else row(value, 64) & MASK[32]
        else:
            w.regs[out] = value | SHARED_WINDOW if value.__class__ is int else row(value, 64) | np.uint64(SHARED_WINDOW)

    return run


@opcode("isspacep", section="9.7.9.19")
def is_in_space(b: Binder) -> Execute:
    """isspacep.space p, a."""
    space = b.one_of(*SPACES)
    out, x = b.out(0), b.src(1, 64)

    def one(w: Any, address: int) -> bool:
        where = space_of(address)
        if space == "shared::cta":
            return where == "shared" and (address & MASK[32]) >> RANK_SHIFT == w.cta.rank
        return where == space.partition("::")[0]

    def run(w: Any) -> None:
        value = w.regs[x]
        if value.__class__ is np.ndarray:
            w.regs[out] = np.array([one(w, address) for address in value.tolist()])
        else:
            w.regs[out] = one(w, uniform(value, 64, 0))

    return run


@opcode("mapa", section="9.7.9.23")
def map_address(b: Binder) -> Execute:
    """mapa[.shared::cluster]: the same place in the shared memory of another CTA of the cluster."""
    is_window = b.flag("shared::cluster")
    bits = TYPE_BITS[b.type()]
    out, x, rank = b.out(0), b.src(1, bits), b.src(2, 32)
    window = 0 if is_window else SHARED_WINDOW

    def run(w: Any) -> None:
        address, target = w.regs[x], w.regs[rank]
        if address.__class__ is int and target.__class__ is int:
            w.regs[out] = address & OFFSET_MASK | target << RANK_SHIFT | window
        else:
            kind = UNSIGNED[bits]
            w.regs[out] = row(address, bits) & kind(OFFSET_MASK) | row(target, 32).astype(kind) << kind(RANK_SHIFT)
            w.regs[out] = w.regs[out] | kind(window)

    return run


@opcode("getctarank", section="9.7.9.24")
def get_cta_rank(b: Binder) -> Execute:
    """getctarank[.shared::cluster]: the CTA that a shared address points into."""
    b.flag("shared::cluster")
    bits = TYPE_BITS[b.type()]
    out, x = b.out(0), b.src(1, bits)

    def run(w: Any) -> None:
        value = w.regs[x]
        if value.__class__ is int:
            w.regs[out] = (value & MASK[32]) >> RANK_SHIFT
        else:
            w.regs[out] = (row(value, 64) & np.uint64(MASK[32])).astype(np.uint32) >> np.uint32(RANK_SHIFT)

    return run


def space_of(generic: int) -> str:
    """The state space that a generic address lies in."""
    if generic & SHARED_WINDOW:
        return "shared"
    if generic & LOCAL_WINDOW:
        return "local"
    return "param" if generic & PARAM_WINDOW else "global"


def address_value(w: Any, address: Address) -> Any:
    """The address as an int, or as a row of uint64."""
    value = w.regs[address.slot]
    if value.__class__ is int:
        return (value + address.offset) & MASK[address.bits]
    lanes = row(value, address.bits).astype(np.uint64)
    if address.offset:
        lanes = lanes + np.uint64(address.offset & MASK[64])
        if address.bits == 32:
            lanes &= np.uint64(MASK[32])
    return lanes


def shared_place(w: Any, address: int) -> tuple[Any, int]:
    """(CTA, offset) of a shared::cluster or generic shared address."""
    window = address & MASK[32]
    return w.cta.cluster.cta(window), window & OFFSET_MASK


# ---- ld, st -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Transfer:
    """What ld and st have in common. `size`: bytes of an element; `count`: elements per lane."""

    space: str
    address: Address
    size: int
    count: int
    order: str

    @property
    def bytes(self) -> int:
        return self.size * self.count


def transfer(b: Binder, operand: int) -> Transfer:
    """Read the modifiers that ld, st and their like share."""
    space = b.one_of(*SPACES, default="").partition("::")[0]
    order = b.one_of(*ORDERS, default="weak")
    b.ignore(*SCOPES, *CACHE_HINTS)
    found = b.match(r"v([248])")
    bits = TYPE_BITS[b.type()]
    return Transfer(space, b.address(operand), bits // 8, int(found[1]) if found else 1, order)


def _check_alignment(address: int, size: int) -> None:
    if address % size:
        raise IllegalAccess(f"address {address:#x} is not a multiple of the {size} bytes accessed")


@dataclass(slots=True)
class Block:
    """Lanes whose elements lie in one array: array[index + i] is element i."""

    array: np.ndarray
    index: Any
    lanes: Any


def blocks(w: Any, t: Transfer, access: Access) -> list[Block]:
    """Check an access and find the memory behind it. `index` is an int for a uniform address, else one per lane."""
    if t.order != "weak":
        access = access.strengthened
    value = address_value(w, t.address)
    if value.__class__ is int:
        _check_alignment(value, t.bytes)
        return [_uniform_block(w, t, value, access)]
    active = value[w.mask]
    if (active % np.uint64(t.bytes)).any():
        _check_alignment(int(active[(active % np.uint64(t.bytes)).argmax()]), t.bytes)
    space = t.space or space_of(int(active[0]))
    if not t.space and ((active ^ active[0]) >= np.uint64(PARAM_WINDOW)).any():
        raise UnknownInstruction("lanes of one generic access in different state spaces")
    observer = w.machine.observer
    lanes = w.mask.nonzero()[0]
    kind = UNSIGNED[min(64, 8 * t.size)]
    if space == "shared":
        ranks = (active & np.uint64(MASK[32])) >> np.uint64(RANK_SHIFT)
        offsets = (active & np.uint64(OFFSET_MASK)).astype(np.int64)
        found = []
        for rank in set(ranks.tolist()):
            here = ranks == rank
            cta = w.cta.cluster.cta(rank << RANK_SHIFT)
            mine = offsets[here]
            cta.smem.check(int(mine.min()), t.bytes)
            cta.smem.check(int(mine.max()), t.bytes)
            if observer is not None:
                observer.shared(w, cta, mine, t.bytes, access, Proxy.GENERIC)
            found.append(Block(cta.smem.views[kind], mine // t.size, lanes[here]))
        return found
    if space == "local":
        array = local_memory(w).view(kind)
        offsets = (active & np.uint64(LOCAL_WINDOW - 1)).astype(np.int64)
        _check_local(w, int(offsets.max()), t.bytes)
        stride = array.shape[1]
        return [Block(array.reshape(-1), offsets // t.size + lanes * stride, lanes)]
    if space == "param":
        array = np.frombuffer(w.machine.parameters, np.uint8)
        offsets = (active & np.uint64(PARAM_WINDOW - 1)).astype(np.int64)
        _check_parameter(int(offsets.max()), t.bytes, len(array))
        return [Block(array[: len(array) // t.size * t.size].view(kind), offsets // t.size, lanes)]
    if observer is not None:
        observer.global_memory(w, active, t.bytes, access, Proxy.GENERIC)
    memory = w.machine.memory
    low, high = int(active.min()), int(active.max())
    try:
        is_one_range = memory.find(low, t.bytes) == memory.find(high, t.bytes)
    except IllegalAccess:
        _raise_with_lane(memory, t.bytes, lanes, active)
        raise
    if is_one_range:
        array, index = memory.locate(active, t.bytes, kind)
        return [Block(array, index, lanes)]
    found = []
    for lane, address in zip(lanes, active):
        array, index = memory.locate(np.array([address]), t.bytes, kind)
        found.append(Block(array, index, np.array([lane])))
    return found


def _raise_with_lane(memory: Any, size: int, lanes: np.ndarray, addresses: np.ndarray) -> None:
    """Name the first lane whose global address is illegal."""
    for lane, address in zip(lanes.tolist(), addresses.tolist()):
        try:
            memory.find(address, size)
        except IllegalAccess as error:
            raise IllegalAccess(f"lane {lane}: {error}") from None


def local_memory(w: Any) -> np.ndarray:
    """Local memory of a warp, uint8 (lanes, bytes)."""
    if w.local is None:
        offsets = w.machine.local_offsets
        size = max((offsets[v.name] + v.size for v in w.machine.program.variables("local")), default=0)
        w.state["local bytes"] = size
        w.local = np.full((LANES, -(-size // 16) * 16), 0xA5, np.uint8)
    return w.local


def _check_local(w: Any, offset: int, size: int) -> None:
    available = w.state["local bytes"]
    if offset + size > available:
        raise IllegalAccess(f"local memory access at offset {offset} ({size} bytes): a thread has {available} bytes")


def _check_parameter(offset: int, size: int, available: int) -> None:
    if offset + size > available:
        raise IllegalAccess(f"parameter access at offset {offset} ({size} bytes): there are {available} bytes")


def _uniform_block(w: Any, t: Transfer, address: int, access: Access) -> Block:
    space = t.space or space_of(address)
    kind = UNSIGNED[min(64, 8 * t.size)]
    observer = w.machine.observer
    if space == "shared":
        cta, offset = shared_place(w, address)
        cta.smem.check(offset, t.bytes)
        if observer is not None:
            observer.shared(w, cta, np.array([offset]), t.bytes, access, Proxy.GENERIC)
        return Block(cta.smem.views[kind], offset // t.size, None)
    if space == "param":
        array = np.frombuffer(w.machine.parameters, np.uint8)
        at = address & (PARAM_WINDOW - 1)
        _check_parameter(at, t.bytes, len(array))
        return Block(array[: len(array) // t.size * t.size].view(kind), at // t.size, None)
    if space == "local":
        array = local_memory(w).view(kind)
        at = address & (LOCAL_WINDOW - 1)
        _check_local(w, at, t.bytes)
        lanes = w.mask.nonzero()[0]
        return Block(array.reshape(-1), at // t.size + lanes * array.shape[1], lanes)
    if observer is not None:
        observer.global_memory(w, np.array([address], np.uint64), t.bytes, access, Proxy.GENERIC)
    array, index = w.machine.memory.locate(np.array([address], np.uint64), t.bytes, kind)
    return Block(array, int(index[0]), None)


def synchronise(w: Any, t: Transfer, access: Access) -> None:
    """Tell the observer about the ordering that a load or store carries."""
    observer = w.machine.observer
    if observer is None or t.order == "weak":
        return
    value = address_value(w, t.address)
    for address in {value} if value.__class__ is int else set(value[w.mask].tolist()):
        relaxed = t.order in ("relaxed", "volatile", "mmio")
        name: Any = ("address", address)
        if (t.space or space_of(address)) == "shared":
            name = shared_place(w, address)
        if access is not Access.WRITE and (relaxed or t.order in ("acquire", "acq_rel")):
            observer.acquire(w, name, relaxed)
        if access is not Access.READ and (relaxed or t.order in ("release", "acq_rel")):
            observer.release(w, name, relaxed)


def _widen(t: Transfer, is_signed: bool, out_bits: int) -> Any:
    """Loaded elements are extended to the width of the register."""
    bits = 8 * t.size
    if not is_signed or out_bits <= bits:
        return lambda v: v

    def extend(value: Any) -> Any:
        if value.__class__ is int:
            return signed(value, bits) & MASK[out_bits]
        return value.view(SIGNED[bits]).astype(SIGNED[out_bits]).view(UNSIGNED[out_bits])

    return extend


@opcode("ld", section="9.7.9.8 / 9.7.9.9")
@opcode("ldu", section="9.7.9.10")
def load(b: Binder) -> Execute:
    """ld of 1 to 8 elements of 8 to 128 bits from any space."""
    is_signed = any(m in b.modifiers for m in ("s8", "s16", "s32"))
    t = transfer(b, 1)
    outs = b.outs(0)
    if len(outs) != t.count:
        raise UnknownInstruction(f"{len(outs)} registers for .v{t.count}")
    if t.space == "param" and t.address.slot in b.program.constant_values:
        return _load_parameter(b, t, outs)
    if t.size == 16:
        return _load_wide(t, outs)
    extend = _widen(t, is_signed, b.program.slot_bits[outs[0]])
    kind = UNSIGNED[8 * t.size]

    def run(w: Any) -> None:
        regs = w.regs
        found = blocks(w, t, Access.READ)
        first = found[0]
        if first.index.__class__ is int:
            for i, out in enumerate(outs):
                regs[out] = extend(first.array[first.index + i].item())
        else:
            for i, out in enumerate(outs):
                lanes = np.zeros(LANES, kind)
                for block in found:
                    lanes[block.lanes] = block.array[block.index + i]
                regs[out] = extend(lanes)
        synchronise(w, t, Access.READ)

    return run


def _load_wide(t: Transfer, outs: list[int]) -> Execute:
    """128-bit elements: read as pairs of 64."""
    halves = Transfer(t.space, t.address, 8, 2 * t.count, t.order)

    def run(w: Any) -> None:
        for block in blocks(w, halves, Access.READ):
            for i, out in enumerate(outs):
                if block.index.__class__ is int:
                    low, high = block.array[block.index + 2 * i], block.array[block.index + 2 * i + 1]
                    w.regs[out] = int(low) | int(high) << 64
                else:
                    lanes = np.zeros(LANES, object)
                    low, high = block.array[block.index + 2 * i], block.array[block.index + 2 * i + 1]
                    lanes[block.lanes] = [int(p) | int(q) << 64 for p, q in zip(low, high)]
                    w.regs[out] = lanes
        synchronise(w, t, Access.READ)

    return run


def _load_parameter(b: Binder, t: Transfer, outs: list[int]) -> Execute:
    base = b.program.constant_values[t.address.slot]
    assert isinstance(base, int)
    start = (base & (PARAM_WINDOW - 1)) + t.address.offset
    _check_parameter(start, t.bytes, b.program.kernel.parameter_bytes)
    _check_alignment(start, t.bytes)
    is_signed = any(m in b.modifiers for m in ("s8", "s16", "s32"))
    extend = _widen(t, is_signed, b.program.slot_bits[outs[0]])

    def run(w: Any) -> None:
        data, regs = w.machine.parameters, w.regs
        for i, out in enumerate(outs):
            at = start + i * t.size
            regs[out] = extend(int.from_bytes(data[at : at + t.size], "little"))

    return run


@opcode("st", section="9.7.9.11")
def store(b: Binder) -> Execute:
    """st of 1 to 8 elements of 8 to 128 bits to any space."""
    t = transfer(b, 0)
    sources = b.srcs(1, 8 * t.size)
    if len(sources) != t.count:
        raise UnknownInstruction(f"{len(sources)} registers for .v{t.count}")
    if t.size == 16:
        halves = Transfer(t.space, t.address, 8, 2 * t.count, t.order)

        def run_wide(w: Any) -> None:
            parts = [part for s in sources for part in _split_value(w.regs[s], 2, 64)]
            scatter(w, halves, parts)

        return run_wide

    def run(w: Any) -> None:
        regs = w.regs
        scatter(w, t, [regs[s] for s in sources])

    return run


def scatter(w: Any, t: Transfer, values: list[Any]) -> None:
    """Write one element list per active lane."""
    bits = 8 * t.size
    found = blocks(w, t, Access.WRITE)
    synchronise(w, t, Access.WRITE)
    w.machine.version += 1
    for block in found:
        if block.index.__class__ is int:
            for i, value in enumerate(values):
                # Lanes that store to one address: any of them may win, the last one does.
                block.array[block.index + i] = uniform(value, bits, w.lanes[-1]) & MASK[bits]
        else:
            for i, value in enumerate(values):
                block.array[block.index + i] = (
                    row(value, bits)[block.lanes]
                    if value.__class__ is np.ndarray
                    else uniform(value, bits, 0) & MASK[bits]
                )


def single(values: Any, w: Any, bits: int = 32) -> list[int]:
    """One integer per active lane."""
    if values.__class__ is np.ndarray:
        return [int(values[lane]) for lane in w.lanes]
    return [uniform(values, bits, 0)] * len(w.lanes)


def require(condition: bool, message: str) -> None:
    """Raise Misuse unless the condition holds."""
    if not condition:
        raise Misuse(message)
