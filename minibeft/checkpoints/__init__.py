"""Files on disk: found, read as data, written again."""
