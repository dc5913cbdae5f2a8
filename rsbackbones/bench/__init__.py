"""Measurements: how fast a pretraining step is, where its time goes, and what many GPUs would make of it."""
