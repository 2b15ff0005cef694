"""Measured latencies: one compact file per system, backend and version; import, list, check."""
