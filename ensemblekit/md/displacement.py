"""Squared displacements over all windows of paths, the diffusion coefficient they give, and its errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ensemblekit.averaging.resample import jackknife_values
from ensemblekit.scaling import ldexp, power_of_two, representable, scaled

CHUNK_BYTES = 48 << 20
"""What the Fourier transforms of one chunk of atoms may take."""
TILE_BYTES = 1 << 20
"""What those of one tile of paths may take: they stay in the cache."""
FEWEST_GROUPS = 8
"""Groups of molecules below which their scatter says little."""
MOST_LAGS = 64
"""Lags of a fit; more of them, so close together, say the same."""
BOLTZMANN = 1.380649e-23
"""J / K, exact (SI 2019)."""


def squared_displacements(positions: np.ndarray, groups: np.ndarray, *, cells: np.ndarray | None = None,
                          columns: tuple[int, ...] = (0, 1, 2), lags: int | None = None) -> tuple[np.ndarray, float]:
    """Mean squared displacement over all windows, by group of atoms.

    Arguments:
        positions: (n, atoms, 3), evenly spaced in time; read atom by atom, so it may be mapped from a file.
        groups: (atoms,) the group of each atom, from 0.
        cells: (n, 3, 3) to unwrap with; None: the paths are taken as they are.
        columns: of the three, those that count.
        lags: how many, lag 0 included; None: n.

    Returns:
        (groups, lags) in the square of the unit of the positions, and the longest step of any atom as a share of half the
        shortest box side (0.0 without cells).

    By Fourier transforms, O(n log n) an atom: Kneller et al., Comput. Phys. Commun. 91, 191 (1995).
    """
    from scipy.fft import irfft, next_fast_len, rfft

    from ensemblekit.md.kernels_msd import add_squared, unwrap

    n, atoms = positions.shape[:2]
    lags = n if lags is None else min(lags, n)
    size = next_fast_len(n + lags, real=True)
    step = max(1, CHUNK_BYTES // (size * 8 * 3 * 4))
    tile = max(4, TILE_BYTES // (size * 8 * 4))
    sums = np.zeros((int(groups.max()) + 1, lags))
    longest = 0.0
    for first in range(0, atoms, step):
        paths = np.array(positions[:, first:first + step], np.float64, order="C")
        e = power_of_two(paths) if positions.dtype.itemsize > 4 else 0
        paths = ldexp(paths, -e)
        if cells is not None:
            longest = max(longest, unwrap(paths, ldexp(np.asarray(cells, np.float64), -e) if e else cells))
        n_paths = paths.shape[1]
        owner = np.repeat(np.asarray(groups[first:first + n_paths], np.int64), len(columns))
        flat = np.ascontiguousarray(paths[:, :, list(columns)].reshape(n, -1).T)     # each path in one piece of memory
        del paths
        flat -= flat.mean(axis=1, keepdims=True)
        part = np.zeros_like(sums) if e else sums
        for a in range(0, len(flat), tile):
            some = flat[a:a + tile]
            spectrum = rfft(some, size, axis=1)
            correlation = irfft(spectrum.real**2 + spectrum.imag**2, size, axis=1)
            add_squared(some, correlation, owner[a:a + tile], part)
        if e:
            sums += representable(part, 2 * e, "a squared displacement")
    return sums / np.bincount(groups)[:, None], longest


def brownian_covariance(lags: np.ndarray, n: int) -> np.ndarray:
    """How mean squared displacements over all windows of Brownian paths hang together: (lags, lags), lags from 1.

    In units of the squared displacement of one step, for one path in one dimension. Two sums of steps that share k of them
    have squares with covariance 2 k^2; all pairs of windows are counted (Qian, Sheetz & Elson, Biophys. J. 60, 910 (1991)
    give the diagonal in closed form).
    """
    covariance = np.empty((len(lags), len(lags)))
    for i, m in enumerate(lags):
        for j, other in enumerate(lags[:i + 1]):
            apart = np.arange(-other + 1, m)                    # start of the other window after that of the first
            shared = np.minimum(m, apart + other) - np.maximum(apart, 0)
            pairs = np.minimum(n - m, n - other - apart) - np.maximum(0, -apart)
            total = 2.0 * np.sum(np.maximum(pairs, 0) * shared.astype(float) ** 2)
            covariance[i, j] = covariance[j, i] = total / ((n - m) * (n - other))
    return covariance


def brownian_error(msd: np.ndarray, n: int, paths: float, dimensions: int) -> np.ndarray:
    """Standard error of a mean over all windows where so many paths are Brownian: (lags,), that of lag 0 being 0.

    Qian, Sheetz & Elson, Biophys. J. 60, 910 (1991), appendix B, for each dimension.
    """
    m = np.arange(len(msd), dtype=float)
    k = n - m
    with np.errstate(invalid="ignore", divide="ignore"):
        short = (4 * m**2 * k + 2 * k + m - m**3) / (6 * m * k**2)
        long = 1 + (k**3 - 4 * m * k**2 + 4 * m - k) / (6 * m**2 * k)
        relative = np.where(m <= k, short, long) * 2 / dimensions / paths
    relative[0] = 0.0
    return msd * np.sqrt(np.maximum(relative, 0.0))


@dataclass(frozen=True, slots=True, eq=False)
class Slope:
    """A straight line through squared displacements."""

    slope: float
    """In the unit of the displacements squared over that of the times."""
    intercept: float
    stderr: float
    dof: float
    exponent: float
    """d ln MSD / d ln t in the same window: 1 where there is diffusion, 2 in free flight, below 1 where paths are trapped."""
    exponent_stderr: float
    estimators: dict[str, float]
    """Standard error of the slope by each method, the first being `stderr`."""


def slope_of(groups: np.ndarray, sizes: np.ndarray, times: np.ndarray, lags: np.ndarray, n: int, dimensions: int,
             *, independent: float) -> Slope:
    """The slope of the mean over groups at some lags: least squares, each lag weighted by its Brownian variance.

    Arguments:
        groups: (groups, all lags), the mean of each group; sizes: (groups,) atoms in each.
        times: (all lags,); lags: those of the fit, from 1, at least 2.
        n: frames; independent: how many paths move on their own.

    The error is the scatter of groups (delete-one jackknife, which knows how lags hang together); with fewer than
    FEWEST_GROUPS groups it is that of Brownian paths.
    """
    chosen = lags[np.unique(np.linspace(0, len(lags) - 1, MOST_LAGS).round().astype(int))] if len(lags) > MOST_LAGS else lags
    share = sizes / sizes.sum()
    groups, e = scaled(groups)
    times, f = scaled(times)
    t = times[chosen]
    covariance = brownian_covariance(chosen, n) / dimensions / independent
    line = _line(t, 1 / np.diag(covariance))
    log = _line(np.log(t), chosen.astype(float) ** 2 / np.diag(covariance))[1]

    def both(mean: np.ndarray) -> np.ndarray:
        return np.array([line[1] @ mean, log @ np.log(np.maximum(mean, np.finfo(float).tiny))])

    total = share @ groups
    mean = total[chosen]
    slope, exponent = both(mean)
    step = slope * (times[1] - times[0])        # squared displacement of one step of a Brownian path that spreads so
    expected = covariance * step**2
    brownian = math.sqrt(max(float(line[1] @ expected @ line[1]), 0.0))
    relative = log / (step * chosen)
    errors = {"brownian": brownian}
    stderr, dof = brownian, max(0.5 * (slope / brownian) ** 2, 1.0) if brownian > 0 else math.inf     # as of a variance
    exponent_error = math.sqrt(max(float(relative @ expected @ relative), 0.0)) if step > 0 else math.nan
    if len(groups) >= FEWEST_GROUPS:
        left_out = np.array([both((total - s * g)[chosen] / (1 - s)) for g, s in zip(groups, share, strict=True)])
        jackknife = jackknife_values(np.array([slope, exponent]), left_out, share)
        scatter, exponent_error = (float(v) for v in jackknife.stderr)
        stderr, dof = scatter, len(groups) - 1.0
        errors = {"groups of molecules": scatter, **errors}
    slope, stderr, *others = (representable(x, e - f, "a slope") for x in (float(slope), stderr, *errors.values()))
    return Slope(slope, ldexp(float(line[0] @ mean), e), stderr, dof, float(exponent), exponent_error,
                 dict(zip(errors, others, strict=True)))


def _line(t: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that give intercept and slope of a weighted straight line from its values."""
    w = weights / weights.sum()
    centre = w @ t
    slope = w * (t - centre) / (w @ (t - centre) ** 2)
    return w - centre * slope, slope


