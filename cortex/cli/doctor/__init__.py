"""`cortex doctor`: what a host needs for its roles, looked at check by check. Imports no torch.

Each family of checks is a file: it looks (files, ports, peers) and judges what it saw; judgements
are pure. Every look is bounded, and one that cannot be made is a finding, not a crash.
"""
