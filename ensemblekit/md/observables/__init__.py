"""Observables: small frozen settings, made ready for a system, then a map over blocks of frames. One family a file."""
