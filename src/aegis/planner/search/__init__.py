"""The sweep over configurations, the Pareto frontier and the choice."""
