"""Measurements of a student and a teacher without training."""
