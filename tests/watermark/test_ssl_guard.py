"""SSLGuard's losses are its formulas, and each part is trained by its own alone."""

from __future__ import annotations

import copy
import stat

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.spatial.distance import cosine

from ssl_wm.errors import DataError, KeyFileError
from ssl_wm.training.settings import FitConfig
from ssl_wm.verification.peers import ssl_guard_share
from ssl_wm.watermark.batches import mark_batch
from ssl_wm.watermark.embed import WatermarkConfig, watermark
from ssl_wm.watermark.guard_mark import read_guard, write_guard
from ssl_wm.watermark.ssl_guard import FILE, SslGuard, SslGuardConfig, fresh_copy, frozen


@pytest.fixture
def clean(world):
    return world.convnet().requires_grad_(False)


@pytest.fixture
def encoder(world):
    return world.convnet(seed=5)


def batch_of(images, key, *, step: int = 0) -> dict[str, torch.Tensor]:
    return mark_batch(
        images.train, key, indices=torch.arange(20), marked=8, held=2, seed=0, names=(0, step, 0)
    )


def build(clean, images, key, **options: object) -> SslGuard:
    return SslGuard(clean, images.train, key, config=SslGuardConfig(**options))


def test_the_losses_agree_with_the_formulas_in_numpy(clean, encoder, images, key):
    embedder, batch = build(clean, images, key, private=11), batch_of(images, key, step=2)
    mark, shadow = embedder.learned.mark, embedder.learned.shadow
    in_training, resting = copy.deepcopy(shadow).train(), copy.deepcopy(shadow).eval()
    losses = embedder.losses(encoder, batch)

    def rows(module: object, given: torch.Tensor) -> np.ndarray:
        return module(given).detach().double().numpy()

    private = images.train.pixels[mark.private[[16 % 11, 6, 7, 8, 9, 10, 0, 1]]].double() / 255
    mask, trigger = mark.mask.numpy(), mark.trigger.detach().numpy()
    stamped = np.clip((1 - mask) * private.numpy() + mask * trigger, 0, 1)
    stamped = torch.from_numpy(stamped).float()
    x, secret = batch["natural"], mark.secret.double().numpy()

    def agreement(module: object, given: torch.Tensor) -> float:
        decoded = rows(mark.decoder, torch.from_numpy(rows(module, given)).float())
        return float(np.mean([1 - cosine(row, secret) for row in decoded]))

    def far(one: np.ndarray, two: np.ndarray) -> float:
        return float(np.mean([cosine(a, b) for a, b in zip(one, two, strict=True)]))

    expected = {
        "utility": far(rows(encoder, x), rows(clean, x)),
        "marked": 1 - agreement(encoder, stamped),
        "unmarked": agreement(encoder, x) ** 2,
        "shadow": far(rows(copy.deepcopy(in_training), x), rows(encoder, x)),
        "near": 2 - agreement(encoder, stamped) - agreement(resting_after(shadow), stamped),
        "far": agreement(clean, x) ** 2 + agreement(encoder, x) ** 2
        + agreement(in_training, x) ** 2 + agreement(clean, stamped) ** 2,
    }  # fmt: skip
    expected["loss"] = sum(expected.values())
    assert not torch.equal(resting(x), resting_after(shadow)(x))
    assert set(losses) == set(expected)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-3, abs=1e-5), name


def resting_after(shadow):
    """Return the shadow in use, its running statistics moved by the step's own pass."""
    return copy.deepcopy(shadow).eval()


def test_every_part_is_trained_by_its_own_loss_alone(clean, encoder, images, key):
    """Else the shadow would learn the mark, which no thief does, and the decoder the utility."""
    embedder, batch = build(clean, images, key), batch_of(images, key)
    mark, shadow = embedder.learned.mark, embedder.learned.shadow
    losses = embedder.losses(encoder, batch)

    def reaches(name: str, module: torch.nn.Module) -> bool:
        parameters = list(module.parameters())
        grads = torch.autograd.grad(
            losses[name], parameters, retain_graph=True, allow_unused=True
        ) if losses[name].requires_grad else [None] * len(parameters)  # fmt: skip
        return any(grad is not None and bool(grad.any()) for grad in grads)

    owner = {"utility": encoder, "marked": encoder, "unmarked": encoder, "shadow": shadow,
             "near": mark, "far": mark}  # fmt: skip
    for name, owns in owner.items():
        for module in (encoder, shadow, mark):
            assert reaches(name, module) is (module is owns), (name, type(module).__name__)
    near = torch.autograd.grad(losses["near"], [mark.trigger], retain_graph=True)[0]
    assert near[mark.mask == 1].any()
    assert not near[mark.mask == 0].any()
    losses["loss"].backward()
    assert all(parameter.grad is None for parameter in clean.parameters())


def test_private_images_are_taken_in_turn(clean, images, key):
    embedder = build(clean, images, key, private=12)
    with torch.no_grad():
        steps = [embedder._triggered(batch_of(images, key, step=step)) for step in range(3)]
    seen = torch.cat(steps)
    everyone = embedder.learned.mark.put_on(embedder.private.float() / 255).detach()
    torch.testing.assert_close(seen, torch.cat([everyone, everyone]))


