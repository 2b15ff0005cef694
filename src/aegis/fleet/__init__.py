"""Run a fleet: the head of the job, and the agent on each node."""
