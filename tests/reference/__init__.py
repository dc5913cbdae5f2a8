"""Slow and obvious versions, written again for the tests and sharing no code with the package."""
