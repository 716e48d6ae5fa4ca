"""When two keys are the same, and what reading a key file may do."""

from __future__ import annotations

from collections.abc import Callable

from ssl_wm.errors import KeyFileError
from ssl_wm.files import canonical_json
from ssl_wm.watermark.key import WatermarkKey
from ssl_wm.watermark.open_key import OpenKey


def facts(key: OpenKey) -> tuple[object, ...]:
    """Return all that a key does."""
    return (
        key.beacon, key.salt, key.root, canonical_json(key.terms.content), key.commitment,
        key.leaves, repr(key.sub_keys), [sub.seed for sub in key.sub_keys],
        [(sub.mixer, sub.others) for sub in key.sub_keys if not key.terms.autoencoder],
    )  # fmt: skip


def check_refused_or_identical(read: Callable[[], OpenKey], key: OpenKey) -> None:
    try:
        again = read()
    except KeyFileError as refusal:
        text = str(refusal)
    else:
        text = ""
        assert facts(again) == facts(key)
    assert "\n" not in text
    secrets = [leaf.secret for leaf in key.leaves]
    secrets += [key.secret] if isinstance(key, WatermarkKey) else []
    assert not any(secret.hex() in text for secret in secrets)
