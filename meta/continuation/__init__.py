"""Spectra from noisy correlation functions: a solver that learned, and classical methods."""
