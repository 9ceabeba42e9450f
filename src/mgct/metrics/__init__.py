"""Measuring: distances between feature sets, encoders, synchrony, protocols, metric cards."""
