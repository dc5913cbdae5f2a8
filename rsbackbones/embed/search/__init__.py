"""Search in a store or table of features: nearest cells to a place, a box or an example."""
