"""Evaluation: the protocols of the papers over frozen features."""
