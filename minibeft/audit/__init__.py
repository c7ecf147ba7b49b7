"""What each attention bias of any model does, measured by intervention on the model that transformers runs."""
