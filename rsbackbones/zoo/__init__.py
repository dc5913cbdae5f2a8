"""Which weights exist, and a model from them."""
