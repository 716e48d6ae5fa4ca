"""Every attack on digits: it learns, its bill is right, and its options do what they say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.load import build_encoder, load_encoder, save_encoder
from ssl_wm.encoders.properties import encoder_digest, width_of
from ssl_wm.errors import ConfigError
from ssl_wm.extraction.attacks import ATTACKS, Asking, Rounds
from ssl_wm.extraction.fitting import relations
from ssl_wm.extraction.settings import quote
from ssl_wm.extraction.steal import build_surrogate

WIDTH, SIDE = 24, 16
ASKING = ("cosine", "rda", "cont-steal-live", "jba", "knockoff-adaptive", "composites")
"""One attack for each way of asking."""


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_beats_an_untrained_surrogate_and_its_bill_is_what_was_sent(
    attack, digits, thief
):
    # Two of them learn nothing but how images relate, and more slowly: they need a victim whose
    # answers differ (its normalisation has seen images), and twenty held-out images are noise.
    victim = thief.Victim()
    if ATTACKS[attack].relational:
        with torch.no_grad():
            for _ in range(60):
                victim.encoder.train()(digits.pixels)
        victim.encoder.eval()
    settings = thief.config(attack, epochs=16 if ATTACKS[attack].relational else 4)
    theft = thief.rob(victim, digits, settings)
    ledger = theft.transfer.ledger
    assert ledger.billed == len(victim.sent) == quote(settings, pool=len(digits)).billed
    assert theft.surrogate.made["queries"] == len(victim.sent)
    if ATTACKS[attack].asking.how not in ("views", "live"):
        assert len(set(victim.sent)) == ledger.unique == 200
        assert ledger.repeated == 0
    seen = slice(20, None) if ATTACKS[attack].relational else slice(20)
    held = digits.take(theft.transfer.indices[seen])
    answers = embed(victim.encoder, held)
    fresh = build_surrogate("convnet-xs", width=WIDTH, seed=0, size=SIDE)
    before, after = (embed(encoder, held) for encoder in (fresh, theft.surrogate))
    if ATTACKS[attack].relational:
        assert relations(after, answers) > relations(before, answers) + 0.1
    else:
        cosines = [torch.cosine_similarity(z, answers).mean() for z in (before, after)]
        assert cosines[1] > cosines[0] + 0.3


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_works_on_another_architecture_of_half_the_width(attack, digits, thief):
    half = WIDTH // 2
    theft = thief.rob(
        thief.Victim(), digits, thief.config(attack, arch=f"vgg-small+{half}", epochs=1, budget=40)
    )
    assert theft.surrogate.arch == f"vgg-small+{half}+{WIDTH}"
    assert width_of(theft.surrogate, image_size=SIDE) == WIDTH


def test_a_live_attack_sends_new_views_in_every_epoch_and_the_held_out_images_once(digits, thief):
    victim = thief.Victim()
    thief.rob(victim, digits, thief.config("cont-steal-live", epochs=3, budget=70))
    held, views = victim.sent[:7], victim.sent[7:]
    assert len(views) == 3 * 32  # whole batches of the 63 others
    assert len(set(views)) > 0.95 * len(views)
    images = {digits.pixels[i].numpy().tobytes() for i in range(len(digits))}
    assert set(held) <= images


def test_prototypes_are_means_of_unit_answers_to_views(digits, thief):
    victim = thief.Victim()
    theft = thief.rob(victim, digits, thief.config("rda", budget=30, epochs=0))
    pixels = torch.stack([torch.frombuffer(bytearray(b), dtype=torch.uint8) for b in victim.sent])
    z = victim.encoder(pixels.view(-1, 3, SIDE, SIDE)).detach()
    expected = torch.nn.functional.normalize(z, dim=1).view(10, 30, WIDTH).mean(dim=0)
    torch.testing.assert_close(theft.transfer.embeddings, expected)
    assert len(set(victim.sent)) > 150


def test_half_of_the_composites_attack_is_made_of_the_thiefs_own_images(digits, thief):
    theft = thief.rob(thief.Victim(), digits, thief.config("composites", epochs=0))
    own = theft.transfer.indices >= len(digits)
    assert int(own.sum()) == 100
    assert theft.transfer.made.shape == (100, 3, SIDE, SIDE)
    assert not own[:20].any()  # the held-out slice is of natural images


def test_repeats_are_billed_and_take_noise_away(digits, thief):
    gaps = []
    for repeats in (1, 16):
        victim = thief.Victim(noise=0.5)
        theft = thief.rob(victim, digits, thief.config(epochs=0, repeats=repeats))
        clean = embed(victim.encoder, digits.take(theft.transfer.indices))
        gaps.append(float((theft.transfer.embeddings - clean).square().mean().sqrt()))
        assert theft.transfer.ledger.repeated == 200 * (repeats - 1)
        assert len(victim.sent) == 200 * repeats
    assert gaps == pytest.approx([0.5, 0.125], rel=0.05)


def test_denoised_answers_are_what_is_fitted_and_raw_ones_are_kept(digits, tmp_path, thief):
    plain = thief.rob(thief.Victim(noise=0.3), digits, thief.config(epochs=1), tmp_path / "plain")
    denoised = thief.rob(
        thief.Victim(noise=0.3), digits, thief.config(epochs=1, denoise=True), tmp_path / "less"
    )
    assert torch.equal(plain.transfer.embeddings, denoised.transfer.embeddings)
    assert encoder_digest(plain.surrogate) != encoder_digest(denoised.surrogate)


def test_a_warm_start_begins_with_the_given_encoder_and_is_nearer_after_one_epoch(
    digits, tmp_path, thief
):
    # The start knows the victim's features but not its output map.
    own = build_encoder(f"convnet-xs+{WIDTH}", seed=7)
    start = replace_head(own)
    save_encoder(start, tmp_path / "start")
    settings = thief.config(arch=None, start=str(tmp_path / "start"), epochs=2, budget=100)
    warm = thief.rob(thief.Victim(), digits, settings, tmp_path / "warm")
    cold = thief.rob(thief.Victim(), digits, thief.config(epochs=2, budget=100))
    assert warm.metrics[-1]["held_out_cosine"] > cold.metrics[-1]["held_out_cosine"]
    assert warm.surrogate.arch == f"convnet-xs+{WIDTH}"
    saved = save_encoder(warm.surrogate, tmp_path / "stolen")
    assert saved.width == WIDTH
    loaded = load_encoder(tmp_path / "stolen")
    assert torch.equal(embed(loaded, digits), embed(warm.surrogate, digits))
    with pytest.raises(ConfigError, match="leave arch out"):
        thief.rob(thief.Victim(), digits, thief.config(start=str(tmp_path / "start")))


def replace_head(encoder):
    below = build_encoder("convnet-xs", seed=3)
    below.backbone.load_state_dict(encoder.backbone.backbone.state_dict())
    return below


@pytest.mark.parametrize("selection", ["k-centre", "cluster-balanced"])
@pytest.mark.parametrize("attack", ["cosine", "jba", "cont-steal-live"])
def test_a_selection_goes_with_any_way_of_asking(attack, selection, digits, thief):
    victim = thief.Victim()
    settings = thief.config(attack, selection=selection, epochs=1, budget=60)
    theft = thief.rob(victim, digits, settings)
    assert theft.transfer.ledger.billed == len(victim.sent)
    other = thief.rob(thief.Victim(), digits, thief.config(attack, epochs=1, budget=60))
    assert set(theft.transfer.indices.tolist()) != set(other.transfer.indices.tolist())


@pytest.mark.parametrize("attack", ASKING)
def test_the_same_seed_asks_and_learns_the_same(attack, digits, thief):
    settings = thief.config(attack, budget=70, epochs=1)
    one, two = (thief.rob(thief.Victim(), digits, settings) for _ in range(2))
    other = thief.rob(thief.Victim(), digits, settings.model_copy(update={"seed": 1}))
    digests = [encoder_digest(theft.surrogate) for theft in (one, two, other)]
    assert digests[0] == digests[1] != digests[2]


def test_rounds_stop_when_nothing_new_can_be_made(digits, monkeypatch, thief):
    still = Rounds(first=0.5, count=3, epochs=1, step=1e-4)  # rounds to the same pixels
    attack = replace(ATTACKS["jba"], asking=Asking("jacobian", rounds=still))
    monkeypatch.setitem(ATTACKS, "jba", attack)
    victim = thief.Victim()
    theft = thief.rob(victim, digits, thief.config("jba", budget=40, epochs=1))
    assert len(victim.sent) == theft.transfer.ledger.billed == 20
