"""Calibration: how often innocent encoders are accused, measured with fresh keys."""
