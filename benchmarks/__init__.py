"""Benchmarks: every figure is a ratio to a yardstick that runs beside it, in turn, in the same process."""
