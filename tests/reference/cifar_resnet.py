"""He et al. 2016, section 4.2, in eval mode, out of a state dict with the names of the public weights."""

import torch
import torch.nn.functional as F


def count(depth, shortcut, channels=3, classes=10):
    """Parameters: 3x3 convolutions without bias, two numbers of each batch norm's channel, one linear layer."""
    n, total = (depth - 2) // 6, 9 * channels * 16 + 2 * 16
    for stage, width in enumerate((16, 32, 64)):
        total += (2 * n) * (9 * width * width + 2 * width)
        if stage:
            total -= 9 * width * (width // 2)  # the first convolution takes half the channels
            total += {"A": 0, "B": width * (width // 2) + 2 * width}[shortcut]
    return total + 64 * classes + classes


def logits(state, x, depth, shortcut):
    def norm(name, h):
        mean, var, weight, bias = (
            state[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (h - mean) / torch.sqrt(var + 1e-5) * weight + bias

    h = torch.relu(norm("bn1", F.conv2d(x, state["conv1.weight"], padding=1)))
    for stage in (1, 2, 3):
        for block in range((depth - 2) // 6):
            name, down = f"layer{stage}.{block}", stage > 1 and block == 0
            inner = F.conv2d(h, state[f"{name}.conv1.weight"], stride=2 if down else 1, padding=1)
            inner = F.conv2d(torch.relu(norm(f"{name}.bn1", inner)), state[f"{name}.conv2.weight"], padding=1)
            if down and shortcut == "B":
                h = norm(f"{name}.shortcut.1", F.conv2d(h, state[f"{name}.shortcut.0.weight"], stride=2))
            elif down:
                zeros = torch.zeros_like(h[:, ::2, ::2, ::2])
                h = torch.cat([zeros, h[:, :, ::2, ::2], zeros], dim=1)
            h = torch.relu(norm(f"{name}.bn2", inner) + h)
    return h.mean(dim=(2, 3)) @ state["linear.weight"].T + state["linear.bias"]
