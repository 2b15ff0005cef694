"""Aegis from Python: the client of vec-inf, method by method, on whatever scheduler there is; and deployments."""
