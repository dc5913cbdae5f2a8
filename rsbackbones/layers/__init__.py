"""Layers that the model families are built from, one idea per file."""
