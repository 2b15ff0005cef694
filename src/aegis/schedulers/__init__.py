"""PBS, Slurm and this machine behind six verbs."""
