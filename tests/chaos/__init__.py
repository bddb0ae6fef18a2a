"""Faults on purpose, against real processes; what must hold afterwards is in `invariants`."""
