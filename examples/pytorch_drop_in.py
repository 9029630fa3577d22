"""Train a small network in PyTorch: only the line that makes the optimizer differs from plain torch."""

import torch

import fusedstep.torch


def main(steps: int = 200) -> float:
    """Learn which of two interleaved half circles a point belongs to; return the accuracy."""
    torch.manual_seed(0)
    angle = torch.pi * torch.rand(400)
    moon = torch.arange(400) % 2
    x = torch.stack([angle.cos() + moon, (1 - 2 * moon) * (angle.sin() - 0.25)], 1) + 0.1 * torch.randn(400, 2)

    model = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2))
    optimizer = fusedstep.torch.RMSprop(model.parameters(), lr=2e-2)  # was: torch.optim.RMSprop
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), moon).backward()
        optimizer.step()
        scheduler.step()
    return float((model(x).argmax(1) == moon).float().mean())


if __name__ == "__main__":
    print(f"accuracy {main():.3f}")
