"""The slow, plain answer to every reducer: snapshots along axis 0."""

import numpy as np

import ensemblekit as ek
from ensemblekit.averaging.reducer import cuts_of_reducer

EDGES = np.array([-2.0, -0.5, 0.0, 0.25, 1.0, 2.0])


def moments(x, w):
    w = np.ones(len(x)) if w is None else w
    total = w.sum()
    mean = np.tensordot(w, x, 1) / total
    freedom = total - (w**2).sum() / total
    square = np.tensordot(w, np.abs(x - mean) ** 2, 1)
    return [mean, square / freedom if freedom > 1e-12 * total else np.full(x.shape[1:], np.nan)]


def shape(x, w):
    w = np.ones(len(x)) if w is None else w
    mean = np.tensordot(w, x, 1) / w.sum()
    m2, m3, m4 = (np.tensordot(w, (x - mean) ** k, 1) / w.sum() for k in (2, 3, 4))
    with np.errstate(all="ignore"):
        return [mean, m3 / m2**1.5, m4 / m2**2 - 3]


def covariance(x, w):
    return [np.average(x, axis=0, weights=w),
            np.atleast_2d(np.cov(x, rowvar=False, aweights=w)) if np.count_nonzero(
                np.ones(len(x)) if w is None else w) > 1 else np.full((x.shape[1],) * 2, np.nan)]


def histogram(x, w):
    return [np.histogram(x, EDGES, weights=None if w is None else np.broadcast_to(w[:, None], x.shape))[0]]


def elementwise(x, w):
    return [np.stack([np.histogram(c, EDGES, weights=w)[0] for c in x.T])]


def exponential(x, w):
    c = 0.9 ** np.arange(len(x) - 1, -1, -1) * (1.0 if w is None else w)
    return [c @ x / c.sum()]


def from_first(x, w):
    average = x[0]
    for row in x[1:]:
        average = 0.9 * average + 0.1 * row
    return [average]


def window(x, w):
    return [np.average(x[-7:], axis=0, weights=None if w is None else w[-7:])]


# name -> (pattern, numbers of its result, the plain answer, takes weights)
TIME_CASES = {
    "Moments": (ek.Moments(), lambda r: [r.mean, r.variance], moments, True),
    "Moments(4)": (ek.Moments(4), lambda r: [r.mean, r.skewness, r.kurtosis], shape, True),
    "Covariance": (ek.Covariance(), lambda r: [r.mean, r.covariance], covariance, True),
    "Extremes": (ek.Extremes(), lambda r: [r.low, r.high, r.at_low, r.at_high],
                 lambda x, w: [x.min(0), x.max(0), x.argmin(0), x.argmax(0)], True),
    "Histogram": (ek.Histogram(EDGES), lambda r: [r.counts], histogram, True),
    "Histogram elementwise": (ek.Histogram(EDGES, elementwise=True), lambda r: [r.counts], elementwise, True),
    "Series": (ek.Series(), lambda r: [r], lambda x, w: [x], True),
    "Exponential": (ek.Exponential(0.9), lambda r: [r], exponential, True),
    "Exponential first": (ek.Exponential(0.9, start="first"), lambda r: [r], from_first, False),
    "Window": (ek.Window(7), lambda r: [r], window, True),
}
SPACE_CASES = {
    "Gram": (ek.Gram(), lambda r: [r], lambda x, w: [x @ x.T], True),
    "Gram mean": (ek.Gram("mean"), lambda r: [r], lambda x, w: [(x - x.mean(0)) @ (x - x.mean(0)).T], True),
    **{name: case for name, case in TIME_CASES.items() if "space" in cuts_of_reducer(case[0])},
}
