"""The contract of encoder.py: any shape of backbone output becomes (B, D) float32, or an error."""

from __future__ import annotations

import collections

import pytest
import torch
from torch import Tensor, nn

from ssl_wm.encoders.encoder import Encoder, Preprocessing, as_matrix
from ssl_wm.errors import EncoderError

UNTOUCHED = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))
ROWS = torch.arange(6.0).view(2, 3)


class Recorder(nn.Module):
    """Keeps the images it was given and returns their channel means."""

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return images.mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (ROWS, ROWS),
        (ROWS.half(), ROWS),
        (ROWS.double(), ROWS),
        (ROWS.bfloat16(), ROWS),
        (ROWS[:, :, None, None].expand(2, 3, 4, 5), ROWS),
        ((ROWS, "second"), ROWS),
        ([ROWS], ROWS),
        ({"pooler_output": ROWS, "last_hidden_state": torch.zeros(2, 4, 3)}, ROWS),
        ({"last_hidden_state": torch.stack([ROWS, -ROWS], dim=1)}, ROWS),
        ({"image_embeds": ROWS, "other": torch.zeros(2, 9)}, ROWS),
        (collections.OrderedDict(other=ROWS), ROWS),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_usual_output_becomes_a_float32_matrix(output, expected):
    matrix = as_matrix(output, batch=2)
    assert matrix.dtype == torch.float32
    assert torch.equal(matrix, expected)


@pytest.mark.parametrize(
    ("output", "came"),
    [
        (None, "NoneType"),
        ("text", "str"),
        ((), "tuple"),
        ({}, "dict"),
        (torch.zeros(2), "shape (2,)"),
        (torch.zeros(2, 3, 4), "shape (2, 3, 4)"),
        (torch.zeros(3, 4), "shape (3, 4)"),
        (torch.zeros(1, 4, 2, 2), "shape (1, 4)"),
    ],
)
def test_an_output_without_one_vector_per_image_is_named_in_the_error(output, came):
    with pytest.raises(EncoderError) as caught:
        as_matrix(output, batch=2)
    assert came in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 1, 8, 8), (2, 8, 8, 3), (2, 4, 8, 8)])
def test_images_of_another_layout_are_refused(shape):
    with pytest.raises(EncoderError, match="B, 3, H, W"):
        Encoder(Recorder())(torch.zeros(shape))


def test_normalisation_is_the_encoders_own_and_per_channel():
    recorder = Recorder()
    preprocessing = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    images = torch.rand(2, 3, 4, 4)
    Encoder(recorder, preprocessing=preprocessing)(images)
    for channel, (mean, std) in enumerate(zip(preprocessing.mean, preprocessing.std, strict=True)):
        expected = (images[:, channel] - mean) / std
        torch.testing.assert_close(recorder.seen[:, channel], expected)


def test_uint8_images_mean_the_same_as_floats_in_0_1():
    images = torch.randint(0, 256, (2, 3, 6, 6), dtype=torch.uint8)
    encoder = Encoder(Recorder())
    torch.testing.assert_close(encoder(images), encoder(images / 255))


@pytest.mark.parametrize("side", [(8, 8), (16, 4), (5, 9)])
def test_images_reach_the_backbone_at_the_encoders_size(side):
    recorder = Recorder()
    encoder = Encoder(recorder, preprocessing=Preprocessing(size=8))
    encoder(torch.rand(2, 3, *side))
    assert recorder.seen.shape == (2, 3, 8, 8)


def test_images_of_the_right_size_are_not_resampled():
    recorder = Recorder()
    images = torch.rand(2, 3, 8, 8)
    Encoder(recorder, preprocessing=Preprocessing((0, 0, 0), (1, 1, 1), size=8))(images)
    assert torch.equal(recorder.seen, images)


def test_mean_and_std_are_no_part_of_the_saved_weights():
    assert Encoder(Recorder()).state_dict() == {}


def test_gradients_reach_the_images_through_the_preprocessing():
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    Encoder(Recorder(), preprocessing=Preprocessing(size=4))(images).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
