"""What measured deployments say of predictions: the rows, the mechanism fitted to them, and what is left over."""
