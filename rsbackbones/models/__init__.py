"""Model families, one per file. Each file has CONFIGS, INPUTS, LAYOUTS and build()."""
