"""Calibrates a run."""
