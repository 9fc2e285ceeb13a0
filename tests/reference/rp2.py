"""RP2 for one image, with Adam written out in float64, independently of redlab."""

import torch


def rp2(model, x, start, mask, goal, targeted, lr, penalty, steps):
    """The iterate (1, C, H, W) of least loss; ``mask`` is 0 or 1, (H, W)."""
    delta = (start - x).double()
    m, v = torch.zeros_like(delta), torch.zeros_like(delta)
    best, least = None, float("inf")
    for t in range(1, steps + 2):
        delta.requires_grad_()
        logits = model((x + delta * mask).float()).double()
        ce = torch.logsumexp(logits, 1)[0] - logits[0, goal]
        loss = (ce if targeted else -ce) + penalty * torch.linalg.vector_norm(delta * mask)
        if loss.item() < least:
            best, least = (x + delta * mask).detach().float(), loss.item()
        (g,) = torch.autograd.grad(loss, delta)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g  # Kingma and Ba (ICLR 2015), algorithm 1
        moved = delta.detach() - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        delta = (x + moved).clamp(0, 1) - x
    return best
