"""Electrostatics and spectra with known answers: constants of lattices, closed forms, and figures of independent programs."""

from __future__ import annotations

import math

import numpy as np

COULOMB = 14.399645478
"""e² / (4 pi epsilon_0) in V angstrom / e (CODATA)."""

# Madelung constants relative to the nearest distance: Sakamoto, J. Chem. Phys. 28, 164 (1958), with more digits by Crandall &
# Buhler, J. Phys. A 20, 5497 (1987). Fractions of the cubic cell, charges, nearest distance over the side of the cell.
FCC = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
MADELUNG = {
    "NaCl": (np.concatenate([FCC, FCC + np.array([0.5, 0, 0])]), np.repeat([1.0, -1.0], 4), 0.5, 1.747564594633),
    "CsCl": (np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), np.array([1.0, -1.0]), math.sqrt(3) / 2, 1.762674773071),
    "ZnS": (np.concatenate([FCC, FCC + 0.25]), np.repeat([1.0, -1.0], 4), math.sqrt(3) / 4, 1.638055053389),
}

# Potential at a unit charge of a lattice in a uniform background, in k_C / a, a the side of the cubic cell:
# Nijboer & Ruijgrok, J. Stat. Phys. 53, 361 (1988). Rows are primitive vectors.
WIGNER = {
    "simple cubic": (np.eye(3), -2.8372974795),
    "bcc": (np.array([[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5]]), -3.6392334495),
    "fcc": (np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]), -4.5848620741),
}

# MDAnalysisTests PSF_TRICLINIC + DCD_TRICLINIC, charges rounded to 3 digits: by two programs independent of this one and of
# each other, which agree to the digits given. V / angstrom, V, e angstrom.
ATOM_0 = {"field": (0.2030066, -1.6126321, -5.7928980), "potential": 13.433532}
MIDPOINT = {"mean": 1.259741658, "sd": 0.354574154, "vacuum": 1.250138545, "nearest": 1.290780392, "potential": -0.051660994,
            "field_0": (0.076452631, 0.121883725, 1.634125167), "potential_0": 0.271461506,
            "dipole_0": (1.296963854, -3.808777154, 2.197113718)}

# Frame 0 of the DNA of the shared data, sodium of index 29471, without itself.
SODIUM = {"field": (-0.4038335, -0.1332972, 0.2083201), "potential": -7.9259353}


def between_planes(density: float, distance: float, height: float) -> tuple[float, float]:
    """Field between two planes of charge ± density, and outside them, repeated along z with tin-foil around; over k_C."""
    return 4 * math.pi * density * (1 - distance / height), -4 * math.pi * density * distance / height


# One line of 4 eV, strength 0.1, Gaussian of 0.1 eV: 1.0976098671 * 0.1 / (0.1 sqrt(2 pi)) * 26153.82501 at its maximum; with
# the factor (4 / E) its area is 1 + s² + 3 s⁴ + 15 s⁶ ... times as large, s = 0.1 / 4.
LINE_PEAK = 11452.3149
LINE_AREA = 1.000626175


def broadened(energies: np.ndarray, center: float, spread: float, width: float, strength: float) -> np.ndarray:
    """Cross section (angstrom²) of a line whose energy is normal about a center, without the factor of 1 / E."""
    s2 = spread**2 + width**2
    return 1.0976098671 * strength * np.exp(-0.5 * (energies - center) ** 2 / s2) / np.sqrt(2 * np.pi * s2)


# A charge on a damped spring (Langevin): n alpha = q² gamma / (c V m epsilon_0) w² / ((w0² - w²)² + gamma² w²), whose maximum
# is SPRING_PEAK q² / (m V gamma) cm-1 and whose integral SPRING_AREA q² / (m V) cm-2 (e, u, angstrom³, 1 / ps; three
# directions), or SPRING_MOLAR km / mol per e² / u and direction.
SPRING_PEAK = 58_237_437.4
SPRING_AREA = 485_647_952.4
SPRING_MOLAR = 974.880110
PS_PER_CM = 33.35640952
"""1 / ps in cm-1."""


def spring_spectrum(nu: np.ndarray, line: float, gamma: float, q: float, m: float, volume: float) -> np.ndarray:
    """n alpha in cm-1 at wavenumbers nu; gamma in 1 / ps."""
    w, w0 = 2 * np.pi * nu / PS_PER_CM, 2 * np.pi * line / PS_PER_CM
    return SPRING_PEAK * q**2 * gamma / (m * volume) * w**2 / ((w0**2 - w**2) ** 2 + gamma**2 * w**2)


def spring_path(n: int, step: float, line: float, gamma: float, m: float, temperature: float, seed: int,
                dims: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Positions and velocities (n, dims) in angstrom and angstrom / ps, by the exact propagator of the Langevin equation."""
    from scipy.linalg import expm

    w, kt = 2 * np.pi * line / PS_PER_CM, 0.831446261815324 * temperature       # u angstrom² / ps²
    flow = expm(step * np.array([[0.0, 1.0], [-w * w, -gamma]]))
    still = np.diag([kt / (m * w * w), kt / m])
    noise = np.linalg.cholesky(still - flow @ still @ flow.T)
    rng = np.random.default_rng(seed)
    kicks = np.einsum("ij,njk->nik", noise, rng.normal(size=(n, 2, dims)))
    out = np.empty((n, 2, dims))
    out[0] = np.linalg.cholesky(still) @ rng.normal(size=(2, dims))
    for k in range(1, n):
        out[k] = flow @ out[k - 1] + kicks[k]
    return out[:, 0], out[:, 1]
