"""Spectra as averages with bands: absorption of an ensemble of nuclei, infrared of a trajectory."""
