"""Measures servers: loads, their prompts, and what the requests say about latency and throughput."""
