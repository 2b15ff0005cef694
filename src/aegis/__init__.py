"""Plan, launch, discover, measure and feed fleets of LLM inference servers."""

__version__ = "0.1.0"

__all__ = ["__version__"]
