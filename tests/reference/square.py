"""The linf Square attack of its authors, one image at a time, written from their paper and the public code's behaviour.

Andriushchenko, Croce, Flammarion and Hein (ECCV 2020), algorithms 1 and 2. Where a window of new signs would change
nothing, the signs are drawn again. Draws come from a numpy generator.
"""

import torch

HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000


def margin(model, image, label):
    z = model(image[None])[0]
    return float(z[label] - max(z[k] for k in range(len(z)) if k != label))


def square_linf(model, x, label, eps, queries, p_init, draws, redraw=True):
    """Image, queries used, and how many proposals changed nothing; x is (C, H, W)."""
    channels, height, width = x.shape
    stripes = torch.tensor(draws.choice([-eps, eps], size=(channels, 1, width)), dtype=torch.float32)
    best = (x + stripes).clamp(0, 1)
    lowest, idle = margin(model, best, label), 0
    for query in range(2, queries + 1):
        if lowest < 0:
            return best, query - 1, idle
        at = int((query - 1) / queries * 10_000)
        side = round((p_init / 2 ** sum(at > k for k in HALVED_AFTER) * height * width) ** 0.5)
        side = min(max(side, 1), height, width)
        top, left = draws.integers(height - side + 1), draws.integers(width - side + 1)
        place = (slice(None), slice(top, top + side), slice(left, left + side))
        while True:
            signs = torch.tensor(draws.choice([-eps, eps], size=(channels, 1, 1)), dtype=torch.float32)
            tried = best.clone()
            tried[place] = (x[place] + signs).clamp(0, 1)
            if not redraw or bool((tried != best).any()):
                break
        idle += int(torch.equal(tried, best))
        now = margin(model, tried, label)
        if now < lowest:
            best, lowest = tried, now
    return best, queries, idle
