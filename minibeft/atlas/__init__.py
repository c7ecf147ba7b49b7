"""What the biases of every model type of transformers do: an audit of each, small and random, and a page of all."""
