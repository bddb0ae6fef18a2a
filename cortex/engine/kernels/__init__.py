"""What a decoder asks of a device, operation by operation: in plain torch, and faster sets."""
