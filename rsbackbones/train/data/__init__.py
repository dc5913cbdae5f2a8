"""Training data: where images come from, how they become batches, and packing them into shards."""
