"""Readers of images, and what is done to images before a model sees them."""
