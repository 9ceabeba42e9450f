"""Measuring: distances between feature sets, encoders, protocols."""
