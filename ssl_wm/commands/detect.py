"""What the commands about detectors do: detect, and bench detection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ssl_wm.bench.detection import run_detection
from ssl_wm.bench.detection_plan import DetectionBench
from ssl_wm.commands.claims import load_nulls, spread
from ssl_wm.commands.outputs import Out
from ssl_wm.commands.stages import open_chosen
from ssl_wm.config import Settings
from ssl_wm.console import say
from ssl_wm.data.decoding import ENDINGS, UnusableImageError, read_size
from ssl_wm.data.image_set import Images
from ssl_wm.data.streaming import decode
from ssl_wm.detection.cleansing import cluster_labels
from ssl_wm.detection.detect import DETECTORS, judge, scan
from ssl_wm.detection.given import Given
from ssl_wm.detection.success import OWN_GROUPS, Trial
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import load_encoder
from ssl_wm.encoders.space import directions, group_centres
from ssl_wm.errors import ConfigError, DataError, SslWmError, choose
from ssl_wm.files import claim_file, write_json

Result = dict[str, Any]


def detect(
    settings: Settings, *, suspect: str, detector: str, nulls: Sequence[str],
    queries: Path | None = None, clusters: int | None = None, seed: int = 0,
    out: Path | None = None, overwrite: bool = False,
) -> Result:  # fmt: skip
    """Return what one detector or all of them say of a suspect beside clean encoders.

    Args:
        settings: images and the detectors' settings.
        suspect: an encoder spec.
        detector: a name in ``DETECTORS``, or "all": then one that fails is told under ``failed``.
        nulls: encoder specs, or folders of saved encoders.
        queries: a folder of the images that a service was sent.
        clusters: groups from so many clusters of the first null encoder, which is then compared
            with nothing; None takes the labels.
        seed: of all draws.
        out: a JSON file for the result.
        overwrite: whether an older one may be replaced.

    Raises:
        SslWmError: bad settings, images, encoders or queries, or no detector could be run.
    """
    names = list(DETECTORS) if detector == "all" else [
        choose(detector, [*DETECTORS, "all"], what="detector")
    ]  # fmt: skip
    if queries is not None and not any(DETECTORS[name].of == "queries" for name in names):
        of = [name for name, entry in DETECTORS.items() if entry.of == "queries"]
        raise ConfigError(
            f"detector '{detector}' judges no queries; use --queries with {' or '.join(of)}"
        )
    if out is not None:
        claim_file(out, overwrite=overwrite)
    asked, known, specs = load_encoder(suspect), load_nulls(nulls), spread(nulls)
    images = open_chosen(settings)
    sent = None if queries is None else read_queries(queries, images, side=settings.images.size)
    groups = "labels"
    if clusters is not None:
        groups = f"{clusters} clusters of {specs[0]}"
        images, known = in_clusters(images, known, count=clusters, seed=seed), known[1:]
    given = Given(images.train, sent, seed, settings.detect)
    told, failed = {}, {}
    for name in names:
        try:
            told[name] = _one(name, asked, known, given, images)
        except SslWmError as error:
            if detector != "all":
                raise
            failed[name] = str(error)
    if not told:
        raise ConfigError(
            f"no detector could be run; the first says: {next(iter(failed.values()))}"
        )
    result: Result = {
        "suspect": suspect, "images": images.spec, "nulls": [str(spec) for spec in specs],
        "groups": groups, "seed": seed, "detectors": told, "failed": failed,
        "adjusted_p_value": _adjusted(told),
    }  # fmt: skip
    if out is not None:
        result = {"out": str(out), **result}
        write_json(out, result)
    return result


def _one(
    name: str, suspect: Encoder, nulls: Sequence[Encoder], given: Given, images: Images
) -> Result:
    entry = DETECTORS[name]
    used = replace(given, queries=given.queries if entry.of == "queries" else None)
    found = []
    for place, encoder in enumerate((suspect, *nulls)):
        found.append(
            scan(encoder, detector=name, images=used.images, queries=used.queries, seed=used.seed,
                 config=used.config)
        )  # fmt: skip
        who = f"null encoder {place} of {len(nulls)}" if place else "the suspect"
        say(f"{name}: {who} scores {found[-1].score:.4g}")
    judged = judge(found[0], found[1:], detector=name)
    trial = Trial(suspect, images=images, seed=given.seed)
    tried = trial.run(judged.detection, detector=name, given=given)
    group = judged.detection.group if tried is None else tried.trigger.group
    names = None if name == OWN_GROUPS else images.train.class_names
    return {
        "score": judged.detection.score, "p_value": judged.p_value, "least_p": judged.least_p,
        "threshold": judged.threshold, "beyond": judged.beyond,
        "nulls_beyond": judged.nulls_beyond, "null_scores": list(judged.null_scores),
        "group": group, "flagged": list(judged.detection.flagged),
        "group_name": None if group is None else names[group] if names else f"cluster {group}",
        "success": None if tried is None else asdict(tried.success),
        "details": judged.detection.details,
    }  # fmt: skip


def _adjusted(told: dict[str, Result]) -> float | None:
    """Return the smallest p times the number of detectors that ask the encoder (Bonferroni)."""
    asked = [each["p_value"] for name, each in told.items() if DETECTORS[name].access != "pixels"]
    return min(1.0, len(asked) * min(asked)) if asked else None


def in_clusters(images: Images, nulls: Sequence[Encoder], *, count: int, seed: int) -> Images:
    """Return the images with clusters of the first null encoder's embeddings for labels.

    Test images get the cluster whose centre is nearest. That encoder must not be compared
    afterwards: its own clusters are easier to reach in it than in others.

    Raises:
        ConfigError: no null encoder is left to compare with.
        DataError: there are too few images.
    """
    if len(nulls) < 2:
        raise ConfigError(
            "--clusters takes the first --null for the groups and compares the suspect with the "
            f"others; got {len(nulls)} null encoder. Add --null SPEC"
        )
    if count < 3:
        raise ConfigError(f"--clusters must be at least 3; got {count}")
    train = images.train
    labels = cluster_labels(nulls[0], train.take(_all(train.labels)).cpu(), count=count, seed=seed)
    centre, centres = group_centres(embed(nulls[0], train), labels, count=count)
    rows = directions(embed(nulls[0], images.test), centre=centre)
    names = tuple(f"cluster {number}" for number in range(count))
    return Images(
        images.spec, replace(train, labels=labels, class_names=names),
        replace(images.test, labels=(rows @ centres.T).argmax(dim=1), class_names=names),
    )  # fmt: skip


def _all(labels: Tensor) -> Tensor:
    return labels.new_ones(len(labels)).cumsum(0) - 1


def read_queries(folder: Path, images: Images, *, side: int | None) -> Tensor:
    """Return all images below ``folder``, (Q, 3, H, W) uint8, of the size of ``images``.

    Args:
        folder: searched at any depth; hidden files are left out.
        images: the natural images that queries are compared with.
        side: what both are resized to; None keeps their size.

    Raises:
        DataError: there is no such folder, no image in it, or one that cannot be used.
    """
    if not folder.is_dir():
        raise DataError(f"--queries {folder} is no folder; name the folder that holds the images")
    paths = sorted(
        path for path in folder.rglob("*")
        if path.is_file() and path.name.lower().endswith(ENDINGS)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )  # fmt: skip
    if not paths:
        raise DataError(f"--queries {folder} holds no image; it may have folders, at any depth")
    size = images.train.size
    for path in paths:
        try:
            found = read_size(path)
        except UnusableImageError as error:
            raise DataError(f"query {path}: {error}; mend or remove it") from error
        if side is None and found != size:
            raise DataError(
                f"query {path} has {found[0]} x {found[1]} pixels and the images have "
                f"{size[0]} x {size[1]}; bring both to one size with --size N"
            )
    pixels, bad = decode(paths, side=side, size=size)
    for place, reason in bad.items():
        raise DataError(f"query {paths[place]}: {reason}; mend or remove it")
    return pixels


def bench_detection(config: DetectionBench, *, out: Out, inputs: Sequence[Path] = ()) -> Result:
    """Run a detection benchmark into ``out``; finished cells in it are kept.

    Raises:
        SslWmError: bad settings, images, encoders, keys or folder.
    """
    out.check()
    needed = [each.encoder for each in config.marked.values()]
    keys = [each.key for each in config.marked.values()]
    folder = out.claim(inputs=[config.images.spec, *needed, *keys, *config.clean.values(), *inputs])
    return {"out": str(folder), **run_detection(config, out=folder)}
