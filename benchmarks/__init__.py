"""Measurements, from a checkout: ``python -m benchmarks.NAME``. What they found lies beside them."""
