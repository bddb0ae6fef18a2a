"""Weights in fewer bits: the formats, from and to floating point. Knows no file and no model."""
