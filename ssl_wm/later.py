"""Settings that came after the first runs: what older versions did is not written down.

What a run was made with is compared when it is resumed, and sealed evidence is recomputed with
it, so a setting that older versions did not know is written only where it is not what they did.
Their runs can then be resumed, and a default can change without changing what was sealed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer


class WithLater(BaseModel):
    """Settings of which some, ``LATER``, are left out of what is written where nothing is new.

    ``LATER`` gives for each what older versions did, which need not be today's default: of what
    was written without it, that is the meaning.

    >>> class Oven(WithLater):
    ...     LATER = {"fan": False}
    ...     degrees: int = 180
    ...     fan: bool = True
    >>> Oven().model_dump(), Oven(fan=False).model_dump()
    ({'degrees': 180, 'fan': True}, {'degrees': 180})
    >>> Oven().fan, Oven.as_written({"degrees": 180}).fan
    (True, False)
    """

    LATER: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def as_written(cls, told: Mapping[str, Any]) -> Self:
        """Return the settings that were written as ``told``, by this version or an older one.

        Raises:
            ValidationError: they are no such settings.
        """
        return cls.model_validate({**cls.LATER, **told})

    @model_serializer(mode="wrap")
    def _without_later(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        told: dict[str, Any] = handler(self)
        return {name: value for name, value in told.items() if name not in self._left_out()}

    def _left_out(self) -> set[str]:
        return {name for name, before in self.LATER.items() if getattr(self, name) == before}
