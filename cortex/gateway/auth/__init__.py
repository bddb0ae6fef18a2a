"""Who asks, what they may do, and what they have used. Owns keys, limits and the usage ledger."""
