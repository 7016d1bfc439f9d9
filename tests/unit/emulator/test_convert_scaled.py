"""cvt from s2f6 to bf16 with ue8m0 scales (PTX ISA 9.1): all bytes, by the definition of the format."""

import numpy as np
import pytest

from tests.unit.emulator.ptx_kernels import load_registers, run_kernel, store_registers

LARGEST = np.array([0x7F7F0000], np.uint32).view(np.float32)[0]


def convert(options: str, pairs: np.ndarray, scales: int) -> np.ndarray:
    """float32 (n, 2) of n pairs of bytes."""
    words = np.zeros((-(-len(pairs) // 32) * 32,), np.uint32)
    words[: len(pairs)] = pairs.astype(np.uint8).view(np.uint16).reshape(-1)
    out = np.zeros_like(words)
    operand = f", {scales:#x}" if "scaled" in options else ""
    body = load_registers(["%r0"], "%in0", "%rd1") + "\ncvt.u16.u32 %rs0, %r0;\n"
    body += f"cvt.rn{options}.bf16x2.s2f6x2 %r1, %rs0{operand};\n" + store_registers(["%r1"], "%in1", "%rd1")
    for first in range(0, len(words), 32):
        run_kernel(body, words[first : first + 32], out[first : first + 32])
    halves = out.view(np.uint16).reshape(-1, 2)[: len(pairs)]
    return (halves.astype(np.uint32) << 16).view(np.float32)


PAIRS = np.stack([np.arange(-128, 128), np.arange(-128, 128)[::-1]], axis=1)


@pytest.mark.parametrize("scales", [0x8585, 0x7F80, 0x0001, 0xFEFD])
def test_every_byte(scales):
    expected = PAIRS * 2.0**-6 * 2.0 ** (np.array([scales & 255, scales >> 8]) - 127)
    expected = np.where(expected <= -(2.0**128), -np.inf, expected).astype(np.float32)
    np.testing.assert_array_equal(convert(".scaled::n2::ue8m0", PAIRS, scales), expected)
    saturated = np.clip(expected, -LARGEST, LARGEST)
    np.testing.assert_array_equal(convert(".satfinite.scaled::n2::ue8m0", PAIRS, scales), saturated)
    np.testing.assert_array_equal(convert(".satfinite.relu.scaled::n2::ue8m0", PAIRS, scales), np.maximum(saturated, 0))


def test_without_scale_and_with_nan():
    np.testing.assert_array_equal(convert("", PAIRS, 0), PAIRS / 64)
    result = convert(".satfinite.scaled::n2::ue8m0", PAIRS, 0xFF7F)
    assert np.isnan(result[:, 1]).all() and not np.isnan(result[:, 0]).any()
