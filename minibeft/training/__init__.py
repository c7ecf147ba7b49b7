"""Fine-tuning biases by BEFT's protocol: tasks, batches, runs."""
