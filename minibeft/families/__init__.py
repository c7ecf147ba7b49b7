"""One file a model family: how its config.json and tensor names map to ours, as data."""
