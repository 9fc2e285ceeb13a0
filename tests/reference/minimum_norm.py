"""The minimum-norm attacks, transcribed from the papers one image at a time, independently of redlab.

Carlini and Wagner (S&P 2017) with the loops of their code, Moosavi-Dezfooli et al. (CVPR 2016, algorithm 2), Rony et
al. (CVPR 2019, algorithm 1). Every function takes one image (1, C, H, W), and a goal: the class to leave, or to reach.
"""

import math

import torch


def f6(model, image, goal, targeted):
    z = model(image)[0]
    rest = max(z[i] for i in range(len(z)) if i != goal)
    return rest - z[goal] if targeted else z[goal] - rest


def tanh_space(x):
    """As in the papers, but for redlab's change: pixels within 0.02 of black or white start 0.02 away from the end."""
    return torch.atanh(2 * x.clamp(0.02, 0.98) - 1)


def pixels(w, x):
    """(tanh w + 1) / 2; of the pixels near an end, moved back by what they start too far and stretched to the other."""
    p, start = (torch.tanh(w) + 1) / 2, x.clamp(0.02, 0.98)
    up, down = x + (p - start) * (1 - x) / (1 - start), x + (p - start) * x / start
    raw = torch.where(x < 0.02, up, torch.where(x > 0.98, down, p))
    return raw + (raw.clamp(0, 1) - raw).detach()  # the gradient does not see the clip


class Adam:
    """Kingma and Ba (ICLR 2015), algorithm 1."""

    def __init__(self, w, lr):
        self.w, self.lr, self.t = w, lr, 0
        self.m, self.v = torch.zeros_like(w), torch.zeros_like(w)

    def step(self, loss):
        (g,) = torch.autograd.grad(loss, self.w)
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g * g
        m, v = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
        with torch.no_grad():
            self.w -= self.lr * m / (v.sqrt() + 1e-8)


def cw_l2(model, x, goal, targeted, confidence, c, lr, steps, searches):
    """Best image, found or not; the last iterate where none was found. No search step ends early."""
    low, high, best, best_norm, last = 0.0, 1e10, None, math.inf, None
    for _ in range(searches):
        w = tanh_space(x).requires_grad_()
        adam = Adam(w, lr)
        found = False
        for _ in range(steps + 1):
            image = pixels(w, x)
            f = f6(model, image, goal, targeted)
            norm = ((image - x) ** 2).sum()
            loss = norm + c * torch.clamp(f + confidence, min=0)
            last = image.detach()
            if f + confidence < 0:
                found = True
                if norm < best_norm:
                    best, best_norm = image.detach(), norm.item()
            adam.step(loss)
        if found:
            high = min(high, c)
        else:
            low = max(low, c)
        c = (low + high) / 2 if high < 1e9 else c * 10
    return last if best is None else best


def cw_linf(model, x, goal, targeted, c, lr, steps):
    """The loop over tau of the authors' l_inf attack."""
    w, tau, best, best_norm, last = tanh_space(x), 1.0, None, math.inf, None
    while tau > 1 / 256:
        w = w.detach().requires_grad_()
        adam, done, tries = Adam(w, lr), False, 0
        while not done:
            image = pixels(w, x)
            f, delta = f6(model, image, goal, targeted), (image - x).abs()
            last = image.detach()
            if f < 0 and delta.max() < best_norm:
                best, best_norm = image.detach(), delta.max().item()
            if f < 0 and torch.clamp(delta - tau, min=0).sum() < 1e-4 * c:
                done = True
                break
            if tries == steps:
                c, tries = 2 * c, 0
                if c > 20:
                    return last if best is None else best
            tries += 1
            loss = c * torch.clamp(f, min=0) + torch.clamp(delta - tau, min=0).sum()
            adam.step(loss)
        tau = 0.9 * min(tau, delta.max().item())
    return best


def deepfool(model, x, y, norm, steps, overshoot, classes):
    now = x.clone()
    for _ in range(steps):
        now = now.detach().requires_grad_()
        z = model(now)[0]
        if z.argmax() != y:
            break
        shortest, way = math.inf, None
        for k in classes:
            f = z[k] - z[y]
            (g,) = torch.autograd.grad(f, now, retain_graph=True)
            length = f.abs() / (g.abs().sum() if norm == "linf" else g.norm()) + 1e-4
            if length < shortest:
                shortest, way = length, length * (g.sign() if norm == "linf" else g / g.norm())
        now = (now + (1 + overshoot) * way).clamp(0, 1)
    return now.detach()


def ddn(model, x, goal, targeted, steps, gamma, norm, levels):
    delta, best, best_norm, now = torch.zeros_like(x), None, math.inf, x
    farthest = torch.maximum(x, 1 - x).norm()
    for k in range(steps + 1):
        now = now.detach().requires_grad_()
        z = model(now)[0]
        fooled = bool(z.argmax() == goal) == targeted
        if fooled and delta.norm() < best_norm:
            best, best_norm = now.detach(), delta.norm()
        if k == steps:
            break
        j = -torch.log_softmax(z, 0)[goal]
        (g,) = torch.autograd.grad(-j if targeted else j, now)
        a = 0.01 + 0.5 * (1 - 0.01) * (1 + math.cos(math.pi * k / steps))
        delta = delta + a * g / g.norm()
        norm = min((1 - gamma) * norm if fooled else (1 + gamma) * norm, farthest)
        now = x + norm * delta / delta.norm()
        if levels:
            now = torch.round(now * (levels - 1)) / (levels - 1)
        now = now.clamp(0, 1)
        delta = now - x
    return now.detach() if best is None else best
