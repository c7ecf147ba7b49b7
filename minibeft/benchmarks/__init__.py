"""What minibeft costs beside the implementations that people use, measured in one run on one machine."""
