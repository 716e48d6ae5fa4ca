"""embed answers every image once, in order, or names the first one that went wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ssl_wm.data.sources import open_images
from ssl_wm.encoders.embeddings import EmbeddingCache, embed, fingerprint, usual_batch
from ssl_wm.encoders.encoder import Encoder, Preprocessing
from ssl_wm.encoders.load import build_encoder, load_encoder
from ssl_wm.encoders.properties import encoder_digest
from ssl_wm.errors import ConfigError, DataError, EncoderError

PIXELS = torch.randint(
    0, 256, (7, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


class Fake:
    """The part of an ImageSet that embed relies on."""

    def __init__(self, pixels: Tensor, *, length: int | None = None) -> None:
        self.pixels, self.length = pixels, length

    def __len__(self) -> int:
        return len(self.pixels) if self.length is None else self.length

    def batches(self, size: int) -> Iterator[Tensor]:
        yield from torch.split(self.pixels, size)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.pixels)


def flat(images: Tensor) -> Tensor:
    return images.flatten(1)


def tiny(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5)
    return Encoder(nn.Sequential(*layers), arch="tiny", preprocessing=Preprocessing())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9))
def test_rows_come_in_order_whatever_the_batch_size(batch_size):
    rows = embed(flat, PIXELS, batch_size=batch_size)
    torch.testing.assert_close(rows, PIXELS.flatten(1) / 255)
    assert rows.dtype == torch.float32


def test_sets_tensors_and_kinds_of_pixels_agree():
    encoder = tiny().eval()
    expected = embed(encoder, PIXELS, batch_size=3)
    torch.testing.assert_close(embed(encoder, Fake(PIXELS), batch_size=3), expected)
    torch.testing.assert_close(embed(encoder, PIXELS / 255, batch_size=3), expected)
    torch.testing.assert_close(
        embed(lambda x: encoder(x), PIXELS, batch_size=7), embed(encoder, PIXELS)
    )


def test_the_real_image_set_is_embedded_like_its_pixels():
    images = open_images("digits", limit=20).test
    encoder = build_encoder("convnet-xs")
    expected = embed(encoder, images.take(torch.arange(len(images))), batch_size=8)
    torch.testing.assert_close(embed(encoder, images, batch_size=8), expected)
    assert fingerprint(images) == images.fingerprint


def test_a_training_encoder_is_measured_in_eval_mode_and_given_back_unchanged():
    encoder = tiny().train()
    encoder.backbone[1].eval()
    before = encoder_digest(encoder)
    assert torch.equal(embed(encoder, PIXELS), embed(encoder.eval(), PIXELS))
    assert encoder_digest(encoder) == before
    encoder.train()
    encoder.backbone[1].eval()
    embed(encoder, PIXELS)
    assert [part.training for part in encoder.backbone] == [True, False, True, True]


def test_the_mode_comes_back_after_an_error_too():
    encoder = tiny().train()
    with pytest.raises(EncoderError):
        embed(encoder, torch.full((2, 3, 8, 8), torch.nan))
    assert encoder.training


def test_embeddings_can_be_trained_on():
    rows = embed(tiny(), PIXELS)
    assert not rows.is_inference()
    nn.Linear(4, 1)(rows).sum().backward()


def test_bfloat16_is_close_to_float32_but_is_another_number():
    encoder = tiny()
    exact, rough = embed(encoder, PIXELS), embed(encoder, PIXELS, precision="bfloat16")
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=0.05, rtol=0.05)
    assert not torch.equal(rough, exact)
    with pytest.raises(ConfigError, match="did you mean 'float32'"):
        embed(encoder, PIXELS, precision="float23")


def test_the_callback_counts_every_image():
    seen: list[int] = []
    embed(flat, PIXELS, batch_size=3, on_batch=seen.append)
    assert seen == [3, 3, 1]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_the_first_image_without_a_finite_embedding_is_named(bad):
    def broken(images: Tensor) -> Tensor:
        rows = images.flatten(1).clone()
        rows[images[:, 0, 0, 0] > 2 / 255] = bad
        return rows

    pixels = torch.zeros(7, 3, 2, 2, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.tensor([0, 1, 0, 2, 1, 9, 9])
    with pytest.raises(EncoderError, match="embedding of image 5 is not finite"):
        embed(broken, pixels, batch_size=2)


def test_a_width_that_changes_between_batches_is_an_error():
    widths = iter([4, 4, 5])
    with pytest.raises(EncoderError, match="from 4 to 5 at image 4"):
        embed(lambda x: torch.rand(len(x), next(widths)), PIXELS, batch_size=2)


def test_an_answer_for_too_few_images_is_an_error():
    with pytest.raises(EncoderError, match=r"must return \(2, D\)"):
        embed(lambda x: x.flatten(1)[:1], PIXELS, batch_size=2)


@pytest.mark.parametrize("batch_size", [2, 512])
def test_a_collapsed_encoder_is_an_error_and_equal_images_are_not(batch_size):
    with pytest.raises(EncoderError, match="collapsed"):
        embed(lambda x: torch.ones(len(x), 3), PIXELS, batch_size=batch_size)
    same = PIXELS[:1].expand(5, -1, -1, -1)
    assert embed(flat, same, batch_size=batch_size).shape == (5, 192)
    assert embed(lambda x: torch.ones(len(x), 3), PIXELS[:1]).shape == (1, 3)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (PIXELS[:0], "no images"),
        (PIXELS.float(), "divide by 255"),
        (torch.full((2, 3, 4, 4), -2.0), "divide by 255"),
        (PIXELS.long(), "uint8"),
        (Fake(PIXELS, length=9), "expected 9 images and 7 came"),
    ],
    ids=["none", "0..255", "normalised", "int64", "short"],
)
def test_wrong_images_are_a_data_error(images, says):
    with pytest.raises(DataError, match=says):
        embed(flat, images, batch_size=3)


def test_a_cpu_gets_small_batches_and_a_service_large_ones():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    held, service = build_encoder("convnet-xs"), load_encoder(flat)
    sizes = [
        usual_batch(encoder, device=where) for encoder in (held, service) for where in (cpu, gpu)
    ]
    assert sizes == [128, 512, 512, 512]
    pixels, seen = torch.randint(0, 256, (130, 3, 8, 8), dtype=torch.uint8), []
    embed(held, pixels, on_batch=seen.append)
    assert seen == [128, 2]


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(DataError, match="batch_size"):
        embed(flat, PIXELS, batch_size=0)


# --- the cache ---------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    counted: list[int] = []
    real = Encoder.forward

    def forward(self: Encoder, images: Tensor) -> Tensor:
        counted.append(len(images))
        return real(self, images)

    monkeypatch.setattr(Encoder, "forward", forward)
    return counted


def test_the_same_question_is_computed_once(tmp_path, calls):
    first = EmbeddingCache(tmp_path).embed(tiny(), PIXELS)
    again = EmbeddingCache(tmp_path).embed(tiny(), Fake(PIXELS))
    assert torch.equal(first, again)
    assert calls == [7]


def test_other_weights_images_precision_or_preprocessing_are_other_questions(tmp_path):
    cache = EmbeddingCache(tmp_path)
    resized = Encoder(tiny().backbone, arch="tiny", preprocessing=Preprocessing(size=16))
    paths = {
        cache.path(tiny(), PIXELS),
        cache.path(tiny(1), PIXELS),
        cache.path(resized, PIXELS),
        cache.path(tiny(), PIXELS[:6]),
        cache.path(tiny(), PIXELS / 255),
        cache.path(tiny(), PIXELS, precision="bfloat16"),
    }
    assert len(paths) == 6


def test_a_custom_network_is_never_answered_from_the_cache(tmp_path, calls):
    cache, encoder = EmbeddingCache(tmp_path), tiny()
    encoder.arch = "custom"
    cache.embed(encoder, PIXELS)
    cache.embed(encoder, PIXELS)
    assert calls == [7, 7]
    assert not list(tmp_path.iterdir())


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_damaged_cache_file_is_recomputed_with_a_warning(tmp_path_factory, data):
    cache = EmbeddingCache(tmp_path_factory.mktemp("cache"))
    expected = cache.embed(tiny(), PIXELS)
    path = cache.path(tiny(), PIXELS)
    assert path is not None
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[position:]
    else:
        content[position] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    assert torch.equal(cache.embed(tiny(), PIXELS), expected)
    assert torch.equal(cache.embed(tiny(), PIXELS), expected)


def test_a_file_under_another_questions_name_is_not_believed(tmp_path, caplog):
    cache = EmbeddingCache(tmp_path)
    expected = cache.embed(tiny(1), PIXELS)
    cache.embed(tiny(), PIXELS)
    cache.path(tiny(), PIXELS).replace(cache.path(tiny(1), PIXELS))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(cache.embed(tiny(1), PIXELS), expected)
    assert "computing them again" in caplog.text
