"""A batch in parts is the whole batch to the loss, and costs the memory of a part."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ssl_wm.encoders.encoder import Encoder
from ssl_wm.extraction.steal import StealConfig, steal
from ssl_wm.training.accumulation import in_parts
from ssl_wm.training.loop import run_identity
from ssl_wm.training.objectives import OBJECTIVES
from ssl_wm.training.pretrain import PretrainConfig, PretrainTask
from ssl_wm.training.pretrain import fit as fit_task
from ssl_wm.training.settings import FitConfig
from ssl_wm.watermark.embed import WatermarkConfig, watermark

FIT = FitConfig(
    epochs=2, batch_size=48, optimiser="sgd", learning_rate=0.01, warmup_steps=0,
    precision="32-true",
)  # fmt: skip


def encoder(*, norm: bool = False, dropout: float = 0.0) -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        middle = nn.BatchNorm2d(6) if norm else nn.GroupNorm(2, 6)
        layers = (nn.Conv2d(3, 6, 3), middle, nn.ReLU(), nn.Dropout(dropout))
        net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 10))
    return Encoder(net)


def batch(count: int = 12) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def gradients(part: nn.Module, loss: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(part.parameters()))
    return [each.clone() for each in found]


def contrast(rows: Tensor) -> Tensor:
    """Return a loss in which every row meets every other one."""
    near = nn.functional.normalize(rows, dim=1)
    return (near @ near.T).exp().sum().log()


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_pretraining_in_parts_is_pretraining_at_once_where_images_do_not_meet(objective, world):
    told = []
    for parts in (1, 3):
        config = PretrainConfig(fit=FIT.model_copy(update={"accumulate": parts}))
        trained = encoder()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            heads = OBJECTIVES[objective](trained, width=10)
        task = PretrainTask(trained, heads, world.images().train, config=config)
        lines = fit_task(task, config=config.fit, title="x")
        told.append(([line["loss"] for line in lines], list(trained.parameters())))
    (one, weights), (three, others) = told
    assert one == pytest.approx(three, abs=1e-5)
    torch.testing.assert_close(others, weights, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["move-target", "mea-defender"])
def test_a_mark_embedded_in_parts_is_that_embedded_at_once(method, world):
    images = world.images()
    key = world.key(images)
    told = []
    for parts in (1, 3):
        fit = FIT.model_copy(update={"accumulate": parts, "epochs": 1})
        config = WatermarkConfig(method=method, fit=fit)
        marked, lines = watermark(encoder(), key=key, images=images, config=config)
        told.append((lines[0]["loss"], list(marked.parameters())))
    (one, weights), (three, others) = told
    assert one == pytest.approx(three, abs=1e-5)
    torch.testing.assert_close(others, weights, atol=1e-5, rtol=1e-4)


def test_a_theft_in_parts_normalises_each_part_and_still_learns(world):
    fit = FIT.model_copy(update={"accumulate": 4, "epochs": 6, "learning_rate": 0.05})
    config = StealConfig(attack="cosine", arch="convnet-xs", fit=fit)
    lines = steal(world.convnet(), images=world.images().train, config=config).metrics
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]


@pytest.mark.parametrize("count", [12, 11, 5, 3])
def test_the_gradient_is_that_of_the_parts_written_out_with_batch_norm_in_each(count):
    images, parts = batch(count), max(1, min(4, count // 2))
    at_once, cut = encoder(norm=True), encoder(norm=True)
    expected = gradients(
        at_once, contrast(torch.cat([at_once(p) for p in images.tensor_split(parts)]))
    )
    with in_parts(cut, parts=4):
        rows = cut(images)
    found = gradients(cut, contrast(rows))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    for (name, one), (_, two) in zip(cut.named_buffers(), at_once.named_buffers(), strict=True):
        torch.testing.assert_close(one, two, msg=name)


def test_dropout_falls_on_the_same_places_when_a_part_is_computed_again():
    images, told = batch(), []
    for parts in (2, 1):
        cut = encoder(dropout=0.5)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            with in_parts(cut, parts=parts):
                pieces = [images] if parts == 2 else images.tensor_split(2)
                rows = torch.cat([cut(piece) for piece in pieces])
            torch.manual_seed(99)  # what is drawn before the backward pass is no matter
            told.append(gradients(cut, contrast(rows)))
    torch.testing.assert_close(told[0], told[1], rtol=1e-4, atol=1e-6)


def test_each_of_several_backward_passes_through_a_part_is_right():
    images, cut = batch(), encoder(norm=True)
    with in_parts(cut, parts=3):
        rows = cut(images)
    weights = list(cut.parameters())
    before = [buffer.clone() for buffer in cut.buffers()]
    first = torch.autograd.grad(rows.square().sum(), weights, retain_graph=True)
    second = torch.autograd.grad(rows.square().sum() + contrast(rows), weights, retain_graph=True)
    rest = gradients(cut, contrast(rows))
    for one, two, three in zip(first, second, rest, strict=True):
        torch.testing.assert_close(two - one, three, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(list(cut.buffers()), before)


def test_no_more_than_a_part_is_in_the_network_at_once_and_each_is_there_twice():
    cut, seen = encoder(), []
    cut.backbone[0].register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    with in_parts(cut, parts=4):
        rows = cut(batch())
    assert seen == [3, 3, 3, 3]
    gradients(cut, contrast(rows))
    assert seen == [3] * 8
    with torch.no_grad(), in_parts(cut, parts=4):
        cut(batch())
    assert seen == [3] * 12


def test_after_the_block_the_encoder_is_as_it_was():
    cut = encoder()
    with pytest.raises(KeyError), in_parts(cut, parts=2):
        raise KeyError
    assert "forward" not in vars(cut)


def test_a_run_in_parts_is_another_run_and_an_older_one_can_still_be_resumed():
    assert "accumulate" not in FIT.model_dump()
    in_two = FIT.model_copy(update={"accumulate": 2})
    assert run_identity(in_two, {}) != run_identity(FIT, {})


def test_parts_of_one_image_are_refused():
    with pytest.raises(ValidationError, match="no 5 parts of two images"):
        FitConfig(batch_size=8, accumulate=5)
