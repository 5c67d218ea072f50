"""Loops over the pixels of one image, compiled: what scores and calibration are made of, summed in one look."""

from __future__ import annotations

import math

import numpy as np

from ensemblekit.jit import kernel

FINE, OCTAVE = 4096, 128
"""Fine bins of confidence: of each of the 32 octaves of 1 - confidence below 1, so many."""


@kernel
def bin_at(confidence, n_bins, right, rounding):
    """The bin of a probability: (lo, hi] where `right`, else [lo, hi); within four roundings of an edge it lies on it."""
    scaled = confidence * n_bins
    nearest = np.rint(scaled)
    if abs(scaled - nearest) <= 4.0 * rounding * n_bins:
        at = nearest - 1.0 if right else nearest
    else:
        at = math.ceil(scaled) - 1.0 if right else math.floor(scaled)
    return min(max(int(at), 0), n_bins - 1)


@kernel
def add_first_choices(p, labels, ignore, has_ignore, right, rounding, bins):
    """Bin first choices: p (classes, pixels), labels (pixels,), bins (n_bins, 3) of count, confidence and right answers.

    Returns 0; 1 where a probability is not finite, 2 where a pixel has no probabilities, 3 where a label is out of range.
    """
    classes, pixels = p.shape
    n_bins = len(bins)
    for k in range(pixels):
        label = labels[k]
        if has_ignore and label == ignore:
            continue
        if label < 0 or label >= classes:
            return 3
        total = 0.0
        first = 0
        low = 0.0
        for c in range(classes):
            x = p[c, k]
            total += x
            if x > p[first, k]:
                first = c
            low = min(low, x)
        if not math.isfinite(total):
            return 1
        if low < 0.0 or abs(total - 1.0) > 1.1e-4:
            return 2
        at = bin_at(p[first, k], n_bins, right, rounding)
        bins[at, 0] += 1.0
        bins[at, 1] += p[first, k]
        if first == label:
            bins[at, 2] += 1.0
    return 0


@kernel
def add_image(p, labels, ignore, has_ignore, right, rounding, floor, betas, sums, of_classes, confusion, curve, gaps, counts,
              z):
    """Everything else, of pixels that :func:`add_first_choices` took: p (classes, pixels), labels (pixels,).

    betas (t,) are inverse temperatures; `floor` stands for a probability of 0 in logarithms. Added to: sums (4,) of pixels,
    right answers, NLL and Brier; of_classes (classes, n_bins, 3) of count, probability and label; confusion (classes,
    classes) of label and choice; curve (t, 2) of the NLL and its slope in log T; gaps (FINE,) of right answer less
    confidence and counts (FINE,), by 1 - confidence. z (classes,) is room to work in.
    """
    classes, pixels = p.shape
    n_bins = of_classes.shape[1]
    tiny = 2.2250738585072014e-308
    for k in range(pixels):
        label = labels[k]
        if has_ignore and label == ignore:
            continue
        first = 0
        square = 0.0
        for c in range(classes):
            x = p[c, k]
            square += x * x
            if x > p[first, k]:
                first = c
            at = bin_at(x, n_bins, right, rounding)
            of_classes[c, at, 0] += 1.0
            of_classes[c, at, 1] += x
            if c == label:
                of_classes[c, at, 2] += 1.0
        own, confidence = p[label, k], p[first, k]
        hit = 1.0 if first == label else 0.0
        sums[0] += 1.0
        sums[1] += hit
        sums[2] -= math.log(max(own, tiny))
        sums[3] += square - 2.0 * own + 1.0
        confusion[label, first] += 1.0
        mantissa, exponent = math.frexp(max(1.0 - confidence, 0.0))
        fine = OCTAVE * 32 - 1
        if mantissa > 0.0 and exponent > -32:
            fine = OCTAVE * min(max(-exponent, 0), 31) + OCTAVE - 1 - int((mantissa - 0.5) * 2 * OCTAVE)
        gaps[fine] += hit - confidence
        counts[fine] += 1.0
        if len(betas):
            most = math.log(max(confidence, floor))
            for c in range(classes):
                z[c] = math.log(max(p[c, k], floor)) - most
            for t in range(len(betas)):
                total, mean = 0.0, 0.0
                for c in range(classes):
                    e = 1.0 if c == first else math.exp(betas[t] * z[c])
                    total += e
                    mean += e * z[c]
                curve[t, 0] += math.log(total) - betas[t] * z[label]
                curve[t, 1] -= betas[t] * (mean / total - z[label])
