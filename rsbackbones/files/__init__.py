"""Atomic writing, locks, resumable stores, hashes, Markdown and the environment of a measurement."""
