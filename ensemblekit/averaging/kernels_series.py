"""Loops over one time series, compiled: initial sequences of its autocovariance, and correlation of every suffix."""

from __future__ import annotations

import numpy as np

from ensemblekit.jit import kernel


def geyer_sums(gamma: np.ndarray) -> tuple[float, float, float, int, bool]:
    """Geyer's initial sequences of an autocovariance gamma (lags,): (positive, monotone, convex, pairs, ended).

    The sums are 2 ΣΓ - γ0 with Γ_m = γ_2m + γ_2m+1 up to the first Γ that is not positive; the minorant runs over the
    running minimum of Γ and that final zero, as R's mcmc::initseq has it. `ended` is false where no Γ <= 0 was found.
    """
    most = len(gamma) // 2
    return initial_sequences(gamma, np.empty(most + 1), np.empty(most + 1, np.int64))


@kernel
def initial_sequences(gamma, low, corner):
    """What `geyer_sums` gives; low and corner (lags // 2 + 1,) are room to work in."""
    most = len(gamma) // 2
    positive = 0.0
    monotone = 0.0
    pairs = 0
    ended = False
    while pairs < most:
        pair = gamma[2 * pairs] + gamma[2 * pairs + 1]
        if not pair > 0.0:
            ended = True
            break
        positive += pair
        low[pairs] = low[pairs - 1] if pairs > 0 and low[pairs - 1] < pair else pair
        monotone += low[pairs]
        pairs += 1
    count = pairs
    if ended:
        low[count] = 0.0
        count += 1
    top = 0
    for i in range(count):      # lower convex hull, left to right
        while top >= 2:
            a = corner[top - 2]
            b = corner[top - 1]
            if (low[b] - low[a]) * (i - a) >= (low[i] - low[a]) * (b - a):
                top -= 1
            else:
                break
        corner[top] = i
        top += 1
    convex = 0.0
    for c in range(top - 1):
        a = corner[c]
        b = corner[c + 1]
        slope = (low[b] - low[a]) / (b - a)
        for i in range(a, b):
            convex += low[a] + slope * (i - a)
    if top > 0:
        convex += low[corner[top - 1]]
    return 2.0 * positive - gamma[0], 2.0 * monotone - gamma[0], 2.0 * convex - gamma[0], pairs, ended


@kernel
def suffix_inefficiency(x, sums, starts, product, g, ended):
    """Chodera's g of x[t0:] for every t0 of `starts` (falling), from lagged products added up from the end.

    x (n + lags,) is centred near its mean, with zeros after its n snapshots; sums (n + 1,) are its prefix sums. The
    sum over lags stops at the first C <= 0 beyond lag 3; where the lags do not reach it g is a lower bound and `ended`
    false. One pass: n * lags products, added up in product (lags,), which holds zeros at first.
    """
    n = len(sums) - 1
    lags = len(product)
    at = n
    for s in range(len(starts)):
        t0 = starts[s]
        while at - t0 >= 8:         # eight rows at a time: the products stay in registers that much longer
            at -= 8
            y = x[at:at + lags + 7]
            v0 = y[0]
            v1 = y[1]
            v2 = y[2]
            v3 = y[3]
            v4 = y[4]
            v5 = y[5]
            v6 = y[6]
            v7 = y[7]
            for k in range(lags):
                product[k] += (((v0 * y[k] + v1 * y[k + 1]) + (v2 * y[k + 2] + v3 * y[k + 3]))
                               + ((v4 * y[k + 4] + v5 * y[k + 5]) + (v6 * y[k + 6] + v7 * y[k + 7])))
        while at > t0:
            at -= 1
            value = x[at]
            for k in range(lags):
                product[k] += value * x[at + k]
        m = n - t0
        mean = (sums[n] - sums[t0]) / m
        variance = product[0] / m - mean * mean
        ended[s] = True
        if not variance > 0.0:
            g[s] = m
            continue
        total = 1.0
        t = 1
        while t < m - 1:
            if t >= lags:
                ended[s] = False
                break
            both = (sums[n - t] - sums[t0]) + (sums[n] - sums[t0 + t])
            c = (product[t] - mean * both) / ((m - t) * variance) + mean * mean / variance
            if c <= 0.0 and t > 3:
                break
            total += 2.0 * c * (1.0 - t / m)
            t += 1
        g[s] = total if total > 1.0 else 1.0
