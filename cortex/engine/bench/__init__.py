"""How fast an engine is on a device, as shares of what the device can do at all.

On random weights of a given shape: speed does not depend on what a model has learnt. Knows no
request that came from anybody.
"""
