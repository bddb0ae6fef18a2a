"""What is said over HTTP: request and answer shapes, strict JSON, SSE framing.

Owns the field names and the limits of each field. Knows no sockets, no models and no policy.
"""
