"""Many neurons behind one address: fleet, catalogue, placement, routing, relay, metrics.

Owns what is known of the neurons and which replica a request goes to. Knows nothing of weights or
tokens: it never imports torch, and meets a neuron only over HTTP, in the words of `cortex.wire`.
"""
