"""Models: their shapes, read from names or a config.json, and the operations of their steps."""
