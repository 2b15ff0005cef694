"""One worker of one split: step times and memory, for arrays of configurations at once."""
