"""A killed theft goes on where it was and sends nothing twice, however it asks."""

from __future__ import annotations

import json

import pytest
import torch

from ssl_wm.data.sources import ImageSet, open_images
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.load import build_encoder, load_encoder
from ssl_wm.encoders.properties import encoder_digest
from ssl_wm.extraction import queries
from ssl_wm.extraction.fitting import StealTask
from ssl_wm.extraction.queries import load_transfer_set
from ssl_wm.extraction.settings import StealConfig
from ssl_wm.extraction.steal import steal
from ssl_wm.training.settings import FitConfig

WIDTH, SIDE = 24, 16
ASKING = ("cosine", "rda", "cont-steal-live", "jba", "knockoff-adaptive", "composites")
"""One attack for each way of asking."""


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return open_images("digits", size=SIDE).train.subset(torch.arange(260))


class Victim:
    """Counts what it is sent, keeps each image's bytes, and fails after ``patience`` images."""

    def __init__(self, *, patience: int = 10**9, width: int = WIDTH, noise: float = 0.0) -> None:
        self.encoder = build_encoder(f"convnet-xs+{width}", seed=7).eval()
        self.patience, self.noise = patience, noise
        self.sent: list[bytes] = []
        self.stream = torch.Generator().manual_seed(1)

    def __call__(self, images):
        if len(self.sent) + len(images) > self.patience:
            raise ConnectionError("the service is gone")
        pixels = (images * 255).round().to(torch.uint8)
        assert torch.equal(pixels / 255, images)  # nothing but 8-bit images can be sent
        self.sent += [image.numpy().tobytes() for image in pixels]
        z = self.encoder(images)
        return z + self.noise * torch.randn(z.shape, generator=self.stream)


def config(attack: str = "cosine", **changes: object) -> StealConfig:
    fit = FitConfig(epochs=changes.pop("epochs", 4), batch_size=32, learning_rate=2e-3)
    settings = {"arch": "convnet-xs", "held_out": 0.1, "budget": 200, "fit": fit} | changes
    return StealConfig(attack=attack, **{k: v for k, v in settings.items() if v is not None})


def rob(victim: Victim, pool: ImageSet, settings: StealConfig, folder=None):
    return steal(load_encoder(victim), images=pool, config=settings, folder=folder)


@pytest.mark.parametrize("attack", ASKING)
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_a_killed_theft_goes_on_to_the_same_end_and_sends_nothing_again(
    attack, share, digits, tmp_path, monkeypatch
):
    monkeypatch.setattr(queries, "CHUNK", 16)
    settings = config(attack, budget=70, epochs=2)
    whole = Victim()
    expected = rob(whole, digits, settings)
    first, second = Victim(patience=int(share * len(whole.sent))), Victim()
    with pytest.raises(ConnectionError):
        rob(first, digits, settings, tmp_path)
    theft = rob(second, digits, settings, tmp_path)
    assert first.sent + second.sent == whole.sent
    assert encoder_digest(theft.surrogate) == encoder_digest(expected.surrogate)
    assert theft.transfer.ledger == expected.transfer.ledger
    calls = json.loads((tmp_path / "ledger.json").read_text())["calls"]
    assert calls["billed"] == len(whole.sent)
    assert not (tmp_path / "rounds").exists()
    assert not (tmp_path / "live").exists()
    last = Victim(patience=0)
    again = rob(last, digits, settings, tmp_path)
    assert again.transfer.ledger == expected.transfer.ledger
    assert encoder_digest(again.surrogate) == encoder_digest(expected.surrogate)
    loaded = load_transfer_set(tmp_path)
    assert torch.equal(loaded.embeddings, expected.transfer.embeddings)


@pytest.mark.parametrize("attack", ["jba", "knockoff-adaptive"])
def test_training_killed_within_the_rounds_changes_nothing(attack, digits, tmp_path, monkeypatch):
    settings = config(attack, budget=90, epochs=2)
    whole = Victim()
    expected = rob(whole, digits, settings)
    real, calls = StealTask.batch, []

    def breaks(self, place):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return real(self, place)

    monkeypatch.setattr(StealTask, "batch", breaks)
    victim = Victim()
    with pytest.raises(KeyboardInterrupt):
        rob(victim, digits, settings, tmp_path)
    assert len(victim.sent) < 90
    theft = rob(victim, digits, settings, tmp_path)
    assert victim.sent == whole.sent
    assert encoder_digest(theft.surrogate) == encoder_digest(expected.surrogate)


def test_the_best_epoch_is_kept_by_the_held_out_slice_also_after_a_kill(
    digits, tmp_path, monkeypatch
):
    scores = iter([0.1, 0.9, 0.3, 0.2])
    states = []

    def scored(self):
        states.append(encoder_digest(self.surrogate))
        score = next(scores)
        if score > float(self.best_score):
            self.best.load_state_dict(self.surrogate.state_dict())
            self.best_score.fill_(score)
        return {"held_out_cosine": score}

    monkeypatch.setattr(StealTask, "to_log", scored)
    theft = rob(Victim(), digits, config(keep="best"))
    assert encoder_digest(theft.surrogate) == states[1] != states[-1]
    monkeypatch.undo()
    settings = config(keep="best")
    expected = rob(Victim(), digits, settings)
    real = StealTask.batch

    def breaks(self, place):
        if place.epoch == 3:
            raise KeyboardInterrupt
        return real(self, place)

    monkeypatch.setattr(StealTask, "batch", breaks)
    with pytest.raises(KeyboardInterrupt):
        rob(Victim(), digits, settings, tmp_path)
    monkeypatch.undo()
    resumed = rob(Victim(), digits, settings, tmp_path)
    assert encoder_digest(resumed.surrogate) == encoder_digest(expected.surrogate)
    best = max(line["held_out_cosine"] for line in expected.metrics)
    held = digits.take(expected.transfer.indices[:20])
    z = embed(expected.surrogate, held)
    got = torch.cosine_similarity(z, expected.transfer.embeddings[:20]).mean()
    assert got.item() == pytest.approx(best, abs=1e-5)
