"""The keys of a quantised cache, straight from the projection."""