def wigner_constant(cell: np.ndarray) -> float:
    """The constant of the finite-size correction of diffusion, for the box of any shape: 2.837297 for a cube.

    Minus the potential at a unit charge of its own lattice of images in a neutralising background, times V^(1/3), by an
    Ewald sum. The mean over directions of the hydrodynamic self-interaction in a periodic box is
    k_B T / (6 pi eta V^(1/3)) times it: Hasimoto, J. Fluid Mech. 5, 317 (1959); Yeh & Hummer, J. Phys. Chem. B 108, 15873
    (2004), equation 12 with the trace taken for any lattice.
    """
    from scipy.special import erfc

    cell = np.asarray(cell, np.float64)
    volume = abs(np.linalg.det(cell))
    cell = cell / np.cbrt(volume)
    alpha = math.sqrt(math.pi)
    reach = 6.0         # erfc(alpha 6) and exp(-pi 36) are both below 1e-47
    direct = _lattice(cell, reach)
    reciprocal = _lattice(np.linalg.inv(cell).T, reach)
    r, k2 = np.linalg.norm(direct, axis=1), (reciprocal**2).sum(1)
    near, far = (erfc(alpha * r) / r).sum(), (np.exp(-math.pi * k2) / (math.pi * k2)).sum()
    return float(2 * alpha / math.sqrt(math.pi) + 1 - near - far)       # itself, and the background


def _lattice(cell: np.ndarray, reach: float) -> np.ndarray:
    """All lattice vectors but zero that are no longer than `reach`, (any, 3)."""
    most = np.floor(reach * np.linalg.norm(np.linalg.inv(cell), axis=0)).astype(int)
    steps = np.stack(np.meshgrid(*(np.arange(-m, m + 1) for m in most), indexing="ij"), -1).reshape(-1, 3)
    vectors = steps[(steps != 0).any(1)] @ cell
    return vectors[(vectors**2).sum(1) <= reach**2]


def finite_size_correction(cell: np.ndarray, temperature: float, viscosity: float) -> float:
    """What a periodic box takes away from a diffusion coefficient, in angstrom^2 / ps.

    cell: (3, 3) in angstrom; temperature in K; viscosity (of the fluid of the model, not of nature) in mPa s.
    """
    length = np.cbrt(abs(np.linalg.det(np.asarray(cell, np.float64)))) * 1e-10
    metres = wigner_constant(cell) * BOLTZMANN * temperature / (6 * math.pi * viscosity * 1e-3 * length)
    return float(metres * 1e8)      # m^2/s = 1e20 angstrom^2 / 1e12 ps
