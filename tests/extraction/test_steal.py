"""Every attack runs end to end on a tiny pool, and its surrogate answers like the victim."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from ssl_wm.data.image_set import ImageSet
from ssl_wm.data.order import Place
from ssl_wm.data.views import augment
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.load import build_encoder, load_encoder, save_encoder
from ssl_wm.encoders.properties import encoder_digest, width_of
from ssl_wm.errors import ConfigError, EncoderError, TrainingError
from ssl_wm.extraction.losses import cosine
from ssl_wm.extraction.steal import (
    ATTACKS,
    COLOUR,
    Attack,
    StealConfig,
    StealTask,
    build_surrogate,
    steal,
)
from ssl_wm.rng import torch_stream
from ssl_wm.training.settings import FitConfig


def pool_of(count: int = 48, size: int = 16, *, seed: int = 0) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=generator)
    pixels = colours.repeat_interleave(size // 4, dim=2).repeat_interleave(size // 4, dim=3)
    return ImageSet("x", "train", pixels.contiguous(), torch.arange(count) % 2, ("a", "b"))


def config(attack: str = "cosine", **changes: object) -> StealConfig:
    fit = FitConfig(epochs=changes.pop("epochs", 4), batch_size=16, learning_rate=2e-3)
    settings = {"arch": "convnet-xs", "held_out": 0.2, "fit": fit} | changes
    return StealConfig(attack=attack, **settings)


class Counting:
    """A victim without weights that notes how often it was asked."""

    def __init__(self, width: int = 12) -> None:
        self.images, self.encoder = 0, build_encoder(f"convnet-xs+{width}", seed=8).eval()

    def __call__(self, images):
        self.images += len(images)
        return self.encoder(images)


def fidelity(one, other, images: ImageSet) -> float:
    return float(torch.cosine_similarity(embed(one, images), embed(other, images)).mean())


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_brings_the_surrogate_nearer_to_the_victim(attack, tmp_path):
    victim = build_encoder("convnet-xs", seed=7).eval()
    before = encoder_digest(victim)
    theft = steal(victim, images=pool_of(), config=config(attack, epochs=8), folder=tmp_path)
    measure = "held_out_relations" if ATTACKS[attack].relational else "held_out_cosine"
    kept = [line[measure] for line in theft.metrics]
    assert len(kept) == 8
    if not ATTACKS[attack].relational:  # relations of 16 images are noise: see test_attacks
        assert kept[-1] > kept[0]
    assert theft.metrics[-1]["loss"] < theft.metrics[0]["loss"]
    if not ATTACKS[attack].relational:
        assert fidelity(theft.surrogate, victim, pool_of(seed=1)) > 0.5
    calls = {"rda": 480, "cont-steal-live": 9 + 8 * 32}.get(attack, 48)
    assert theft.transfer.ledger.billed == calls
    assert not theft.surrogate.training
    assert encoder_digest(victim) == before
    assert encoder_digest(theft.surrogate) != before
    saved = save_encoder(theft.surrogate, tmp_path / "stolen")
    loaded = load_encoder(tmp_path / "stolen")
    assert torch.equal(embed(loaded, pool_of()), embed(theft.surrogate, pool_of()))
    assert (saved.arch, saved.width) == ("convnet-xs", 128)
    assert saved.made["config"]["attack"] == attack
    assert saved.made["queries"] == calls


@pytest.mark.parametrize("arch", ["convnet-xs", "timm/test_resnet?size=32"])
def test_a_surrogate_of_another_width_gets_a_projection_that_is_trained_and_kept(arch, tmp_path):
    victim = Counting(width=12)
    theft = steal(load_encoder(victim), images=pool_of(), config=config(arch=arch))
    surrogate = theft.surrogate
    name = arch.partition("?")[0] + "+12"
    assert surrogate.arch == name
    assert width_of(surrogate, image_size=16) == 12
    fresh = build_surrogate(arch, width=12, seed=0, size=16)
    assert fresh.arch == name
    moved = surrogate.backbone.projection.weight - fresh.backbone.projection.weight
    assert moved.abs().max() > 1e-4
    save_encoder(surrogate, tmp_path)
    loaded = load_encoder(tmp_path)
    assert loaded.arch == name
    assert torch.equal(embed(loaded, pool_of()), embed(surrogate, pool_of()))


def test_a_surrogate_of_the_same_width_gets_none():
    assert build_surrogate("convnet-xs", width=128, seed=0, size=16).arch == "convnet-xs"
    own = build_surrogate("convnet-xs+12", width=12, seed=0, size=16)
    assert own.arch == "convnet-xs+12"


@pytest.mark.parametrize(
    "attack", [name for name in ATTACKS if ATTACKS[name].asking.how not in ("views", "live")]
)
def test_an_attack_asks_for_each_image_once_however_long_it_trains(attack):
    victim = Counting()
    steal(load_encoder(victim), images=pool_of(), config=config(attack, budget=20, epochs=3))
    assert victim.images == 20


def test_a_victim_gone_after_its_answers_is_not_asked_again_when_training_resumes(
    tmp_path, monkeypatch
):
    whole = steal(load_encoder(Counting()), images=pool_of(), config=config())
    real = StealTask.batch

    def breaks(self, place):
        if place.epoch == 2:
            raise ConnectionError
        return real(self, place)

    monkeypatch.setattr(StealTask, "batch", breaks)
    victim = Counting()
    with pytest.raises(ConnectionError):
        steal(load_encoder(victim), images=pool_of(), config=config(), folder=tmp_path)
    monkeypatch.undo()
    resumed = steal(load_encoder(victim), images=pool_of(), config=config(), folder=tmp_path)
    assert victim.images == 48
    assert encoder_digest(resumed.surrogate) == encoder_digest(whole.surrogate)
    with pytest.raises(TrainingError, match="other settings"):
        steal(load_encoder(victim), images=pool_of(), config=config("mse"), folder=tmp_path)


def test_the_same_seed_steals_the_same_surrogate_and_another_seed_another():
    victim = build_encoder("convnet-xs", seed=7)
    one, two, other = (
        encoder_digest(
            steal(victim, images=pool_of(), config=config(epochs=1, seed=seed)).surrogate
        )
        for seed in (0, 0, 1)
    )
    assert one == two != other


def test_the_surrogate_does_not_start_from_the_victims_weights():
    victim = build_encoder("convnet-xs", seed=0)
    stolen = steal(victim, images=pool_of(), config=config(epochs=0)).surrogate
    assert encoder_digest(stolen) != encoder_digest(victim)


def task_of(**changes: object) -> StealTask:
    pool, settings = pool_of(), config(**changes)
    theft = steal(build_encoder("convnet-xs", seed=7), images=pool, config=config(epochs=0))
    return StealTask(theft.surrogate, pool, theft.transfer, config=settings)


def test_training_sees_every_image_but_the_held_out_ones_with_their_own_answers():
    task = task_of()
    assert (task.held, task.used) == (9, 39)
    assert task.steps_per_epoch() == 2
    seen = set()
    for epoch in range(6):
        for step in range(2):
            batch = task.batch(Place(epoch, step))
            for image, answer in zip(batch["images"], batch["answers"], strict=True):
                place = (task.pool.pixels == image).all(dim=(1, 2, 3)).nonzero().item()
                row = (task.transfer.indices == place).nonzero().item()
                assert torch.equal(answer, task.transfer.embeddings[row])
                seen.add(row)
    assert seen == set(range(9, 48))


def test_without_held_out_images_there_is_no_fidelity():
    task = task_of(held_out=0)
    assert (task.held, task.used, task.to_log()) == (0, 48, {})


def test_the_loss_is_the_weighted_sum_on_the_image_and_on_its_view(monkeypatch):
    monkeypatch.setitem(ATTACKS, "both", Attack(cosine, views=COLOUR, plain=3.0, viewed=2.0))
    task = task_of(attack="both").eval()
    batch, task.place = task.batch(Place(1, 1)), Place(1, 1)
    stream = torch_stream(task.config.seed, "views", 1, 1, 0)
    seen = augment(batch["images"], config=COLOUR, generator=stream)
    expected = 3 * cosine(task.surrogate(batch["images"]), batch["answers"])
    expected = expected + 2 * cosine(task.surrogate(seen), batch["answers"])
    torch.testing.assert_close(task(batch)["loss"], expected)


def test_the_attacks_are_those_of_the_papers():
    assert (ATTACKS["stolen-encoder"].plain, ATTACKS["stolen-encoder"].viewed) == (1, 20)
    assert ATTACKS["stolen-encoder"].views.min_scale == 1
    released = ATTACKS["stolen-encoder-plain"]
    assert (released.plain, released.viewed, released.loss) == (
        1,
        0,
        ATTACKS["stolen-encoder"].loss,
    )
    plain = {name for name, attack in ATTACKS.items() if attack.plain}
    assert plain == {"stolen-encoder", "stolen-encoder-plain"}
    assert (ATTACKS["rda"].asking.how, ATTACKS["rda"].asking.count) == ("views", 10)
    assert all(attack.source and attack.differs for attack in ATTACKS.values())


def test_an_unknown_attack_names_the_nearest_before_anything_is_asked():
    victim = Counting()
    for changes, says in (
        ({"attack": "cosin"}, "unknown attack 'cosin'; did you mean 'cosine'"),
        ({"arch": "convnet-z"}, "did you mean 'convnet-"),
        ({"arch": "timm/resnet10x"}, "'resnet10t'"),
    ):
        with pytest.raises((ConfigError, EncoderError), match=says):
            steal(load_encoder(victim), images=pool_of(), config=config(**changes))
    assert victim.images == 0


def test_a_budget_beyond_the_pool_is_refused_before_anything_is_asked():
    victim = Counting()
    with pytest.raises(ConfigError, match=r"1 to 48 .*; got 49"):
        steal(load_encoder(victim), images=pool_of(), config=config(budget=49))
    assert victim.images == 0


@pytest.mark.parametrize("wrong", [{"budget": 0}, {"held_out": 0.5}, {"held_out": -0.1}, {"x": 1}])
def test_a_setting_out_of_range_is_refused(wrong):
    with pytest.raises(ValidationError):
        config(**wrong)
