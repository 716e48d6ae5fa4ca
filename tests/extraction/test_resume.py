"""A killed theft goes on where it was and sends nothing twice, however it asks."""

from __future__ import annotations

import json

import pytest
import torch

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.properties import encoder_digest
from ssl_wm.extraction import queries
from ssl_wm.extraction.fitting import StealTask
from ssl_wm.extraction.queries import load_transfer_set

ASKING = ("cosine", "rda", "cont-steal-live", "jba", "knockoff-adaptive", "composites")
"""One attack for each way of asking."""


@pytest.mark.parametrize("attack", ASKING)
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_a_killed_theft_goes_on_to_the_same_end_and_sends_nothing_again(
    attack, share, digits, tmp_path, monkeypatch, thief
):
    monkeypatch.setattr(queries, "CHUNK", 16)
    settings = thief.config(attack, budget=70, epochs=2)
    whole = thief.Victim()
    expected = thief.rob(whole, digits, settings)
    first, second = thief.Victim(patience=int(share * len(whole.sent))), thief.Victim()
    with pytest.raises(ConnectionError):
        thief.rob(first, digits, settings, tmp_path)
    theft = thief.rob(second, digits, settings, tmp_path)
    assert first.sent + second.sent == whole.sent
    assert encoder_digest(theft.surrogate) == encoder_digest(expected.surrogate)
    assert theft.transfer.ledger == expected.transfer.ledger
    calls = json.loads((tmp_path / "ledger.json").read_text())["calls"]
    assert calls["billed"] == len(whole.sent)
    assert not (tmp_path / "rounds").exists()
    assert not (tmp_path / "live").exists()
    last = thief.Victim(patience=0)
    again = thief.rob(last, digits, settings, tmp_path)
    assert again.transfer.ledger == expected.transfer.ledger
    assert encoder_digest(again.surrogate) == encoder_digest(expected.surrogate)
    loaded = load_transfer_set(tmp_path)
    assert torch.equal(loaded.embeddings, expected.transfer.embeddings)


@pytest.mark.parametrize("attack", ["jba", "knockoff-adaptive"])
def test_training_killed_within_the_rounds_changes_nothing(
    attack, digits, tmp_path, monkeypatch, thief
):
    settings = thief.config(attack, budget=90, epochs=2)
    whole = thief.Victim()
    expected = thief.rob(whole, digits, settings)
    real, calls = StealTask.batch, []

    def breaks(self, place):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return real(self, place)

    monkeypatch.setattr(StealTask, "batch", breaks)
    victim = thief.Victim()
    with pytest.raises(KeyboardInterrupt):
        thief.rob(victim, digits, settings, tmp_path)
    assert len(victim.sent) < 90
    theft = thief.rob(victim, digits, settings, tmp_path)
    assert victim.sent == whole.sent
    assert encoder_digest(theft.surrogate) == encoder_digest(expected.surrogate)


def test_the_best_epoch_is_kept_by_the_held_out_slice_also_after_a_kill(
    digits, tmp_path, monkeypatch, thief
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
    theft = thief.rob(thief.Victim(), digits, thief.config(keep="best"))
    assert encoder_digest(theft.surrogate) == states[1] != states[-1]
    monkeypatch.undo()
    settings = thief.config(keep="best")
    expected = thief.rob(thief.Victim(), digits, settings)
    real = StealTask.batch

    def breaks(self, place):
        if place.epoch == 3:
            raise KeyboardInterrupt
        return real(self, place)

    monkeypatch.setattr(StealTask, "batch", breaks)
    with pytest.raises(KeyboardInterrupt):
        thief.rob(thief.Victim(), digits, settings, tmp_path)
    monkeypatch.undo()
    resumed = thief.rob(thief.Victim(), digits, settings, tmp_path)
    assert encoder_digest(resumed.surrogate) == encoder_digest(expected.surrogate)
    best = max(line["held_out_cosine"] for line in expected.metrics)
    held = digits.take(expected.transfer.indices[:20])
    z = embed(expected.surrogate, held)
    got = torch.cosine_similarity(z, expected.transfer.embeddings[:20]).mean()
    assert got.item() == pytest.approx(best, abs=1e-5)
