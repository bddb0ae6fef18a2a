"""Owns what the files and the environment say: cortex.toml, models.toml, neuron.toml.

Knows no role, no network and no trio: files and variables in, frozen values or one clear error out.
"""
