"""What each command does: settings and specs in, a JSON-ready dictionary out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ssl_wm.bench.story import run_benchmark
from ssl_wm.bench.story_plan import BenchConfig
from ssl_wm.commands.outputs import Out
from ssl_wm.config import Settings
from ssl_wm.console import say
from ssl_wm.data.image_set import Images
from ssl_wm.data.sources import open_images
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import encoder_digest, load_encoder
from ssl_wm.errors import ConfigError
from ssl_wm.extraction import steal as theft
from ssl_wm.files import claim_file, plain, read_json
from ssl_wm.training import pretrain as pretraining
from ssl_wm.verification.utility import utility
from ssl_wm.versions import versions
from ssl_wm.watermark import embed as marking
from ssl_wm.watermark import keygen as keys
from ssl_wm.watermark.choice import choose_sub_keys
from ssl_wm.watermark.key import WatermarkKey
from ssl_wm.watermark.keyfile import load_key, save_commitment, save_key

__all__ = [
    "Out", "add_beacon", "bench", "keygen", "pretrain", "probe", "quote", "steal", "versions",
    "watermark",
]  # fmt: skip
Result = dict[str, Any]


def pretrain(settings: Settings, *, out: Out) -> Result:
    """Pretrain an encoder into ``out``.

    Raises:
        SslWmError: bad settings, images or folder.
    """
    out.check(shared=True)
    if "arch" not in settings.pretrain.model_fields_set:
        raise ConfigError("name the architecture: --arch convnet-s, or pretrain: arch: in --config")
    images = open_chosen(settings)
    pretraining.begun(settings.pretrain)
    folder = out.claim(inputs=[images.spec])
    if not out.begin("pretrain", settings=settings.pretrain, images=images):
        with out.running():
            encoder, _ = pretraining.pretrain(images.train, config=settings.pretrain, folder=folder)
        out.keep(encoder)
    return out.result()


def keygen(
    settings: Settings, *, encoder: str | None, out: Path, overwrite: bool, count: int | None = None
) -> Result:
    """Write a new key to ``out`` and its commitment beside it.

    Args:
        settings: images and key.
        encoder: the clean encoder, for groups from clusters.
        out: file of the key, or with ``count`` the folder of the keys.
        overwrite: whether an existing key may be replaced.
        count: how many keys over the same groups, one per licensee; None writes one file.

    Raises:
        SslWmError: bad settings, images or encoder, or the file is there already.
    """
    if count is not None and count < 1:
        raise ConfigError(f"--count must be at least 1; got {count}")
    files = [out] if count is None else [out / f"licensee-{n}.key" for n in range(count)]
    for file in files:
        for path in (file, commitment_path(file)):
            claim_file(path, overwrite=overwrite)
    wanted = settings.key
    kind = wanted.groups if "groups" in wanted.model_fields_set else None
    if kind is None:
        kind = "clusters" if encoder or "clusters" in wanted.model_fields_set else "labels"
    if kind == "clusters" and encoder is None:
        raise ConfigError(
            "clusters need your clean encoder: add --encoder SPEC, or use --labels for groups "
            "from the class labels"
        )
    clean, images = load_encoder(encoder) if encoder else None, open_chosen(settings)
    first = keys.keygen(
        images, encoder=clean if kind == "clusters" else None,
        clusters=wanted.clusters, sub_keys=wanted.sub_keys, spare=wanted.spare,
        families=wanted.families, autoencoder_steps=wanted.autoencoder_steps,
        carriers=wanted.carriers,
        carriers_in=wanted.carriers_in,
    )  # fmt: skip
    others = (_chosen_like(first, keys.another_key(first), clean, images) for _ in files[1:])
    for key, file in zip((first, *others), files, strict=True):
        save_key(key, file)
        save_commitment(key, commitment_path(file))
    told = _key_facts(first, files[0])
    return told if count is None else {**told, "out": str(out), "keys": [str(f) for f in files]}


def add_beacon(
    settings: Settings, *, given: Path | None, beacon: str | None, encoder: str | None, out: Path,
    overwrite: bool,
) -> Result:  # fmt: skip
    """Write a copy of the key ``given`` with a public value mixed in.

    It fixes other groups, so of a key with spare sub-keys they are chosen anew.

    Raises:
        ConfigError: the key or the value is missing, the key has one already, or it has spare
            sub-keys and the clean encoder is missing.
        KeyFileError: the key cannot be read, or is for other images.
        OutputError: ``out`` is there already.
    """
    if given is None or beacon is None:
        raise ConfigError(
            "a beacon is mixed into a key whose commitment is published already: give both --from "
            "FILE and --beacon VALUE (make the key first, publish FILE.commitment.json, wait for "
            "the value)"
        )
    claim_file(out, overwrite=overwrite)
    before = load_key(given)
    key = before.with_beacon(beacon)
    if before.chosen is not None:
        if encoder is None:
            raise ConfigError(
                "this key has spare sub-keys, and the beacon draws other groups for them: add "
                "--encoder SPEC (the clean encoder) and --images, so that they are chosen anew"
            )
        images = open_chosen(settings)
        key.check_images(images, splits=("train",))
        key = _chosen_like(before, key, load_encoder(encoder), images)
    save_key(key, out)
    return {**_key_facts(key, out), "beacon": key.beacon}


def _chosen_like(
    first: WatermarkKey, key: WatermarkKey, clean: Encoder | None, images: Images
) -> WatermarkKey:
    """Return ``key`` with as many sub-keys chosen as of ``first``."""
    if first.chosen is None or clean is None:
        return key
    return choose_sub_keys(key, encoder=clean, images=images.train, count=len(first.chosen))


def commitment_path(key: Path) -> Path:
    """Return where the commitment of the key file ``key`` lies."""
    return key.with_name(f"{key.name}.commitment.json")


def _key_facts(key: WatermarkKey, file: Path) -> Result:
    return {
        "out": str(file), "commitment_file": str(commitment_path(file)),
        "commitment": key.commitment, "groups": key.groups.kind, "group_count": len(key.groups),
        "sub_keys": key.terms.sub_key_count,
        "chosen": None if key.chosen is None else list(key.chosen),
    }  # fmt: skip


def watermark(settings: Settings, *, encoder: str, key: Path, out: Out) -> Result:
    """Embed a key's watermark into a copy of an encoder, into ``out``.

    Raises:
        SslWmError: bad settings, images, encoder, key or folder.
    """
    out.check(shared=True)
    secret, clean, images = load_key(key), load_encoder(encoder), open_chosen(settings)
    secret.check_images(images)
    marking.checked_method(settings.watermark)
    folder = out.claim(inputs=[encoder, key, images.spec])
    facts = {"encoder": encoder_digest(clean), "key": secret.name}
    if not out.begin("watermark", settings=settings.watermark, images=images, **facts):
        with out.running():
            marked, _ = marking.watermark(
                clean, key=secret, images=images, config=settings.watermark, folder=folder
            )
        out.keep(marked)
    return {**out.result(), "method": settings.watermark.method, "key": secret.commitment}


def steal(
    settings: Settings, *, victim: str, out: Out, price: float | None = None,
    rate: float | None = None,
) -> Result:  # fmt: skip
    """Copy an encoder by querying it, into ``out``; the answers and the ledger stay there.

    With a ``price`` of 1,000 images or a ``rate`` in images a second, the cost is told first.

    Raises:
        SslWmError: bad settings, images, encoder or folder.
    """
    out.check(shared=True)
    asked, images = load_encoder(victim), open_chosen(settings)
    told = theft.quote(settings.steal, pool=len(images.train), price=price, rate=rate)
    theft.begun(settings.steal)
    folder = out.claim(inputs=[victim, images.spec])
    # A service or a function has no weights: its spec stands for it.
    facts = {"victim": encoder_digest(asked) if asked.backbone.state_dict() else victim}
    if not out.begin("steal", settings=settings.steal, images=images, **facts):
        if price is not None or rate is not None:
            say(quoted(told))
        with out.running():
            stolen = theft.steal(asked, images=images.train, config=settings.steal, folder=folder)
        out.keep(stolen.surrogate)
    calls = read_json(folder / "ledger.json", what="ledger")["calls"]
    if price is not None:
        calls = {**calls, "cost": round(calls["billed"] * price / 1000, 6)}
    return {**out.result(), "attack": settings.steal.attack, "queries": calls}


def quote(settings: Settings, *, price: float | None = None, rate: float | None = None) -> Result:
    """Return what the theft in ``settings`` costs; nothing is sent or written.

    Raises:
        SslWmError: bad settings or images.
    """
    pool = len(open_chosen(settings).train)
    told = theft.quote(settings.steal, pool=pool, price=price, rate=rate)
    return {"attack": settings.steal.attack, "pool": pool, "quote": plain(asdict(told))}


def quoted(told: theft.Quote) -> str:
    """Return a quote in words."""
    words = [f"{told.billed} images will be sent"]
    if told.repeated:
        words.append(f"{told.repeated} of them again")
    if told.cost is not None:
        words.append(f"price {told.cost:g}")
    if told.seconds is not None:
        words.append(f"at least {told.seconds:.0f} s of queries")
    return ", ".join(words)


def probe(settings: Settings, *, encoder: str) -> Result:
    """Return the accuracy of a linear probe and of kNN on an encoder's embeddings.

    Raises:
        SslWmError: bad settings, images or encoder.
    """
    read, images = load_encoder(encoder), open_chosen(settings)
    return dict(utility(
        embed(read, images.train), images.train.labels,
        embed(read, images.test), images.test.labels,
    ))  # fmt: skip


def bench(config: BenchConfig, *, out: Out, inputs: Sequence[Path] = ()) -> Result:
    """Run a whole story into ``out``; finished encoders in it are kept.

    Raises:
        SslWmError: bad settings or images, or whatever a stage raises.
    """
    out.check()
    folder = out.claim(inputs=[config.images.spec, *inputs])
    result = run_benchmark(config, out=folder)
    return {
        "out": str(folder), "report": str(folder / "report.html"),
        "utility": result["utility"], "verdicts": result["verdicts"],
    }  # fmt: skip


def open_chosen(settings: Settings) -> Images:
    """Open the images that the settings name.

    Raises:
        ConfigError: they name none.
        DataError: the images cannot be used.
    """
    chosen = settings.images
    if "spec" not in chosen.model_fields_set:
        raise ConfigError(
            "name the images: --images FOLDER, torchvision/<Dataset> or digits, or images: "
            "spec: in --config"
        )
    return open_images(chosen.spec, size=chosen.size, limit=chosen.limit, download=chosen.download)
