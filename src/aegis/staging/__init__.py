"""Staging: weights, environments and images from the shared file system onto every node that needs them."""
