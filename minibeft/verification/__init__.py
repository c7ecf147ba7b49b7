"""The theorems measured on a checkpoint, layer by layer."""
