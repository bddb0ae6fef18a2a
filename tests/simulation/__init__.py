"""Fleets in virtual time: the real control plane over simulated neurons."""
