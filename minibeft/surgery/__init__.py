"""The theorems as tools: drop, fold and merge biases in checkpoints, each step guarded and verified."""
