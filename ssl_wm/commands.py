"""What each command does: settings and specs in, a JSON-ready dictionary out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_wm.benchmark import run_benchmark
from ssl_wm.config import Settings
from ssl_wm.data.sources import Images, open_images
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.load import encoder_digest, load_encoder
from ssl_wm.errors import ConfigError
from ssl_wm.extraction import steal as theft
from ssl_wm.files import claim_file, read_json
from ssl_wm.outputs import Out
from ssl_wm.story import BenchConfig
from ssl_wm.training import pretrain as pretraining
from ssl_wm.verification.utility import utility
from ssl_wm.verification.verify import verify as judge
from ssl_wm.versions import versions
from ssl_wm.watermark import embed as marking
from ssl_wm.watermark import keygen as keys
from ssl_wm.watermark.keyfile import load_key, save_commitment, save_key

__all__ = [
    "Out", "bench", "keygen", "pretrain", "probe", "steal", "verify", "versions", "watermark",
]  # fmt: skip
Result = dict[str, Any]


def pretrain(settings: Settings, *, out: Out) -> Result:
    """Pretrain an encoder into ``out``.

    Raises:
        SslWmError: bad settings, images or folder.
    """
    out.check()
    if "arch" not in settings.pretrain.model_fields_set:
        raise ConfigError("name the architecture: --arch convnet-s, or pretrain: arch: in --config")
    images = open_chosen(settings)
    folder = out.claim(inputs=[images.spec])
    if not out.begin("pretrain", settings=settings.pretrain, images=images):
        with out.running():
            encoder, _ = pretraining.pretrain(images.train, config=settings.pretrain, folder=folder)
        out.keep(encoder)
    return out.result()


def keygen(settings: Settings, *, encoder: str | None, out: Path, overwrite: bool) -> Result:
    """Write a new key to ``out`` and its commitment beside it.

    Args:
        settings: images and key.
        encoder: the clean encoder, for groups from clusters.
        out: file of the key.
        overwrite: whether an existing key may be replaced.

    Raises:
        SslWmError: bad settings, images or encoder, or the file is there already.
    """
    commitment = out.with_name(f"{out.name}.commitment.json")
    for path in (out, commitment):
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
    clean = load_encoder(encoder) if encoder else None
    key = keys.keygen(
        open_chosen(settings), encoder=clean if kind == "clusters" else None,
        clusters=wanted.clusters, sub_keys=wanted.sub_keys, families=wanted.families,
        autoencoder_steps=wanted.autoencoder_steps,
    )  # fmt: skip
    save_key(key, out)
    save_commitment(key, commitment)
    return {
        "out": str(out), "commitment_file": str(commitment), "commitment": key.commitment,
        "groups": key.groups.kind, "group_count": len(key.groups),
        "sub_keys": key.terms.sub_key_count,
    }  # fmt: skip


def watermark(settings: Settings, *, encoder: str, key: Path, out: Out) -> Result:
    """Embed a key's watermark into a copy of an encoder, into ``out``.

    Raises:
        SslWmError: bad settings, images, encoder, key or folder.
    """
    out.check()
    secret, clean, images = load_key(key), load_encoder(encoder), open_chosen(settings)
    secret.check_images(images)
    folder = out.claim(inputs=[encoder, key, images.spec])
    facts = {"encoder": encoder_digest(clean), "key": secret.commitment}
    if not out.begin("watermark", settings=settings.watermark, images=images, **facts):
        with out.running():
            marked, _ = marking.watermark(
                clean, key=secret, images=images, config=settings.watermark, folder=folder
            )
        out.keep(marked)
    return {**out.result(), "method": settings.watermark.method, "key": secret.commitment}


def steal(settings: Settings, *, victim: str, out: Out) -> Result:
    """Copy an encoder by querying it, into ``out``; the answers and the ledger stay there.

    Raises:
        SslWmError: bad settings, images, encoder or folder.
    """
    out.check()
    asked, images = load_encoder(victim), open_chosen(settings)
    folder = out.claim(inputs=[victim, images.spec])
    facts = {"victim": encoder_digest(asked)}
    if not out.begin("steal", settings=settings.steal, images=images, **facts):
        with out.running():
            stolen = theft.steal(asked, images=images.train, config=settings.steal, folder=folder)
        out.keep(stolen.surrogate)
    calls = read_json(folder / "ledger.json", what="ledger")["calls"]
    return {**out.result(), "attack": settings.steal.attack, "queries": calls}


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


def verify(settings: Settings, *, key: Path, suspect: str, nulls: Sequence[str]) -> Result:
    """Return the verdict on a suspect as a dictionary.

    Raises:
        SslWmError: bad settings, images, encoders or key.
    """
    secret, images = load_key(key), open_chosen(settings)
    secret.check_images(images)
    verdict = judge(
        load_encoder(suspect), key=secret, images=images,
        nulls=[load_encoder(spec) for spec in nulls], config=settings.verify,
    )  # fmt: skip
    return verdict.to_dict()


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
