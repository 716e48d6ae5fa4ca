"""One sealed bundle for the tests of evidence, and what a forger does with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from ssl_wm.encoders.properties import encoder_digest
from ssl_wm.evidence.manifest import write_manifest
from ssl_wm.evidence.record import verify_with_evidence
from ssl_wm.verification.settings import ReadConfig, VerifyConfig


def named(problems) -> set[str]:
    """Return the files that lines "FILE: what is wrong" name."""
    return {problem.partition(":")[0] for problem in problems}


def reseal(folder: Path) -> None:
    """Make a manifest that fits the files as they are, as a forger would."""
    write_manifest(folder, {path.name for path in folder.iterdir()} - {"manifest.json"})


def rewrite(folder: Path, file: str, *path: str | int, value: object) -> None:
    """Set one value of a JSON file and seal the bundle anew."""
    whole = place = json.loads((folder / file).read_text())
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    (folder / file).write_text(json.dumps(whole))
    reseal(folder)


@pytest.fixture(scope="session")
def evidence(world, tmp_path_factory) -> SimpleNamespace:
    """Return a sealed bundle, what it was made of, and the helpers above."""
    images = world.images(groups=8)
    clean = world.palette(images)
    key = world.key(images, number=1, carriers=3, encoder=encoder_digest(clean))
    made = SimpleNamespace(
        folder=tmp_path_factory.mktemp("evidence") / "bundle",
        images=images,
        key=key,
        marked=world.palette(images, key=key),
        nulls=[clean, world.convnet()],
        config=VerifyConfig(
            draws=999,
            read=ReadConfig(per_pair=8, recipes=9, reference=20, trigger_count=24, neighbours=5),
        ),
        named=named,
        reseal=reseal,
        rewrite=rewrite,
    )
    verify_with_evidence(
        made.marked, key=key, images=images, nulls=made.nulls, folder=made.folder,
        config=made.config, made_at="2025-01-02T03:04:05+00:00",
    )  # fmt: skip
    return made


@pytest.fixture
def copy(evidence, tmp_path) -> Path:
    """Return a copy of the sealed bundle, to be damaged."""
    return Path(shutil.copytree(evidence.folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def images(evidence):
    return evidence.images


@pytest.fixture(scope="module")
def key(evidence):
    return evidence.key


@pytest.fixture(scope="module")
def marked(evidence):
    return evidence.marked


@pytest.fixture(scope="module")
def nulls(evidence):
    return evidence.nulls


@pytest.fixture(scope="module")
def sealed(evidence):
    return evidence.folder
