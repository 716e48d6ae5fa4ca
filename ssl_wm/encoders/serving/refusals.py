"""Why a request is not answered: an HTTP status, a kind for programs and words for people."""

from __future__ import annotations

import math


class RefusedError(Exception):
    """A request is refused; the text says what was expected, what came and what to do.

    Attributes:
        status: HTTP status.
        kind: short name of the reason, for programs and metrics.
        wait: seconds after which the request may be sent again, where waiting helps.
    """

    def __init__(self, status: int, kind: str, message: str, *, wait: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.wait = wait

    def headers(self) -> dict[str, str]:
        """Return the answer's headers: ``Retry-After`` in whole seconds, and in milliseconds."""
        found = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        if self.wait is not None:
            found["Retry-After"] = str(max(1, math.ceil(self.wait)))
            found["Retry-After-Ms"] = str(max(1, math.ceil(1000 * self.wait)))
        return found

    def body(self) -> dict[str, dict[str, str]]:
        """Return the answer's JSON."""
        return {"error": {"type": self.kind, "message": str(self)}}
