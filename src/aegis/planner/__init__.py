"""The planner: which GPUs, split how, for a load and targets. Pure: it reads data files and opens no connection."""
