"""Answers that the gateway gives itself, in the shape of OpenAI's errors."""

from __future__ import annotations

import msgspec
from msgspec import Struct


class Refusal(Struct, frozen=True, kw_only=True):
    """Why a request goes to no instance."""

    status: int
    message: str
    kind: str = "invalid_request_error"  # `type` in the answer
    code: str | None = None
    param: str | None = None
    retry_after: float | None = None  # seconds

    @property
    def body(self) -> bytes:
        """The JSON of the answer, as every OpenAI client reads it."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})
