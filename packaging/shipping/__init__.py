"""Owns what the packages are: what is installed where, under which version, built how.

Read by `packaging/packages`, `packaging/stage` and `packaging/release`; Python's standard library
alone, since it runs where a package is built.
"""
