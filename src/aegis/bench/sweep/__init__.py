"""Sweeps: a model's servers at growing load, until they are saturated."""
