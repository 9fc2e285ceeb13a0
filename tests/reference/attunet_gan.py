"""Parts of the attention-U-Net GAN transcribed from its sheet, place by place."""

import math

import torch


def gate(gate, x, g):
    """Additive attention of a skip feature x (C, H, W) by a coarser one g, before the last 1x1 convolution and norm."""
    theta, phi, psi = gate.theta.weight, gate.phi, gate.psi
    _, high, wide = g.shape
    alpha = torch.zeros(high, wide)
    for i in range(high):
        for j in range(wide):
            patch = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            t = torch.stack([(theta[k] * patch).sum() for k in range(len(theta))])
            p = phi.weight[:, :, 0, 0] @ g[:, i, j] + phi.bias
            q = (psi.weight[0, :, 0, 0] * torch.clamp(t + p, min=0)).sum() + psi.bias[0]
            alpha[i, j] = 1 / (1 + math.exp(-q))
    return bilinear(alpha, x.shape[1], x.shape[2])


def bilinear(image, high, wide):
    """Pixel centres at i + 1/2; beyond the outermost centres the value of the edge."""
    found = torch.zeros(high, wide)
    for i in range(high):
        for j in range(wide):
            y = min(max((i + 0.5) * image.shape[0] / high - 0.5, 0), image.shape[0] - 1)
            x = min(max((j + 0.5) * image.shape[1] / wide - 0.5, 0), image.shape[1] - 1)
            top, left = int(y), int(x)
            down, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
            v, u = y - top, x - left
            upper = (1 - u) * image[top, left] + u * image[top, right]
            lower = (1 - u) * image[down, left] + u * image[down, right]
            found[i, j] = (1 - v) * upper + v * lower
    return found


def attention(module, x, context, window):
    """(C, H, W): x + gamma * softmax(Q K / sqrt(d)) V over the places in the window."""
    _, high, wide = x.shape

    def project(layer, image):
        return torch.einsum("oc,chw->ohw", layer.weight[:, :, 0, 0], image) + layer.bias[:, None, None]

    query, key, value = project(module.query, x), project(module.key, context), project(module.value, context)
    found = torch.zeros_like(x)
    reach = max(high, wide) if window is None else (window - 1) // 2
    for i in range(high):
        for j in range(wide):
            places = [(k, m) for k in range(high) for m in range(wide) if abs(k - i) <= reach and abs(m - j) <= reach]
            scores = [float(query[:, i, j] @ key[:, k, m]) / math.sqrt(len(query)) for k, m in places]
            total = sum(math.exp(s) for s in scores)
            for s, (k, m) in zip(scores, places, strict=True):
                found[:, i, j] += math.exp(s) / total * value[:, k, m]
    return x + module.gamma * found
