"""Settings: frozen data from YAML, flags on top; an unknown key is an error.

One file serves the whole story: ``ssl-wm pretrain --config my.yaml``, then ``keygen``,
``watermark``, ``steal`` and ``verify`` with the same file. Each stage's own settings are
defined beside the stage (``PretrainConfig``, ``WatermarkConfig``, ...).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ssl_wm.calibration.calibrate import CalibrateConfig
from ssl_wm.detection.settings import DetectionConfig
from ssl_wm.errors import ConfigError
from ssl_wm.extraction.steal import StealConfig
from ssl_wm.later import WithLater
from ssl_wm.nulls import NullsConfig
from ssl_wm.removal.given import RemovalConfig
from ssl_wm.training.pretrain import PretrainConfig
from ssl_wm.verification.settings import VerifyConfig
from ssl_wm.watermark.embed import WatermarkConfig

Model = TypeVar("Model", bound=BaseModel)


class ImagesConfig(BaseModel):
    """Which images are used.

    Attributes:
        spec: a folder, ``torchvision/<Dataset>`` or ``digits``.
        size: side in pixels; None keeps the common size of the images.
        limit: images per split, class-balanced; None uses all.
        download: whether torchvision may fetch a dataset that is missing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: str = "digits"
    size: int | None = Field(None, ge=4)
    limit: int | None = Field(None, ge=1)
    download: bool = False


class KeyConfig(WithLater):
    """What a key is drawn for.

    Attributes:
        groups: "labels", or "clusters" of the clean encoder's embeddings.
        clusters: number of clusters.
        sub_keys: number of marks; None means three where the groups suffice, else one.
        spare: sub-keys drawn beyond these, so that those are marked that a copy will learn best.
        families: mixer families that the secret may choose among.
        autoencoder_steps: training of the blend mixer; 0 leaves that mixer out.
        carriers: number of carriers of each sub-key, which ``bend-space`` marks; 0 leaves them out.
            None means three where the groups are clusters of a clean encoder, else 0.
        carriers_in: what they are functions of: the clean encoder's "answers", or the "places"
            inside it. None means places, where it has layers that can be told apart.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    LATER: ClassVar[Mapping[str, Any]] = {"spare": 0, "carriers": 0, "carriers_in": "answers"}

    groups: Literal["labels", "clusters"] = "clusters"
    clusters: int = Field(20, ge=3)
    sub_keys: int | None = Field(None, ge=1)
    spare: int = Field(0, ge=0)
    families: tuple[str, ...] = ("crop-paste",)
    autoencoder_steps: int = Field(400, ge=0)
    carriers: int | None = Field(None, ge=0, le=10)
    carriers_in: Literal["answers", "places"] | None = None


class Settings(BaseModel):
    """All settings of the single commands, each stage under its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: ImagesConfig = ImagesConfig()
    pretrain: PretrainConfig = PretrainConfig()
    key: KeyConfig = KeyConfig()
    watermark: WatermarkConfig = WatermarkConfig()
    steal: StealConfig = StealConfig()
    removal: RemovalConfig = RemovalConfig()
    verify: VerifyConfig = VerifyConfig()
    nulls: NullsConfig = NullsConfig()
    calibrate: CalibrateConfig = CalibrateConfig()
    detect: DetectionConfig = DetectionConfig()


class DuplicateKeyError(yaml.constructor.ConstructorError):
    """A setting stands twice in one mapping."""


class _Once(yaml.SafeLoader):
    """Plain data only, and no setting twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in names:
                    said = f"'{key.value}' is set twice"
                    raise DuplicateKeyError(None, None, said, key.start_mark)
                names.add(key.value)
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        ConfigError: the file is missing, is not YAML, holds no mapping or a setting twice.
    """
    try:
        data = _Once(path.read_text()).get_single_data()
    except FileNotFoundError:
        raise ConfigError(f"config {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read config {path}: {error}") from error
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 1})" if where else ""
        if isinstance(error, DuplicateKeyError):
            raise ConfigError(f"config {path}{line}: {error.problem}; keep one of them") from None
        raise ConfigError(f"config {path} is not YAML{line}: plain data only") from error
    if not isinstance(data, dict):
        raise ConfigError(f"config {path} must be a mapping of settings, e.g. 'images: ...'")
    return data


def merge(data: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``data`` with dotted ``overrides`` that are not None put on top.

    >>> merge({"steal": {"arch": "cnn9"}}, {"steal.attack": "mse", "steal.seed": None})
    {'steal': {'arch': 'cnn9', 'attack': 'mse'}}
    """
    result: dict[str, Any] = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in data.items()
    }
    for dotted, value in overrides.items():
        if value is None:
            continue
        head, _, tail = dotted.partition(".")
        if not tail:
            result[head] = value
        else:
            below = result.get(head)
            result[head] = merge(below if isinstance(below, Mapping) else {}, {tail: value})
    return result


def parse(model: type[Model], data: Mapping[str, Any], *, source: str) -> Model:
    """Return ``data`` as a ``model``.

    Raises:
        ConfigError: one line that names the first wrong setting and the nearest known one.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain(error, model)}") from error


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return the first problem of ``error`` in words."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "value_error":
        place = f"setting '{where}': " if where else ""
        return f"{place}{first['msg'].removeprefix('Value error, ')}{more}"
    if first["type"] != "extra_forbidden":
        return f"setting '{where}': {first['msg']}; got {first['input']!r}{more}"
    known = _known_names(model, first["loc"][:-1])
    near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return f"unknown setting '{where}'{hint} Known here: {', '.join(known)}{more}"


def _known_names(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        below = model.model_fields.get(str(part))
        annotation = below.annotation if below else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def load_settings(path: Path | None, overrides: Mapping[str, Any]) -> Settings:
    """Return the settings of ``path`` (or the defaults) with flags on top.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """
    data = read_yaml(path) if path else {}
    return parse(Settings, merge(data, overrides), source=str(path or "settings"))
