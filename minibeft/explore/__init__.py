"""The page on which one moves the biases of a real head and sees what happens."""
