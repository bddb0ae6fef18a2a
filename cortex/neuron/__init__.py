"""One machine's models: devices and their threads, memory, loads, requests, and the HTTP API.

Owns what is loaded on this host. Knows nothing of other hosts, of catalogues and of the gateway; it
is asked for a model by id and answers what it has.
"""
