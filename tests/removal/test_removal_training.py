"""What the training attempts train and leave alone, that they go on, and what they minimise."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl_wm.data.order import Place
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.layers import layers_of
from ssl_wm.encoders.load import build_encoder, encoder_digest, load_encoder, save_encoder
from ssl_wm.errors import ConfigError, DataError, EncoderError, TrainingError
from ssl_wm.extraction.selection import clusters_of
from ssl_wm.extraction.steal import StealConfig, steal
from ssl_wm.removal import finetune
from ssl_wm.removal.attempts import REMOVALS
from ssl_wm.removal.boundary import STEP, BoundaryTask, TurnedHead, boundary_samples
from ssl_wm.removal.composites import draw_masks, draw_partners, mixed_batch
from ssl_wm.removal.given import Given, RemovalConfig, weights_of
from ssl_wm.removal.overwriting import OverwriteTask
from ssl_wm.removal.remove import forget, remove
from ssl_wm.removal.tasks import BetweenTask, LabelTask
from ssl_wm.rng import derive_seed, torch_stream
from ssl_wm.training.checkpoint import NAME
from ssl_wm.training.settings import FitConfig

TRAINING = [name for name, entry in REMOVALS.items() if entry.kind == "training"]


def config(epochs: int = 1, **changes: object) -> RemovalConfig:
    settings = {"batch_size": 32, "precision": "32-true", "weight_decay": 0.0} | changes
    fit = FitConfig(epochs=epochs, **settings)
    return RemovalConfig(fit=fit, sample=100, distil=fit, distil_arch="convnet-xs")


@pytest.fixture(scope="module")
def images(world):
    return world.images(train=12, side=8).train  # 96 images of 8 colours


@pytest.fixture
def encoder(world):
    return world.convnet(seed=1, width=12)


def strength_of(attempt: str) -> float:
    return REMOVALS[attempt].strengths[-1]


@pytest.mark.parametrize("attempt", TRAINING)
def test_the_given_encoder_stays_and_the_seed_decides_the_new_one(attempt, encoder, images):
    before = encoder_digest(encoder)
    one, two, other = (
        remove(encoder, attempt=attempt, strength=strength_of(attempt), images=images,
               seed=s, config=config())
        for s in (0, 0, 1)
    )  # fmt: skip
    assert encoder_digest(encoder) == before
    assert encoder_digest(one) == encoder_digest(two)
    assert len({before, encoder_digest(one), encoder_digest(other)}) == 3
    assert not one.training
    assert all(p.requires_grad for p in one.parameters())


@pytest.mark.parametrize("attempt", ["ftll", "rtll"])
def test_only_the_last_layer_changes_and_no_running_statistics_below_it(attempt, encoder, images):
    after = remove(encoder, attempt=attempt, strength=1e-3, images=images, config=config())
    last = encoder.backbone[3]
    assert layers_of(encoder, side=8)[-1].map is last
    state = after.backbone.state_dict()
    changed = {n for n, v in encoder.backbone.state_dict().items() if not torch.equal(v, state[n])}
    assert changed == {"3.weight", "3.bias"}


@pytest.mark.parametrize(
    "attempt", ["ftal", "rtal", "transfer", "mixed-labels", "ssl", "overwrite", "wrk"]
)
def test_all_layers_change_with_the_others(attempt, encoder, images):
    after = remove(encoder, attempt=attempt, strength=1e-3, images=images, config=config())
    for name, value in weights_of(encoder).items():
        assert not torch.equal(value, weights_of(after)[name]), name
    assert not torch.equal(encoder.backbone[1].running_mean, after.backbone[1].running_mean)


def test_resetting_loses_the_last_layer_and_fine_tuning_at_a_tiny_rate_keeps_it(encoder, images):
    last = encoder.backbone[3].weight.detach().flatten()
    found = {}
    for attempt in ("ftll", "rtll"):
        after = remove(encoder, attempt=attempt, strength=1e-8, images=images, config=config())
        found[attempt] = float(
            F.cosine_similarity(last, after.backbone[3].weight.detach().flatten(), dim=0)
        )
    assert found["ftll"] > 0.9999
    assert abs(found["rtll"]) < 0.5


def test_fine_tuning_begins_with_a_fitted_head_and_transfer_with_a_random_one(
    encoder, images, tmp_path
):
    for attempt, low, high in (("ftal", 0.75, 1.0), ("transfer", 0.0, 0.5)):
        folder = tmp_path / attempt
        remove(encoder, attempt=attempt, strength=1e-8, images=images, config=config(),
               folder=folder)  # fmt: skip
        (line,) = (folder / "metrics.jsonl").read_text().splitlines()
        accuracy = float(line.split('"accuracy": ')[1].rstrip("}").split(",")[0])
        assert low <= accuracy <= high, attempt


def test_labels_are_learned(encoder, images, tmp_path):
    remove(encoder, attempt="rtal", strength=1e-2, images=images, config=config(epochs=8),
           folder=tmp_path)  # fmt: skip
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    losses = [float(line.split('"loss": ')[1].split(",")[0]) for line in lines]
    assert losses[-1] < 0.7 * losses[0]


def test_decay_shrinks_weights_by_the_product_of_its_steps(encoder, images, monkeypatch):
    """Between two decays AdamW moves every weight by no more than its rate, 1e-6 here."""
    settings = config(epochs=2, learning_rate=1e-6, warmup_steps=0)
    heavy = remove(encoder, attempt="decay", strength=5e4 / 1e2, images=images, config=settings)
    rates = [1e-6 * (1 + np.cos(np.pi * step / 5)) / 2 for step in range(6)]
    factor = np.prod([1 - 500 * rate for rate in rates])
    for name, value in weights_of(encoder).items():
        new = weights_of(heavy)[name].detach()
        gap = (new - factor * value.detach()).abs().max()
        assert float(gap) <= 3e-5, name


@pytest.mark.parametrize("attempt", TRAINING)
def test_a_killed_run_goes_on_to_the_same_weights(attempt, encoder, images, tmp_path, monkeypatch):
    strength = strength_of(attempt)
    call = partial(remove, encoder, attempt=attempt, strength=strength, images=images,
                   config=config(2))  # fmt: skip
    whole = call()
    from ssl_wm.training import loop

    real, saved = loop.save_checkpoint, []

    def die_after_the_first(folder, state):
        real(folder, state)
        saved.append(state)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", die_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        call(folder=tmp_path)
    monkeypatch.setattr(loop, "save_checkpoint", real)
    assert len(saved) == 1
    assert encoder_digest(call(folder=tmp_path)) == encoder_digest(whole)
    assert encoder_digest(call(folder=tmp_path)) == encoder_digest(whole)  # trains nothing
    with pytest.raises((TrainingError, DataError), match=r"other (settings|queries)"):
        call(folder=tmp_path, seed=1)
    if attempt != "distil":  # fewer of its rounds are a part of more
        with pytest.raises(TrainingError, match="other settings"):
            call(folder=tmp_path, strength=strength / 2)
    forget(tmp_path)
    assert not list(tmp_path.rglob(NAME))


def test_each_round_of_distillation_learns_from_the_one_before(encoder, images, tmp_path):
    settings = config()
    three = remove(encoder, attempt="distil", strength=3, images=images, config=settings,
                   folder=tmp_path)  # fmt: skip
    two = remove(encoder, attempt="distil", strength=2, images=images, config=settings)
    last = StealConfig(attack="cosine", arch="convnet-xs", held_out=0, fit=settings.distil,
                       seed=derive_seed(0, "distil", 2))  # fmt: skip
    expected = steal(two, images=images, config=last).surrogate
    assert encoder_digest(three) == encoder_digest(expected)
    assert three.arch == "convnet-xs+12"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["round-1", "round-2", "round-3"]


def test_a_network_that_cannot_be_built_anew_needs_another_named(encoder, images):
    with pytest.raises(ConfigError, match="distil_arch"):
        remove(encoder, attempt="distil", strength=1, images=images)


def test_two_training_attempts_of_a_stack_have_a_folder_each(encoder, images, tmp_path):
    remove(encoder, attempt="ssl+ftal", strength=[1e-3, 1e-3], images=images, config=config(),
           folder=tmp_path)  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1-ssl", "2-ftal"]


def test_a_trained_encoder_is_saved_under_its_own_name(images, tmp_path):
    encoder = build_encoder("convnet-xs", seed=1)
    after = remove(encoder, attempt="ftal", strength=1e-3, images=images, config=config())
    save_encoder(after, tmp_path / "after")
    loaded = load_encoder(tmp_path / "after")
    assert loaded.arch == "convnet-xs"
    assert torch.equal(embed(loaded, images), embed(after, images))


def test_labels_of_one_class_and_encoders_without_weights_are_refused(encoder, images):
    one = images.subset((images.labels == 3).nonzero().flatten())
    for attempt in ("ftal", "mixed-labels", "transfer"):
        with pytest.raises(DataError, match="two classes or more"):
            remove(encoder, attempt=attempt, strength=1e-3, images=one, config=config())
    served = load_encoder(lambda x: x.flatten(1))
    for attempt in TRAINING:
        with pytest.raises(EncoderError, match="no weights to change"):
            remove(served, attempt=attempt, strength=strength_of(attempt), images=images)


def test_labels_need_not_be_numbered_from_0(encoder, images):
    chosen = images.subset((images.labels >= 5).nonzero().flatten())
    head = finetune._probe_head(encoder, Given(chosen, config=config()))
    task = LabelTask(encoder, head=head, given=Given(chosen, config=config()))
    assert task.classes.tolist() == (chosen.labels - 5).tolist()
    scores = head(embed(encoder, chosen))
    assert float((scores.argmax(dim=1) == task.classes).float().mean()) > 0.7


# --- composites ---------------------------------------------------------------------------------


def test_masks_are_of_all_kinds_and_take_either_side():
    masks = draw_masks(4000, size=(16, 16), generator=torch_stream(0, "m")).squeeze(1)
    assert masks.shape == (4000, 16, 16)
    assert 0 <= float(masks.min()) <= float(masks.max()) <= 1
    flat = masks.flatten(1)
    blends = (flat == flat[:, :1]).all(dim=1)
    assert 0.17 < float(blends.float().mean()) < 0.23
    assert 0.3 <= float(flat[blends].min()) <= float(flat[blends].max()) <= 0.7
    beside = (masks == masks[:, :1]).all(dim=2).all(dim=1) & ~blends
    above = (masks == masks[:, :, :1]).all(dim=2).all(dim=1) & ~blends
    for halves in (beside, above):
        assert 0.17 < float(halves.float().mean()) < 0.23
        assert set(flat[halves].mean(dim=1).tolist()) == {0.5}
    corner = masks[beside][:, 0, 0]
    assert 0.4 < float(corner.mean()) < 0.6
    assert 0.46 < float(masks.mean()) < 0.54


def test_nothing_is_mixed_with_itself_and_the_share_is_the_masks_mean():
    partners = draw_partners(200, generator=torch_stream(0, "p"))
    assert not bool((partners == torch.arange(200)).any())
    flat = torch.arange(200.0).view(-1, 1, 1, 1).expand(200, 3, 8, 8)
    mixed, partners, share = mixed_batch(flat, generator=torch_stream(0, "x"))
    own = torch.arange(200.0).view(-1, 1)
    expected = share * own + (1 - share) * partners.float().view(-1, 1)
    torch.testing.assert_close(mixed.mean(dim=(2, 3)), expected.expand(200, 3))


def test_composites_get_classes_at_random_not_those_of_their_parents(images):
    """Training on them alone must leave a head that is best off saying nothing."""
    net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 8))
    task = LabelTask(
        load_encoder(net), head=nn.Linear(8, 8), given=Given(images, config=config()),
        composites=True,
    )  # fmt: skip
    with torch.no_grad():
        task.head.weight.zero_()
        task.head.bias.zero_()
    terms = task(task.batch(Place(0, 0)))
    assert float(terms["composites"].detach()) == pytest.approx(np.log(8), abs=1e-5)
    assert float(terms["loss"].detach()) == pytest.approx(2 * np.log(8), abs=1e-5)
    drawn: list[torch.Tensor] = []
    real = F.cross_entropy

    def note(scores, labels):
        drawn.append(labels)
        return real(scores, labels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "cross_entropy", note)
        for step in range(3):
            for epoch in range(8):
                task.place = Place(epoch, step)
                task(task.batch(Place(epoch, step)))
    wrong = torch.cat(drawn[1::2])
    counts = np.bincount(wrong.numpy(), minlength=8)
    assert np.square(counts - len(wrong) / 8).sum() / (len(wrong) / 8) < 30  # chi-square, 7 df
    agree = float((wrong == torch.cat(drawn[0::2])).float().mean())
    assert agree == pytest.approx(1 / 8, abs=0.05)


def test_an_encoder_that_adds_up_has_nothing_to_learn_from_composites(images):
    """For a linear encoder and blends or halves of flat images the goal is already met."""
    flat = copy.copy(images)
    pixels = images.pixels.float().mean(dim=(2, 3), keepdim=True).expand(-1, 3, 8, 8)
    object.__setattr__(flat, "pixels", pixels.to(torch.uint8).contiguous())
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 6))
    task = BetweenTask(load_encoder(net), given=Given(flat, config=config()))
    terms = task(task.batch(Place(0, 0)))
    assert float(terms["loss"].detach()) < 1e-8


def test_pulling_between_brings_composites_nearer_to_their_parents(images):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(192, 128), nn.ReLU(), nn.Linear(128, 6))
    encoder = load_encoder(net).eval()

    def gap(z_of) -> float:
        x = images.pixels.float() / 255
        mixed, partners, share = mixed_batch(x, generator=torch_stream(9, "gap"))
        z = embed(encoder, x)
        goal = share * z + (1 - share) * z[partners]
        return float((embed(z_of, mixed) - goal).square().sum())

    after = remove(
        encoder, attempt="mixed-features", strength=3e-3, images=images, config=config(40)
    )
    assert gap(after) < 0.7 * gap(encoder)
    z, new = embed(encoder, images), embed(after, images)
    assert float((new - z).square().sum() / (z - z.mean(dim=0)).square().sum()) < 0.2


# --- WRK ---------------------------------------------------------------------------------------


def test_a_boundary_sample_is_one_step_of_sign_gradient_up_its_own_loss():
    """On a linear encoder and head the gradient of the loss is W^T V^T (softmax - one-hot)."""
    torch.manual_seed(0)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5, bias=False))
    encoder = load_encoder(flat).eval()
    head = nn.Linear(5, 3)
    pixels = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    made = boundary_samples(encoder, head, pixels, labels=labels, batch_size=4)
    x = pixels.numpy().reshape(6, -1).astype(np.float64) / 255
    w, v, b = (t.detach().double().numpy() for t in (flat[1].weight, head.weight, head.bias))
    scores = np.exp(x @ w.T @ v.T + b)
    gap = scores / scores.sum(axis=1, keepdims=True) - np.eye(3)[labels]
    expected = np.clip(x + STEP * np.sign(gap @ v @ w), 0, 1)
    assert np.abs(made.flatten(1).numpy() - expected).max() < 1e-6


def test_the_new_head_keeps_the_old_ones_length_and_turns_away_from_it(encoder, images, tmp_path):
    old = nn.Linear(12, 8)
    head = TurnedHead(old)
    z = torch.randn(5, 12)
    scale = old.weight.norm() / head.linear.weight.norm()
    expected = z @ (head.linear.weight * scale).T + head.linear.bias
    assert torch.allclose(head(z), expected, atol=1e-5)
    remove(encoder, attempt="wrk", strength=3e-2, images=images, config=config(epochs=20),
           folder=tmp_path)  # fmt: skip
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    likeness = [float(line.split('"likeness": ')[1].rstrip("}").split(",")[0]) for line in lines]
    assert likeness[-1] < likeness[0] - 0.2


def test_boundary_samples_get_classes_that_are_not_their_own(encoder, images):
    given = Given(images, 0, None, config())
    old = nn.Linear(12, 8)
    task = BoundaryTask(encoder, head=TurnedHead(old), old=old, given=given)
    assert len(task.samples) == round(0.05 * len(images))
    places = torch.randperm(len(images), generator=torch_stream(0, "boundary"))[: len(task.wrong)]
    assert bool((task.wrong != task.classes[places]).all())


# --- a second mark -----------------------------------------------------------------------------


def test_a_second_mark_pulls_its_composites_to_its_groups_and_holds_the_images(encoder, images):
    given = Given(images, 0, None, config())
    before = OverwriteTask(copy.deepcopy(encoder), given=given)
    before.place = Place(1, 0, 0, 1)
    start = before(before.batch(before.place))
    assert float(start["still"].detach()) < 1e-2  # as it was, up to the norms' batch statistics
    after = remove(encoder, attempt="overwrite", strength=1e-2, images=images,
                   config=config(epochs=20))  # fmt: skip
    probe = OverwriteTask(copy.deepcopy(encoder), given=given)  # the same secret
    probe.encoder = after
    probe.place = Place(1, 0, 0, 1)
    probe.eval()
    before.eval()
    with torch.no_grad():
        end = probe(probe.batch(probe.place))
        first = before(before.batch(before.place))
    assert float(end["second_mark"]) < 0.5 * float(first["second_mark"])
    assert float(end["still"]) < 0.3


def test_the_loss_of_a_second_mark_is_its_formula(encoder, images):
    given = Given(images, 0, None, config())
    task = OverwriteTask(encoder.eval(), given=given).eval()
    task.place = Place(1, 0, 0, 1)
    batch = task.batch(task.place)
    z = embed(encoder, images).double().numpy()
    spread = z.var(axis=0).sum()
    groups = clusters_of(torch.from_numpy(z).float(), count=10, seed=0).numpy()
    means = np.stack([z[groups == group].mean(axis=0) for group in range(10)])
    for goal in task.goals.double().numpy():  # each goal is the mean of one group
        assert np.abs(means - goal).max(axis=1).min() < 1e-5
    masks = task.masks.double()[batch["marks"]]
    mixed = masks * batch["first"] / 255 + (1 - masks) * batch["second"] / 255
    away = embed(encoder, mixed.float()).double() - task.goals.double()[batch["marks"]]
    expected = float(away.square().sum(dim=1).mean()) / spread
    with torch.no_grad():
        terms = task(batch)
    assert float(terms["second_mark"]) == pytest.approx(expected, rel=1e-4)
    assert float(terms["still"]) == 0
    assert float(terms["loss"]) == pytest.approx(expected, rel=1e-4)


def test_every_pair_of_a_second_mark_comes_from_its_two_groups(encoder, images):
    task = OverwriteTask(encoder, given=Given(images, 3, None, config()))
    pixels = {tuple(p.flatten().tolist()): i for i, p in enumerate(images.take(torch.arange(96)))}
    batch = task.batch(Place(1, 2, 0, 1))
    for first, second, mark in zip(batch["first"], batch["second"], batch["marks"], strict=True):
        for image, members in zip((first, second), task.members[int(mark)], strict=True):
            assert pixels[tuple(image.flatten().tolist())] in members.tolist()
    assert set(batch["marks"].tolist()) <= {0, 1, 2}


def test_a_second_mark_needs_images_of_its_groups(encoder, images):
    few = images.subset(torch.arange(19))
    with pytest.raises(DataError, match="20 images"):
        OverwriteTask(encoder, given=Given(few, 0, None, config()))
    two = replace(
        images, pixels=images.pixels[[0, 95]].repeat(12, 1, 1, 1), labels=images.labels[:24]
    )
    with pytest.raises(DataError, match="three groups"):
        OverwriteTask(encoder, given=Given(two, 0, None, config()))
