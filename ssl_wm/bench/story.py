"""Run a whole story from one config: encoders made, robbed and judged, cell by cell.

Each encoder is one folder of the output, with its weights, metrics and measurements. What is
there already, made with the same settings, is not made again.
"""

from __future__ import annotations

import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from ssl_wm.bench.kept import seconds_before
from ssl_wm.bench.story_plan import BenchConfig, BenchKey, Cell
from ssl_wm.console import say
from ssl_wm.data.image_set import Images
from ssl_wm.data.sources import open_images
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import load_encoder, save_encoder
from ssl_wm.errors import ConfigError
from ssl_wm.extraction.steal import steal
from ssl_wm.files import canonical_json, plain, read_json, write_json, write_text
from ssl_wm.pictures import report_data
from ssl_wm.report import render_html
from ssl_wm.rng import derive_seed
from ssl_wm.training.loop import finish
from ssl_wm.training.pretrain import pretrain
from ssl_wm.verification.once import Memory
from ssl_wm.verification.utility import utility
from ssl_wm.verification.verdict import Verdict
from ssl_wm.verification.verify import verify
from ssl_wm.versions import versions
from ssl_wm.watermark.embed import watermark
from ssl_wm.watermark.key import WatermarkKey
from ssl_wm.watermark.keyfile import load_key, save_key
from ssl_wm.watermark.keygen import keygen


