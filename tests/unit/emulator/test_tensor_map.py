"""TMA descriptors: bits against the driver of an H200, against ptxas, and against CuTe DSL host code."""

import dataclasses
import json
import math
import random
import struct
from pathlib import Path

import cutlass.cute as cute
import numpy as np
import pytest
import torch
from cutlass.cute.nvgpu import cpasync
from cutlass.cute.runtime import from_dlpack

from quack.emulator.runtime.device import DEVICES
from quack.emulator.runtime.entry import call
from quack.emulator.runtime.fake_cuda import as_cuda
from quack.emulator.tensor_map import Atomicity, ElementType, Interleave, Swizzle, TensorMap, replace_field

GOLDEN = json.loads((Path(__file__).parent / "tensor_map_h200.json").read_text())
# CUtensorMapDataType has FLOAT64 and BFLOAT16 before FLOAT32_FTZ.
DRIVER_TYPES = [ElementType(i) for i in (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 8, 11, 12, 13, 14, 15)]
BASE = TensorMap(0x1000, ElementType.BF16, (100, 50), (256,), (64, 8), (1, 1))


def golden_records() -> list[tuple[TensorMap, bytes]]:
    """(parameters given to the driver, the 128 bytes it wrote)."""
    records = []
    for dtype, address, dims, strides, box, element_strides, interleave, swizzle, l2, oob, text in GOLDEN["tiled"]:
        expected = TensorMap(
            address=address,
            element_type=DRIVER_TYPES[dtype],
            dims=tuple(dims),
            strides=tuple(strides),
            box=tuple(box),
            element_strides=tuple(element_strides),
            swizzle=Swizzle(swizzle),
            interleave=Interleave(interleave),
            nan_fill=bool(oob),
            l2_promotion=l2,
        )
        records.append((expected, bytes.fromhex(text).ljust(128, b"\0")))
    return records


def test_decode_and_encode_what_the_driver_wrote():
    records = golden_records()
    assert len(records) > 200
    for expected, raw in records:
        assert TensorMap.decode(raw) == expected
        assert expected.encode() == raw
        assert TensorMap.decode(raw[:64]) == expected, "only 64 bytes are needed"


def test_im2col_descriptors_of_the_driver_are_refused():
    for text in GOLDEN["im2col"]:
        with pytest.raises(NotImplementedError, match="im2col"):
            TensorMap.decode(bytes.fromhex(text).ljust(128, b"\0"))


def test_descriptors_of_cute_dsl_4_8_1():
    """Words captured from its host code: it sets bit 1 of word 2, and bit 21 for FP32; the driver sets neither."""
    bf16 = struct.pack("<15I", 0x1D603200, 0x55FB, 0x46512, 0x18, 0, 0, 0, 0, 0xBF, 0xFF, 0, 0, 0, 0x3F000000, 0x3F)
    fp32 = struct.pack("<15I", 0x1D3B9D00, 0x55FB, 0x246392, 0x30, 0, 0, 0, 0, 0xBF, 0xFF, 0, 0, 0, 0x1F000000, 0x3F)
    common = dict(dims=(192, 256), element_strides=(1, 1), swizzle=Swizzle.B128, l2_promotion=2)
    assert TensorMap.decode(bf16.ljust(64, b"\0")) == TensorMap(
        address=0x55FB1D603200, element_type=ElementType.BF16, strides=(384,), box=(64, 64), **common
    )
    assert TensorMap.decode(fp32.ljust(64, b"\0")) == TensorMap(
        address=0x55FB1D3B9D00, element_type=ElementType.F32, strides=(768,), box=(32, 64), **common
    )


# What ptxas 13.0 emits for `tensormap.replace.tile.FIELD [p], ordinal, value`: (byte offset, mask, shift, subtrahend).
PTXAS = {
    ("rank", 0): [(0x8, 0x70, 4, 0)],
    ("box_dim", 0): [(0x34, 0xFF000000, 24, 1)],
    **{("box_dim", i): [(0x38, 0xFF << 8 * (i - 1), 8 * (i - 1), 1)] for i in (1, 2, 3, 4)},
    **{("global_dim", i): [(0x20 + 4 * i, 0xFFFFFFFF, 0, 1)] for i in range(5)},
    **{("element_stride", i): [(0x34, 7 << 3 * i, 3 * i, 1)] for i in range(5)},
    **{("global_stride", i): [(0xC + 4 * i, 0xFFFFFFFF, -4, 0), (0x1C, 0xF << 4 * i, 4 * i - 36, 0)] for i in range(4)},
    ("interleave_layout", 0): [(0x8, 0x1800, 11, 0)],
    ("fill_mode", 0): [(0x8, 0x8000, 15, 0)],
    ("swizzle_atomicity", 0): [(0x8, 0x380000, 19, 0)],
}
PTXAS_WORD2 = {  # (field, value): [(mask, bits)]
    **{("elemtype", i): [(0x780, i << 7)] for i in range(11)},
    ("elemtype", 11): [(0x10000, 0x10000), (0x780, 0x380)],
    ("elemtype", 12): [(0x10000, 0x10000), (0x780, 0x400)],
    **{("elemtype", i): [(0x780, (i - 2) << 7)] for i in (13, 14, 15)},
    **{("swizzle_mode", i): [(0x6000, i << 13), (0x400000, 0)] for i in range(4)},
    ("swizzle_mode", 4): [(0x6000, 0), (0x400000, 0x400000)],
}


