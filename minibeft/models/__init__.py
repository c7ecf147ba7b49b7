"""One Transformer for every family, from its parts up."""
