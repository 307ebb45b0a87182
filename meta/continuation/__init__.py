"""Spectra from noisy correlation functions: an unrolled solver that learned, and classical methods."""