def test_replace_does_what_ptxas_emits():
    rng = random.Random(1)
    legal = {"rank": 4, "interleave_layout": 2, "fill_mode": 1, "swizzle_atomicity": 3, "global_stride": 1 << 40}
    legal |= {"box_dim": 256, "element_stride": 8, "global_dim": 1 << 32}
    for (field, ordinal), parts in PTXAS.items():
        for _ in range(20):
            words = np.array([rng.getrandbits(32) for _ in range(32)], np.uint32)
            subtrahend = parts[0][3]
            value = rng.randint(subtrahend, legal[field])
            expected = words.copy()
            for offset, mask, shift, minus in parts:
                moved = value - minus << shift if shift >= 0 else value - minus >> -shift
                expected[offset // 4] = int(expected[offset // 4]) & ~mask | moved & mask
            replace_field(words, field, value, ordinal)
            np.testing.assert_array_equal(words, expected, err_msg=f"{field} {ordinal}")
    for (field, value), parts in PTXAS_WORD2.items():
        words = np.array([rng.getrandbits(32) for _ in range(16)], np.uint32)
        expected = words.copy()
        for mask, bits in parts:
            expected[2] = int(expected[2]) & ~mask | bits
        replace_field(words, field, value)
        np.testing.assert_array_equal(words, expected, err_msg=f"{field} = {value}")


def test_replace_turns_one_descriptor_into_another():
    """As grouped kernels do: address, sizes and strides of a group."""
    words = np.frombuffer(BASE.encode(), np.uint32).copy()
    replace_field(words, "global_address", 0x7F0012345670)
    for i, size in enumerate((77, 1 << 32)):
        replace_field(words, "global_dim", size, i)
    replace_field(words, "global_stride", (1 << 40) - 16)
    changed = dataclasses.replace(BASE, address=0x7F0012345670, dims=(77, 1 << 32), strides=((1 << 40) - 16,))
    assert TensorMap.decode(words.tobytes()) == changed


@pytest.mark.parametrize("field, ordinal", [("global_stride", 4), ("box_dim", 5), ("colour", 0)])
def test_replace_rejects_what_ptx_has_not(field, ordinal):
    with pytest.raises(ValueError, match=field):
        replace_field(np.zeros(16, np.uint32), field, 1, ordinal)


def test_every_field_survives_a_round_trip():
    rng = random.Random(2)
    for element in ElementType:
        for swizzle in Swizzle:
            rank = rng.randint(1, 5)
            tensor_map = TensorMap(
                address=rng.getrandbits(57),
                element_type=element,
                dims=tuple(rng.randint(1, 1 << 32) for _ in range(rank)),
                strides=tuple(rng.getrandbits(36) << 4 for _ in range(rank - 1)),
                box=tuple(rng.randint(1, 256) for _ in range(rank)),
                element_strides=tuple(rng.randint(1, 8) for _ in range(rank)),
                swizzle=swizzle,
                atomicity=rng.choice(list(Atomicity)),
                interleave=rng.choice(list(Interleave)),
                nan_fill=rng.random() < 0.5,
                l2_promotion=rng.randint(0, 3),
            )
            assert TensorMap.decode(tensor_map.encode()) == tensor_map


@pytest.mark.parametrize(
    "index, bit",
    [(2, 2), (2, 3), (2, 23), (2, 31), (13, 15), (13, 23), (2, 16), (2, 6)],
    ids=["mode", "mode", "word 2", "word 2", "word 13", "word 13", "TF32 flag of BF16", "rank 6"],
)
def test_bits_without_a_meaning_are_refused(index, bit):
    words = np.frombuffer(BASE.encode(), np.uint32).copy()
    words[index] |= np.uint32(1 << bit)
    with pytest.raises(ValueError, match="TMA descriptor"):
        TensorMap.decode(words.tobytes())


@pytest.mark.parametrize(
    "element, row, shared, transaction",
    [
        (ElementType.BF16, 256, 256, 256),
        (ElementType.F64, 1024, 1024, 1024),
        (ElementType.B4X16, 64, 64, 64),
        (ElementType.B4X16_P64, 64, 128, 64),
        (ElementType.B6X16_P32, 96, 128, 96),
    ],
)
def test_bytes_of_a_box(element, row, shared, transaction):
    tensor_map = TensorMap(0, element, (1024, 512, 16), (1024, 1 << 20), (128, 8, 4), (1, 1, 2))
    assert tensor_map.counts == (128, 8, 2) and tensor_map.rows == 16
    assert tensor_map.row_bytes == row
    assert (tensor_map.shared_bytes, tensor_map.transaction_bytes) == (16 * shared, 16 * transaction)


def test_boxes_that_the_hardware_does_not_define():
    with pytest.raises(NotImplementedError, match="element strides"):
        _ = dataclasses.replace(BASE, element_strides=(1, 3)).counts
    with pytest.raises(ValueError, match="16-byte chunks"):
        _ = dataclasses.replace(BASE, box=(12, 8)).row_bytes


# --- what host code of CuTe DSL hands to a kernel ---------------------------------------------------------------------


class OneAtom:
    """Makes a TMA atom of a tensor and passes it to a kernel; `box` is the smem tile, (rows, columns) or (columns,)."""

    def __init__(self, op, box: tuple[int, ...], swizzle: int) -> None:
        self.op, self.box, self.swizzle = op, box, swizzle

    @cute.kernel
    def kernel(self, atom: cute.CopyAtom, tensor: cute.Tensor):
        cpasync.prefetch_descriptor(atom)

    @cute.jit
    def __call__(self, tensor: cute.Tensor):
        strides = tuple(math.prod(self.box[i + 1 :]) for i in range(len(self.box)))
        outer = cute.make_layout(self.box, stride=strides)
        layout = cute.make_composed_layout(cute.make_swizzle(self.swizzle, 4, 3), 0, outer)
        atom, coordinates = cpasync.make_tiled_tma_atom(self.op, tensor, layout, self.box)
        self.kernel(atom, coordinates).launch(grid=(1, 1, 1), block=(32, 1, 1))


LOAD, STORE, ADD = (
    cpasync.CopyBulkTensorTileG2SOp(),
    cpasync.CopyBulkTensorTileS2GOp(),
    cpasync.CopyReduceBulkTensorTileS2GOp(),
)


@pytest.mark.parametrize(
    "arch, dtype, shape, box, swizzle, op",
    [
        ("sm_90a", torch.bfloat16, (256, 192), (64, 64), 3, LOAD),
        ("sm_90a", torch.float32, (64, 100), (16, 32), 3, ADD),
        ("sm_90a", torch.int8, (5, 6, 64), (2, 3, 32), 1, LOAD),
        ("sm_90a", torch.float32, (128,), (64,), 0, LOAD),
        ("sm_100a", torch.float4_e2m1fn_x2, (64, 128), (16, 256), 3, LOAD),
        ("sm_120a", torch.float16, (37, 200), (8, 32), 2, STORE),
    ],
)
def test_descriptors_that_cute_dsl_encodes(arch, dtype, shape, box, swizzle, op, tmp_path):
    """The canary: host code writes descriptors itself, in the format of the hardware, which nobody documents."""
    padded = (*shape[:-1], shape[-1] + 16 * (len(shape) > 1))
    bytes_each = torch.empty((), dtype=dtype).element_size()
    tensor = torch.zeros(math.prod(padded) * bytes_each, dtype=torch.uint8).view(dtype).view(padded)[..., : shape[-1]]
    cuda, _ = as_cuda(tensor)
    example = from_dlpack(cuda, assumed_align=16, enable_tvm_ffi=True).mark_layout_dynamic(leading_dim=len(shape) - 1)
    options = f"--enable-tvm-ffi --gpu-arch {arch} --keep-ptx --dump-dir={tmp_path}"
    compiled = cute.compile(OneAtom(op, box, swizzle), example, options=options)
    launches: list = []
    call(compiled, (tensor,), launches.append, DEVICES[arch.strip("a").replace("_", "")])
    types = {
        torch.bfloat16: ElementType.BF16,
        torch.float16: ElementType.F16,
        torch.float32: ElementType.F32,
        torch.int8: ElementType.U8,
        torch.float4_e2m1fn_x2: ElementType.B4X16,
    }
    dims = list(shape[::-1])
    dims[0] *= 8 * bytes_each // types[dtype].bits
    assert TensorMap.decode(launches[0].params[0]) == TensorMap(
        address=tensor.data_ptr(),
        element_type=types[dtype],
        dims=tuple(dims),
        strides=tuple(stride * bytes_each for stride in tensor.stride()[-2::-1]),
        box=box[::-1],
        element_strides=(1,) * len(shape),
        swizzle=Swizzle(swizzle),
        l2_promotion=2,
    )
