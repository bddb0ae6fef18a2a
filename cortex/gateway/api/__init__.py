"""The gateway's routes, a file a family. Owns bodies and headers, no state and no policy."""
