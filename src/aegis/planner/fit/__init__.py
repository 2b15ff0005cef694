"""Efficiency curves from measured tables: sampling, fitting, and what they get wrong about a system they have not seen."""
