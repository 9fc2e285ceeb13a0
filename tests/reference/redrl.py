"""The losses of REDRL transcribed from its equations and the sheet of its code, image by image, in float64."""

import math

import torch


def pixel(restored, clean):
    total = 0.0
    for a, b in zip(restored.tolist(), clean.tolist(), strict=True):
        for plane_a, plane_b in zip(a, b, strict=True):
            for row_a, row_b in zip(plane_a, plane_b, strict=True):
                total += sum(abs(p - q) for p, q in zip(row_a, row_b, strict=True))
    return total / len(restored)


def feature(restored, clean):
    lengths = [math.sqrt(((a - b) ** 2).sum().item()) for a, b in zip(restored, clean, strict=True)]
    return sum(lengths) / len(lengths)


def cross_entropy(logits, targets, smoothing=0.0):
    """With the target (1 - s) onehot + s / K."""
    total, many = 0.0, logits.shape[1]
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(v) for v in row))
        wanted = [(1 - smoothing) * (k == target) + smoothing / many for k in range(many)]
        total -= sum(w * (v - log_sum) for w, v in zip(wanted, row, strict=True))
    return total / len(logits)


def terms(method, features, classifier, batch, smoothing, at_64=True):
    """L_AC, L_R, L_F and L_IC of a batch, with the factors that bring them to images of 3 x 64 x 64."""
    with torch.no_grad():
        restored = torch.stack([method.reconstructor(x[None])[0] for x in batch.adv])
        bounded = torch.minimum(torch.maximum(restored, torch.zeros(())), torch.ones(()))
        logits = method.recogniser(torch.cat([batch.adv - bounded, batch.adv], dim=1))
        truth, found = features(batch.clean), features(restored)
        label = classifier(batch.clean).argmax(1)
        return {
            "attack": cross_entropy(logits.double(), batch.attack, smoothing),
            "pixel": pixel(restored.double(), batch.clean.double()) * (12288 / restored[0].numel() if at_64 else 1),
            "feature": feature(found.double(), truth.double()) * ((65536 / truth[0].numel()) ** 0.5 if at_64 else 1),
            "class": cross_entropy(classifier(restored).double(), label),
        }
