"""Owns what a person types: commands, flags, signals, exit codes, what the terminal shows.

Imports a role only when its command was chosen, so that a gateway starts without torch.
"""
