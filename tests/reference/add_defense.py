"""The losses of ADD-Defense transcribed from its equations and the sheet, number by number, in float64."""

import math

import numpy as np


def mmd(a, b, scales):
    """Appendix B: three double sums; the mean of five Gaussian kernels of 2 sigma^2 = scale."""

    def kernel(u, v):
        distance = sum((p - q) ** 2 for p, q in zip(u, v, strict=True))
        return sum(math.exp(-distance / scale) for scale in scales) / len(scales)

    first = sum(kernel(u, v) for u in a for v in a) / len(a) ** 2
    cross = sum(kernel(u, v) for u in a for v in b) / (len(a) * len(b))
    second = sum(kernel(u, v) for u in b for v in b) / len(b) ** 2
    return first - 2 * cross + second


def multi_domain_mmd(domains):
    """Eq. 1."""
    everything = [z for domain in domains for z in domain]
    pairs = [(i, j) for i in range(len(everything)) for j in range(len(everything)) if i != j]
    apart = sorted(sum((p - q) ** 2 for p, q in zip(everything[i], everything[j], strict=True)) for i, j in pairs)
    median = apart[(len(apart) - 1) // 2]
    scales = [median * f for f in (1 / 4, 1 / 2, 1, 2, 4)]
    total = 0.0
    for k, first in enumerate(domains):
        for other, second in enumerate(domains):
            if k != other:
                total += math.sqrt(max(mmd(first, second, scales), 0.0) + 1e-8)
    return total / len(domains) ** 2


def log_softmax(logits):
    top = max(logits)
    total = top + math.log(sum(math.exp(v - top) for v in logits))
    return [v - total for v in logits]


def cross_entropy(logits, wanted):
    return -sum(w * v for w, v in zip(wanted, log_softmax(logits), strict=True))


def one_hot(place, size):
    return [float(i == place) for i in range(size)]


def of_domains(logits, wanted):
    """The sum over domains of the mean cross-entropy."""
    return sum(
        sum(cross_entropy(row, target) for row, target in zip(rows, targets, strict=True)) / len(rows)
        for rows, targets in zip(logits, wanted, strict=True)
    )


def literal(logits):
    """Eq. 2 as printed, with the confused label 1 / K."""
    total, size = 0.0, len(logits)
    for k, rows in enumerate(logits):
        for row in rows:
            said = log_softmax(row)
            specific = sum(y * v for y, v in zip(one_hot(k, size), said, strict=True))
            confused = sum(v / size for v in said)
            total += (specific - confused) / len(rows)
    return total


def prior(means, log_variances):
    """Eq. 3, of each image: KL between Gaussians, summed over z."""
    total = 0.0
    for of_mean, of_log in zip(means, log_variances, strict=True):
        for mean, log in zip(of_mean, of_log, strict=True):
            kl = sum(0.5 * (m * m + math.exp(v) - 1 - v) for m, v in zip(mean, log, strict=True))
            total += kl / len(of_mean)
    return total / len(means)


def moment_prior(domains):
    """Eq. 3 of a Gaussian fitted to each domain, number by number."""
    total = 0.0
    for domain in domains:
        columns = np.asarray(domain, dtype=np.float64)
        mean, variance = columns.mean(0), columns.var(0)
        total += float((0.5 * (mean**2 + variance - 1 - np.log(variance + 1e-6))).sum())
    return total / len(domains)


def mse(restored, targets):
    """Eq. 6, a mean over pixels."""
    return sum(float(((np.asarray(a) - np.asarray(b)) ** 2).mean()) for a, b in zip(restored, targets, strict=True))
