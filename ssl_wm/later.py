"""Settings that came after the first runs: at their defaults they are not written down.

What a run was made with is compared when it is resumed, so a setting that older versions did not
know is written only where it changes something. Their runs can then be resumed.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer


class WithLater(BaseModel):
    """Settings of which some, ``LATER``, are left out of what is written while at their defaults.

    >>> class Oven(WithLater):
    ...     LATER = ("fan",)
    ...     degrees: int = 180
    ...     fan: bool = False
    >>> Oven().model_dump(), Oven(fan=True).model_dump()
    ({'degrees': 180}, {'degrees': 180, 'fan': True})
    """

    LATER: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_later(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        told: dict[str, Any] = handler(self)
        return {name: value for name, value in told.items() if name not in self._left_out()}

    def _left_out(self) -> set[str]:
        fields = type(self).model_fields
        return {name for name in self.LATER if getattr(self, name) == fields[name].default}
