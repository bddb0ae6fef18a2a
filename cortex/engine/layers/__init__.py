"""The parts decoders are made of. Owns kernels' choice per device; knows no architecture."""
