"""A tiny mixture of experts, trained: tokens are sorted by expert and multiplied without padding.

Forward and dX are varlen-M GEMMs (each expert owns rows), dW is a varlen-K GEMM (each expert sums over its rows); the offsets
stay on the device. With no CUDA device everything runs in the emulator.
"""

import torch

import quack

TOKENS, WIDTH, HIDDEN, EXPERTS, STEPS, RATE = 192, 64, 128, 4, 6, 8.0


class ExpertLinear(torch.autograd.Function):
    """y[rows of e] = x[rows of e] @ weight[e]; x (tokens, K), weight (E, K, N), offsets (E + 1,) int32."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight, offsets)
        return quack.gemm(x, weight, cu_seqlens_m=offsets)

    @staticmethod
    def backward(ctx, dy: torch.Tensor):
        x, weight, offsets = ctx.saved_tensors
        dy = dy.contiguous()
        dx = quack.gemm(dy, weight.mT, cu_seqlens_m=offsets)
        dweight = quack.gemm(x.mT, dy, cu_seqlens_k=offsets)
        return dx, dweight, None


def expert_mlp(x: torch.Tensor, expert: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor) -> torch.Tensor:
    """Each token through the MLP of its expert; expert (tokens,) int64."""
    order = expert.argsort()
    counts = torch.bincount(expert, minlength=len(w1))
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
    hidden = torch.relu(ExpertLinear.apply(x[order].contiguous(), w1, offsets))
    y = ExpertLinear.apply(hidden, w2, offsets)
    return torch.empty_like(y).index_copy(0, order, y)


def train(device: str) -> list[float]:
    """Losses of a few steps of gradient descent towards another mixture's outputs."""
    torch.manual_seed(0)

    def weights(k: int, n: int) -> torch.Tensor:
        return torch.randn(EXPERTS, k, n, device=device).div(k**0.5).bfloat16()

    x = torch.randn(TOKENS, WIDTH, device=device).bfloat16()
    expert = torch.randint(EXPERTS, (TOKENS,), device=device)
    target = expert_mlp(x, expert, weights(WIDTH, HIDDEN), weights(HIDDEN, WIDTH))
    parameters = [weights(WIDTH, HIDDEN).requires_grad_(), weights(HIDDEN, WIDTH).requires_grad_()]
    losses = []
    for _ in range(STEPS):
        loss = (expert_mlp(x, expert, *parameters) - target).float().square().mean()
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients):
                parameter -= RATE * gradient
        losses.append(loss.item())
    return losses


def main() -> None:
    if torch.cuda.is_available():
        losses = train("cuda")
    else:
        print("no CUDA device here: running in the emulator")
        with quack.emulator.use("sm90", sms=8):
            losses = train("cpu")
    print("loss", " ".join(f"{loss:.4f}" for loss in losses))


if __name__ == "__main__":
    main()
