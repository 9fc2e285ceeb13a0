"""The losses of CDD-RED, transcribed from the equations one image at a time, independently of redlab.

Source: "Reverse Engineering of Imperceptible Adversarial Image Perturbations" (ICLR 2022), eq. 2, 3 and 4, with
element means, hard labels, and the set of admitted transformations taken per pair.
"""

import math


def element_mean_l1(restored, clean):
    """Eq. 2 over a batch."""
    total, entries = 0.0, 0
    for r, c in zip(restored, clean, strict=True):
        total = total + (r - c).abs().sum()
        entries += math.prod(c.shape)
    return total / entries


def hard_cross_entropy(logits, label):
    """-log softmax(logits)[label] of one image."""
    return logits.exp().sum().log() - logits[label]


def classes(classifier, images):
    """F: one image at a time."""
    return [int(classifier(image[None])[0].argmax()) for image in images]


def in_set(rule, was, now, was_adv, now_adv, is_original):
    """Whether a pair counts in the benign and in the adversarial term."""
    if rule == "joint":
        return (was == now and was_adv == now_adv,) * 2
    if rule == "separate":
        return was == now, was_adv == now_adv
    if rule == "all":
        return True, True
    return is_original, is_original


def terms(denoiser, classifier, clean, adv, originals, rule):
    """Eq. 2 and the two parts of eq. 3 with their masks.

    clean, adv: transformed pairs. originals: for each of them (x, x', is_original), the pair before the transformation.
    """
    restored = denoiser(adv)
    benign, adversarial, kept = 0.0, 0.0, [0, 0]
    for i, (x, x_adv, is_original) in enumerate(originals):
        was, was_adv = classes(classifier, [x, x_adv])
        now, now_adv = classes(classifier, [clean[i], adv[i]])
        counts, counts_adv = in_set(rule, was, now, was_adv, now_adv, is_original)
        if counts:
            benign = benign + hard_cross_entropy(classifier(restored[i][None])[0], now)
        if counts_adv:
            re_attacked = adv[i] - restored[i] + clean[i]
            adversarial = adversarial + hard_cross_entropy(classifier(re_attacked[None])[0], now_adv)
        kept[0] += counts
        kept[1] += counts_adv
    return element_mean_l1(restored, clean), benign / max(1, kept[0]), adversarial / max(1, kept[1])


def objective(denoiser, classifier, clean, adv, originals, rule, lam):
    """Eq. 4."""
    reconstruction, benign, adversarial = terms(denoiser, classifier, clean, adv, originals, rule)
    return reconstruction + lam * (benign + adversarial)
