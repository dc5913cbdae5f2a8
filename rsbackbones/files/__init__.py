"""Files: written atomically, compared by hash, and what a number was measured on. Imports nothing of ours."""