def test_all_that_is_random_follows_from_the_key(world, clean, images, key):
    one = build(clean, images, key).learned.state_dict()
    torch.manual_seed(9)
    same = build(clean, images, key).learned.state_dict()
    other = build(clean, images, world.key(images, number=2, sub_keys=2)).learned.state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    for name in ("mark.mask", "mark.trigger", "mark.secret", "mark.private",
                 "mark.decoder.0.weight", "shadow.backbone.0.weight"):  # fmt: skip
        assert not torch.equal(one[name], other[name]), name


def test_drawing_a_mark_leaves_the_global_generator_alone(clean, images, key):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build(clean, images, key)
    assert torch.equal(torch.rand(4), expected)


def test_the_mask_covers_the_share_that_was_asked_for(world, clean, images, key):
    for covered in (0.35, 0.8, 1.0):
        mask = build(clean, images, key, covered=covered).learned.mark.mask
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        assert mask.mean().item() == pytest.approx(covered, abs=0.12)  # 192 values


def test_the_shadow_starts_from_fresh_weights(clean):
    fresh = fresh_copy(clean, seed=1)
    before, after = dict(clean.named_parameters()), dict(fresh.named_parameters())
    kernels = [name for name in before if before[name].ndim == 4]
    assert kernels
    assert all(not torch.equal(before[name], after[name]) for name in kernels)
    assert all(parameter.requires_grad for parameter in after.values())
    assert fresh.backbone[1].running_mean.eq(0).all()
    again = dict(fresh_copy(clean, seed=1).named_parameters())
    assert all(torch.equal(after[name], again[name]) for name in after)


def test_a_frozen_module_answers_alike_and_passes_gradients_to_its_inputs_only(encoder):
    x = torch.rand(3, 3, 8, 8, requires_grad=True)
    answers = frozen(encoder, x)
    torch.testing.assert_close(answers, encoder(x))
    answers.square().sum().backward()
    assert x.grad.any()
    assert all(parameter.grad is None for parameter in encoder.parameters())


def fitted(world, images, key, folder=None, **fit: object):
    settings = {"epochs": 16, "batch_size": 42, "learning_rate": 5e-3, "warmup_steps": 5,
                "precision": "32-true"} | fit  # fmt: skip
    config = WatermarkConfig(method="ssl-guard", options={"private": 20}, composites=0.5,
                             fit=FitConfig(**settings))  # fmt: skip
    return watermark(world.convnet(width=32), key=key, images=images, config=config, folder=folder)


def test_the_kept_mark_reads_the_marked_encoder_and_less_of_the_clean_one(
    world, images, key, tmp_path
):
    marked, lines = fitted(world, images, key, tmp_path)
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    mark = read_guard(tmp_path / FILE)
    triggered = mark.render(images.train.take(mark.private))
    assert triggered.dtype == torch.uint8
    read = {"decoder": mark.decoder, "secret": mark.secret, "width": 32}
    shares = [ssl_guard_share(e, triggered, **read) for e in (marked, world.convnet(width=32))]
    assert shares[0] > 0.9
    assert shares[1] < shares[0] - 0.3
    for name in ("marked", "shadow", "near"):
        assert lines[-1][name] < 0.5 * lines[0][name], name


def test_what_is_learned_survives_a_kill(world, images, key, tmp_path, monkeypatch):
    from ssl_wm.training import loop

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for folder in (whole, resumed):
        folder.mkdir()
    fitted(world, images, key, whole, epochs=3)
    real = loop.save_checkpoint

    def save(folder, checkpoint) -> None:
        real(folder, checkpoint)
        if checkpoint.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", save)
        with pytest.raises(KeyboardInterrupt):
            fitted(world, images, key, resumed, epochs=3)
    assert not (resumed / FILE).exists()
    fitted(world, images, key, resumed, epochs=3)
    assert (whole / FILE).read_bytes() == (resumed / FILE).read_bytes()


def test_a_mark_is_read_back_as_it_was(clean, images, key, tmp_path):
    mark = build(clean, images, key, private=5, code=7).learned.mark
    write_guard(mark, tmp_path / "mark")
    again = read_guard(tmp_path / "mark")
    z = torch.randn(4, 8)
    assert torch.equal(again(z), mark(z))
    assert torch.equal(again.render(images.test.pixels), mark.render(images.test.pixels))
    assert torch.equal(again.private, mark.private)


def test_a_file_of_another_kind_is_one_clear_line(clean, images, key, tmp_path):
    from ssl_wm.files import write_tensors

    write_tensors(tmp_path / "other", {"mask": torch.zeros(3, 2, 2)})
    with pytest.raises(KeyFileError, match="is not the mark of an ssl-guard embedding"):
        read_guard(tmp_path / "other")
    with pytest.raises(KeyFileError, match="cannot read"):
        read_guard(tmp_path / "missing")
    mark = build(clean, images, key).learned.mark
    with pytest.raises(DataError, match="for images \\(3, 8, 8\\); got \\(3, 9, 9\\)"):
        mark.put_on(torch.zeros(1, 3, 9, 9))


@pytest.mark.parametrize(
    "options", [{"private": 0}, {"covered": 0}, {"covered": 1.1}, {"code": 1}, {"mask": 1}], ids=str
)
def test_choices_out_of_range_are_refused(options):
    with pytest.raises(ValidationError):
        SslGuardConfig(**options)
