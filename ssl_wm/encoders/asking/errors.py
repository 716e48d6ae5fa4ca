"""What can go wrong with a service that is not this machine's fault."""

from __future__ import annotations

from ssl_wm.errors import EncoderError


class RemoteError(EncoderError):
    """A service cannot be reached, refuses, or answers something that is no answer."""


class TooLargeError(RemoteError):
    """A request holds more than the service takes; fewer images at a time may pass."""
