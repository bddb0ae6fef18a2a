"""`cortex bench`: latency and throughput of an endpoint, or of the engine alone."""
