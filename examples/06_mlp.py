"""A gated MLP, trained: activation and its derivative run inside the GEMMs, weight gradients add up in place over microbatches.

With no CUDA device everything runs in the emulator, on fewer rows.
"""

import torch

import quack

WIDTH, HIDDEN, MICROBATCHES, STEPS, RATE = 64, 128, 2, 6, 4.0


def train(device: str, rows: int) -> list[float]:
    """Losses of a few steps of gradient descent towards another MLP's outputs."""
    torch.manual_seed(0)
    options = {"hidden_features": HIDDEN, "activation": "swiglu", "device": device, "dtype": torch.bfloat16}
    teacher, student = quack.MLP(WIDTH, **options), quack.MLP(WIDTH, **options, fuse_grad_accum=True, recompute=True)
    batches = [torch.randn(rows, WIDTH, device=device).mul(2).bfloat16() for _ in range(MICROBATCHES)]
    with torch.no_grad():
        targets = [teacher(x) for x in batches]

    losses = []
    for _ in range(STEPS):
        total = 0.0
        for x, target in zip(batches, targets):
            loss = (student(x) - target).float().square().mean() / MICROBATCHES
            loss.backward()
            total += loss.item()
        with torch.no_grad():
            for parameter in student.parameters():
                parameter -= RATE * parameter.grad
                parameter.grad.zero_()  # and not None: the next gradient is added to this buffer
        losses.append(total)
    return losses


def main() -> None:
    if torch.cuda.is_available():
        losses = train("cuda", 4096)
    else:
        print("no CUDA device here: running in the emulator")
        with quack.emulator.use("sm90", sms=8):
            losses = train("cpu", 64)
    print("loss", " ".join(f"{loss:.5f}" for loss in losses))


if __name__ == "__main__":
    main()
