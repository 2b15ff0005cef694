"""Plan, launch, discover, measure and feed fleets of LLM inference servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aegis.client.asynchronous import AsyncClient
    from aegis.client.client import Client
    from aegis.client.errors import (
        APIError,
        MissingRequiredFieldsError,
        ModelConfigurationError,
        ModelNotFoundError,
        ServerError,
        SlurmJobError,
    )
    from aegis.client.models import (
        BatchLaunchResponse,
        LaunchOptions,
        LaunchResponse,
        MetricsResponse,
        ModelConfig,
        ModelInfo,
        ModelStatus,
        ModelType,
        StatusResponse,
    )
    from aegis.errors import AegisError
    from aegis.planner.plan import plan
    from aegis.spec.deployment import Deployment, ModelEntry

__version__ = "0.1.0"

__all__ = [
    "APIError",
    "AegisError",
    "AsyncClient",
    "BatchLaunchResponse",
    "Client",
    "Deployment",
    "LaunchOptions",
    "LaunchResponse",
    "MetricsResponse",
    "MissingRequiredFieldsError",
    "ModelConfig",
    "ModelConfigurationError",
    "ModelEntry",
    "ModelInfo",
    "ModelNotFoundError",
    "ModelStatus",
    "ModelType",
    "ServerError",
    "SlurmJobError",
    "StatusResponse",
    "__version__",
    "plan",
]

_PLACES = {
    "AegisError": "aegis.errors",
    "AsyncClient": "aegis.client.asynchronous",
    "Client": "aegis.client.client",
    "Deployment": "aegis.spec.deployment",
    "ModelEntry": "aegis.spec.deployment",
    "plan": "aegis.planner.plan",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: `import aegis` loads nothing else (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module `aegis` has no attribute `{name}`")
    import importlib  # noqa: PLC0415 - only where a name is used

    usual = "aegis.client.errors" if name.endswith("Error") else "aegis.client.models"
    value = getattr(importlib.import_module(_PLACES.get(name, usual)), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
