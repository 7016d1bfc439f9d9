"""The emulator reproduces what an H200 wrote, bit by bit (see `conformance`).

The bound is equality, but for `Recording.slack`: sums are formed as `quack.emulator.arithmetic` documents, and everything after
them is IEEE 754.
"""

import pytest
import torch

import quack
from tests.emulated.conformance import FOLDER, RECORDINGS, Recording


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8).reshape(*tensor.shape, -1)


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda r: r.name)
def test_matches_the_h200(recording: Recording):
    with quack.emulator.use("sm90"):
        output = recording.output("cpu")
    expected = recording.recorded()
    differing = (bits(output) != bits(expected)).any(-1)
    if recording.slack:
        differing &= (output.double() - expected.double()).abs() > recording.slack
    worst = (output.double() - expected.double()).abs().max().item()
    assert not differing.any(), f"{int(differing.sum())} of {differing.numel()} elements differ, by up to {worst:.3g}"


def test_every_recording_is_there_and_small():
    files = {path.stem: path.stat().st_size for path in FOLDER.glob("*.npz")}
    assert files.keys() == {r.name for r in RECORDINGS}
    assert sum(files.values()) < 2_000_000
    # Comparing bits would also pass for two outputs that were never written.
    assert all(r.recorded().float().isfinite().float().mean() > 0.1 for r in RECORDINGS)
