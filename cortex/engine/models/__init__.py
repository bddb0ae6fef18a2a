"""Architectures, one a file. Owns shapes, names and forward; knows no files and no requests."""
