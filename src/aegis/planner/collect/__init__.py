"""Measure what a machine takes for the operations of a model, with PyTorch, and write it down as a table."""
