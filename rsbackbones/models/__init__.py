"""Model families, one per file. Each file has CONFIGS, INPUTS, CHECKPOINT_FORMATS and build()."""
