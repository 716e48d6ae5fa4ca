"""Every attack on digits: it learns, its bill is right, and its options do what they say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ssl_wm.data.sources import ImageSet, open_images
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.load import build_encoder, load_encoder, save_encoder
from ssl_wm.encoders.properties import encoder_digest, width_of
from ssl_wm.errors import ConfigError
from ssl_wm.extraction.attacks import ATTACKS, Asking, Rounds
from ssl_wm.extraction.fitting import relations
from ssl_wm.extraction.settings import StealConfig, quote
from ssl_wm.extraction.steal import build_surrogate, steal
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


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_beats_an_untrained_surrogate_and_its_bill_is_what_was_sent(attack, digits):
    # Two of them learn nothing but how images relate, and more slowly: they need a victim whose
    # answers differ (its normalisation has seen images), and twenty held-out images are noise.
    victim = Victim()
    if ATTACKS[attack].relational:
        with torch.no_grad():
            for _ in range(60):
                victim.encoder.train()(digits.pixels)
        victim.encoder.eval()
    settings = config(attack, epochs=16 if ATTACKS[attack].relational else 4)
    theft = rob(victim, digits, settings)
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
def test_an_attack_works_on_another_architecture_of_half_the_width(attack, digits):
    half = WIDTH // 2
    theft = rob(Victim(), digits, config(attack, arch=f"vgg-small+{half}", epochs=1, budget=40))
    assert theft.surrogate.arch == f"vgg-small+{half}+{WIDTH}"
    assert width_of(theft.surrogate, image_size=SIDE) == WIDTH


def test_a_live_attack_sends_new_views_in_every_epoch_and_the_held_out_images_once(digits):
    victim = Victim()
    rob(victim, digits, config("cont-steal-live", epochs=3, budget=70))
    held, views = victim.sent[:7], victim.sent[7:]
    assert len(views) == 3 * 32  # whole batches of the 63 others
    assert len(set(views)) > 0.95 * len(views)
    images = {digits.pixels[i].numpy().tobytes() for i in range(len(digits))}
    assert set(held) <= images


def test_prototypes_are_means_of_unit_answers_to_views(digits):
    victim = Victim()
    theft = rob(victim, digits, config("rda", budget=30, epochs=0))
    pixels = torch.stack([torch.frombuffer(bytearray(b), dtype=torch.uint8) for b in victim.sent])
    z = victim.encoder(pixels.view(-1, 3, SIDE, SIDE)).detach()
    expected = torch.nn.functional.normalize(z, dim=1).view(10, 30, WIDTH).mean(dim=0)
    torch.testing.assert_close(theft.transfer.embeddings, expected)
    assert len(set(victim.sent)) > 150


def test_half_of_the_composites_attack_is_made_of_the_thiefs_own_images(digits):
    theft = rob(Victim(), digits, config("composites", epochs=0))
    own = theft.transfer.indices >= len(digits)
    assert int(own.sum()) == 100
    assert theft.transfer.made.shape == (100, 3, SIDE, SIDE)
    assert not own[:20].any()  # the held-out slice is of natural images


def test_repeats_are_billed_and_take_noise_away(digits):
    gaps = []
    for repeats in (1, 16):
        victim = Victim(noise=0.5)
        theft = rob(victim, digits, config(epochs=0, repeats=repeats))
        clean = embed(victim.encoder, digits.take(theft.transfer.indices))
        gaps.append(float((theft.transfer.embeddings - clean).square().mean().sqrt()))
        assert theft.transfer.ledger.repeated == 200 * (repeats - 1)
        assert len(victim.sent) == 200 * repeats
    assert gaps == pytest.approx([0.5, 0.125], rel=0.05)


def test_denoised_answers_are_what_is_fitted_and_raw_ones_are_kept(digits, tmp_path):
    plain = rob(Victim(noise=0.3), digits, config(epochs=1), tmp_path / "plain")
    denoised = rob(Victim(noise=0.3), digits, config(epochs=1, denoise=True), tmp_path / "less")
    assert torch.equal(plain.transfer.embeddings, denoised.transfer.embeddings)
    assert encoder_digest(plain.surrogate) != encoder_digest(denoised.surrogate)


def test_a_warm_start_begins_with_the_given_encoder_and_is_nearer_after_one_epoch(digits, tmp_path):
    # The start knows the victim's features but not its output map.
    own = build_encoder(f"convnet-xs+{WIDTH}", seed=7)
    start = replace_head(own)
    save_encoder(start, tmp_path / "start")
    settings = config(arch=None, start=str(tmp_path / "start"), epochs=2, budget=100)
    warm = rob(Victim(), digits, settings, tmp_path / "warm")
    cold = rob(Victim(), digits, config(epochs=2, budget=100))
    assert warm.metrics[-1]["held_out_cosine"] > cold.metrics[-1]["held_out_cosine"]
    assert warm.surrogate.arch == f"convnet-xs+{WIDTH}"
    saved = save_encoder(warm.surrogate, tmp_path / "stolen")
    assert saved.width == WIDTH
    loaded = load_encoder(tmp_path / "stolen")
    assert torch.equal(embed(loaded, digits), embed(warm.surrogate, digits))
    with pytest.raises(ConfigError, match="leave arch out"):
        rob(Victim(), digits, config(start=str(tmp_path / "start")))


def replace_head(encoder):
    below = build_encoder("convnet-xs", seed=3)
    below.backbone.load_state_dict(encoder.backbone.backbone.state_dict())
    return below


@pytest.mark.parametrize("selection", ["k-centre", "cluster-balanced"])
@pytest.mark.parametrize("attack", ["cosine", "jba", "cont-steal-live"])
def test_a_selection_goes_with_any_way_of_asking(attack, selection, digits):
    victim = Victim()
    settings = config(attack, selection=selection, epochs=1, budget=60)
    theft = rob(victim, digits, settings)
    assert theft.transfer.ledger.billed == len(victim.sent)
    other = rob(Victim(), digits, config(attack, epochs=1, budget=60))
    assert set(theft.transfer.indices.tolist()) != set(other.transfer.indices.tolist())


@pytest.mark.parametrize("attack", ASKING)
def test_the_same_seed_asks_and_learns_the_same(attack, digits):
    settings = config(attack, budget=70, epochs=1)
    one, two = (rob(Victim(), digits, settings) for _ in range(2))
    other = rob(Victim(), digits, settings.model_copy(update={"seed": 1}))
    digests = [encoder_digest(theft.surrogate) for theft in (one, two, other)]
    assert digests[0] == digests[1] != digests[2]


def test_rounds_stop_when_nothing_new_can_be_made(digits, monkeypatch):
    still = Rounds(first=0.5, count=3, epochs=1, step=1e-4)  # rounds to the same pixels
    attack = replace(ATTACKS["jba"], asking=Asking("jacobian", rounds=still))
    monkeypatch.setitem(ATTACKS, "jba", attack)
    victim = Victim()
    theft = rob(victim, digits, config("jba", budget=40, epochs=1))
    assert len(victim.sent) == theft.transfer.ledger.billed == 20
