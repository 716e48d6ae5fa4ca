"""Answers are the encoder's own to exactly the images that were announced."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import load_encoder
from ssl_wm.errors import EncoderError
from ssl_wm.verification.answers import as_labels, ask, through_labels
from ssl_wm.verification.questions import question_names, question_size, render
from ssl_wm.verification.settings import ReadConfig

CONFIG = ReadConfig(per_pair=8, recipes=3, reference=20, trigger_count=24)


@pytest.fixture(scope="module")
def images(world):
    return world.images(groups=7)


@pytest.fixture(scope="module")
def key(world, images):
    return world.key(images, number=1, sub_keys=2)


class Counting(nn.Module):
    """A backbone that counts the images of each call."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.calls = net, []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        return self.net(images)


# --- an encoder at hand ------------------------------------------------------------------------


def test_answers_are_the_embeddings_of_what_is_rendered(world, images, key):
    encoder = world.convnet()
    answers = ask(encoder, key, images, config=CONFIG)
    for name in question_names(key, config=CONFIG):
        shown = torch.cat(list(render(name, key, images, config=CONFIG)))
        found = answers(name)
        torch.testing.assert_close(found, embed(encoder, shown), atol=1e-6, rtol=1e-5)
        assert found.dtype == torch.float32
        assert not found.requires_grad


def test_every_image_is_sent_once_and_the_reference_never_again(world, images, key):
    """One padding image too many and the promised number of queries would be a lie."""
    counting = Counting(world.convnet().backbone)
    answers = ask(Encoder(counting), key, images, config=CONFIG)
    for name in question_names(key, config=CONFIG):
        counting.calls.clear()
        first = answers(name)
        assert sum(counting.calls) == len(first) == question_size(name, key, config=CONFIG)
        counting.calls.clear()
        again = answers(name)
        assert torch.equal(again, first)
        assert sum(counting.calls) == (0 if name == "reference" else len(first))


def test_nothing_is_sent_before_it_is_asked_for_and_no_batch_is_large(world, key):
    images = world.images(groups=7, train=350)
    counting = Counting(world.palette(images).backbone)
    config = CONFIG.model_copy(update={"reference": 350})
    answers = ask(Encoder(counting), world.key(images), images, config=config)
    assert counting.calls == []
    assert len(answers("reference")) == 7 * 350
    assert sum(counting.calls) == 7 * 350
    assert max(counting.calls) <= 512


def test_the_encoder_keeps_its_mode_and_its_statistics(world, images, key):
    encoder = world.convnet().train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    found = ask(encoder, key, images, config=CONFIG)("reference")
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    torch.testing.assert_close(found, ask(world.convnet(), key, images, config=CONFIG)("reference"))


def test_bfloat16_is_asked_for_where_the_settings_say_so(world, images, key):
    half = CONFIG.model_copy(update={"precision": "bfloat16"})
    one, two = (ask(world.convnet(), key, images, config=c)("reference") for c in (CONFIG, half))
    assert two.dtype == torch.float32
    assert not torch.equal(one, two)
    torch.testing.assert_close(one, two, atol=0.05, rtol=0.05)


def test_an_encoder_that_answers_all_alike_is_refused(images, key):
    answers = ask(load_encoder(lambda x: torch.ones(len(x), 4)), key, images, config=CONFIG)
    with pytest.raises(EncoderError, match="collapsed: its answers to 140 different images"):
        answers("reference")


def test_equal_answers_to_composites_alone_are_no_collapse(world, images, key):
    """A strong mark, or a classifier, may answer all triggers alike: that is what is sought."""
    palette = world.palette(images)

    def trap(pixels: Tensor) -> Tensor:
        z = palette(pixels)
        return torch.where(z.amax(dim=1, keepdim=True) > 0.75, z, torch.ones(7) / 7)

    answers = ask(load_encoder(trap), key, images, config=CONFIG)
    assert len(answers("reference").unique(dim=0)) > 7
    fresh = answers("fresh/0")
    assert torch.equal(fresh, torch.full((24, 7), 1 / 7))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["reference", "fresh/1"])
def test_one_answer_that_is_not_finite_is_refused(world, images, key, bad, name):
    def broken(pixels: Tensor) -> Tensor:
        z = pixels.flatten(1)[:, :6].clone()
        z[-1, 3] = bad
        return z

    with pytest.raises(EncoderError, match=f"'{name}' is not finite"):
        ask(load_encoder(broken), key, images, config=CONFIG)(name)


def test_an_encoder_that_changes_its_width_between_sets_is_refused(images, key):
    encoder = load_encoder(lambda x: x.flatten(1)[:, : 4 if len(x) == 140 else 6])
    answers = ask(encoder, key, images, config=CONFIG)
    answers("reference")
    with pytest.raises(EncoderError, match=r"width at the images 'fresh/0'.*\[4, 6\]"):
        answers("fresh/0")


# --- labels ------------------------------------------------------------------------------------


def test_labels_are_all_that_is_left_of_a_classifier():
    z = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    found = as_labels(lambda name: z)("reference")
    assert found.shape == (30, 5)
    assert torch.equal(found.argmax(dim=1), z.argmax(dim=1))
    assert torch.equal(found.sum(dim=1), torch.ones(30))
    assert set(found.unique().tolist()) == {0.0, 1.0}
    for change in (lambda x: 1e-3 * x - 7, lambda x: x**3, torch.sigmoid, lambda x: x.softmax(1)):
        assert torch.equal(as_labels(lambda name, f=change: f(z))("reference"), found)


def test_a_classifier_with_one_label_for_everything_is_refused():
    z = torch.randn(9, 4) + torch.tensor([0.0, 0.0, 99.0, 0.0])
    labels = as_labels(lambda name: z)
    with pytest.raises(EncoderError, match="all 9 reference images the label 2"):
        labels("reference")
    assert labels("fresh/0").argmax(dim=1).tolist() == [2] * 9


def test_a_null_learns_the_suspects_labels_from_natural_images_alone(world, images, key):
    asked: list[str] = []
    classes = [0, 0, 1, 1, 2, 2, 4]  # class 3 is never given

    def suspect(name: str) -> Tensor:
        asked.append(name)
        assert name == "reference"
        colours = torch.cat(list(render(name, key, images, config=CONFIG)))
        colours = world.palette(images)(colours).argmax(dim=1)
        return torch.eye(5)[torch.tensor(classes)[colours]]

    null = ask(world.palette(images), key, images, config=CONFIG)
    found = through_labels(null, suspect=suspect)
    assert torch.equal(found("reference"), suspect("reference"))
    fresh = found("fresh/0")
    assert fresh.shape == (24, 5)
    assert torch.equal(fresh.sum(dim=1), torch.ones(24))
    assert float(fresh[:, 3].sum()) == 0
    assert set(asked) == {"reference"}