class Benchmark:
    """One run of a config into one folder.

    Args:
        config: the story.
        out: the folder; finished cells in it are kept.
        images: opened from the config when None.
    """

    def __init__(self, config: BenchConfig, *, out: Path, images: Images | None = None) -> None:
        chosen = config.images
        self.config, self.out = config, out
        self.images = images or open_images(
            chosen.spec, size=chosen.size, limit=chosen.limit, download=chosen.download
        )
        self.encoders: dict[str, Encoder] = {}
        self.identities: dict[str, str] = {}
        self.memory = Memory()
        self.verdicts: dict[str, Verdict] = {}

    def run(self) -> dict[str, Any]:
        """Make and measure every encoder; return and write ``result.json``, ``report.html``."""
        result: dict[str, Any] = {
            "title": self.config.title,
            "utility": {},
            "verdicts": {},
            "seconds": {},
            "made": {},
            "images": self._images_facts(),
            "versions": versions(),
            "settings": self.config.model_dump(mode="json"),
        }
        keys: dict[str, WatermarkKey] = {}
        clean = {key.of for key in self.config.keys.values()}
        for name, cell in self.config.encoders.items():
            key_name = self.config.key_of(name)
            encoder, seconds = self._make(name, cell, keys.get(key_name))
            self.encoders[name] = encoder
            for other, key in self.config.keys.items():
                if key.of == name:
                    keys[other] = self._key(other, key, encoder)
            result["made"][name] = {"stage": cell.stage, "of": cell.of, "key": key_name}
            result["utility"][name] = self._utility(name, encoder)
            if name not in clean and key_name in keys:
                verdict = self._judge(name, encoder, keys[key_name], self.config.keys[key_name])
                result["verdicts"][name] = verdict.to_dict()
                say(f"{name}: {verdict.decision}, p = {verdict.p_value:.2g}")
            result["seconds"][name] = {"make": seconds, **self._times(name)}
            write_json(self.out / "result.json", result)
        first = next(iter(self.config.keys))
        page = report_data(
            plain(result),
            key=keys[first],
            images=self.images,
            verdicts=self.verdicts,
            encoders={name: self.encoders[name] for name in self.config.maps},
        )
        write_text(self.out / "report.html", render_html(page))
        return result

    def _images_facts(self) -> dict[str, Any]:
        train, test = self.images.train, self.images.test
        return {
            "spec": self.config.images.spec,
            "train": len(train),
            "test": len(test),
            "size": list(train.size),
            "classes": len(train.class_names),
            "skipped": len(train.skipped) + len(test.skipped),
        }

    def _identity(self, name: str, cell: Cell, key: WatermarkKey | None) -> str:
        parts = {
            "cell": cell.model_dump(mode="json"),
            "seed": self.config.seed,
            "name": name,
            "images": self.images.train.fingerprint,
            "parent": self.identities.get(cell.of or ""),
            "key": key.commitment if key is not None and cell.watermark else None,
        }
        return sha256(canonical_json(parts)).hexdigest()

    def _make(self, name: str, cell: Cell, key: WatermarkKey | None) -> tuple[Encoder, float]:
        """Return the encoder of a cell and the seconds it took, made now or before."""
        folder = self.out / name
        identity = self._identity(name, cell, key)
        self.identities[name] = identity
        facts_path = folder / "cell.json"
        if facts_path.is_file():
            facts = read_json(facts_path)
            if facts.get("identity") == identity:
                return load_encoder(folder), float(facts["seconds"])
            raise ConfigError(
                f"{folder} was made with other settings; use --overwrite, or another --out"
            )
        say(f"{name}: {cell.stage}")
        folder.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter() - seconds_before(folder)
        encoder = self._run_stage(name, cell, key, folder)
        seconds = time.perf_counter() - began
        save_encoder(encoder, folder)
        write_json(facts_path, {"identity": identity, "seconds": round(seconds, 1)})
        finish(folder)
        return encoder, round(seconds, 1)

    def _run_stage(self, name: str, cell: Cell, key: WatermarkKey | None, folder: Path) -> Encoder:
        seed = derive_seed(self.config.seed, name) % 2**31
        if cell.pretrain is not None:
            settings = cell.pretrain.model_copy(update={"seed": seed + cell.pretrain.seed})
            return pretrain(self.images.train, config=settings, folder=folder)[0]
        parent = self.encoders[str(cell.of)]
        if cell.watermark is not None:
            if key is None:
                raise ConfigError(f"encoder '{name}' is marked before its key's clean encoder")
            marking = cell.watermark.model_copy(update={"seed": seed + cell.watermark.seed})
            return watermark(parent, key=key, images=self.images, config=marking, folder=folder)[0]
        if cell.steal is None:
            raise ConfigError(f"encoder '{name}' has no stage")
        theft = cell.steal.model_copy(update={"seed": seed + cell.steal.seed})
        return steal(parent, images=self.images.train, config=theft, folder=folder).surrogate

    def _key(self, name: str, config: BenchKey, clean: Encoder) -> WatermarkKey:
        path = self.out / f"{name}.key"
        if path.is_file():
            return load_key(path)
        began = time.perf_counter()
        secret = sha256(f"{self.config.seed}/{name}/benchmark key".encode()).digest()
        key = keygen(
            self.images,
            encoder=clean if config.groups == "clusters" else None,
            clusters=config.clusters,
            sub_keys=config.sub_keys,
            spare=config.spare,
            families=config.families,
            autoencoder_steps=config.autoencoder_steps,
            carriers=config.carriers,
            carriers_in=config.carriers_in,
            secret=secret,
        )
        save_key(key, path)
        say(f"key {name}: {time.perf_counter() - began:.0f} s")
        return key

    def _utility(self, name: str, encoder: Encoder) -> dict[str, float]:
        path = self.out / name / "utility.json"
        if not path.is_file():
            began = time.perf_counter()
            train, test = self.images.train, self.images.test
            z, z_test = (
                embed(encoder, part, precision=self.config.verify.read.precision)
                for part in (train, test)
            )
            measured = utility(z, train.labels, z_test, test.labels)
            seconds = round(time.perf_counter() - began, 1)
            write_json(path, {**measured, "seconds": seconds})
        kept = read_json(path)
        return {"linear": kept["linear"], "knn": kept["knn"]}

    def _judge(self, name: str, encoder: Encoder, key: WatermarkKey, config: BenchKey) -> Verdict:
        began = time.perf_counter()
        verdict = verify(
            encoder,
            key=key,
            images=self.images,
            nulls=[self.encoders[config.of]],
            config=self.config.verify,
            memory=self.memory,
        )
        seconds = round(time.perf_counter() - began, 1)
        write_json(self.out / name / "verdict.json", {**verdict.to_dict(), "seconds": seconds})
        self.verdicts[name] = verdict
        return verdict

    def _times(self, name: str) -> dict[str, float]:
        paths = {"utility": "utility.json", "verify": "verdict.json"}
        return {
            what: read_json(self.out / name / file)["seconds"]
            for what, file in paths.items()
            if (self.out / name / file).is_file()
        }


def run_benchmark(
    config: BenchConfig, *, out: Path, images: Images | None = None
) -> dict[str, Any]:
    """Run ``config`` into ``out`` and return the result dictionary.

    Raises:
        ConfigError: a cell in ``out`` was made with other settings.
        SslWmError: whatever a stage raises; finished cells are kept.
    """
    return Benchmark(config, out=out, images=images).run()
