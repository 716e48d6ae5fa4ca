"""Reading a key from natural images alone: the same certainty, and questions that show nothing."""

from __future__ import annotations

import contextlib
import io
import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

from ssl_wm import cli
from ssl_wm.bench.detection_plan import DetectionBench
from ssl_wm.bench.extraction_plan import ExtractionConfig
from ssl_wm.disputes.settings import FalseClaimConfig
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import save_encoder
from ssl_wm.evidence.check import check
from ssl_wm.evidence.record import check_against, verify_with_evidence
from ssl_wm.report.evidence import render_evidence
from ssl_wm.verification.answers import ask
from ssl_wm.verification.centring import null_centred
from ssl_wm.verification.margins import contrasts, nearness_table
from ssl_wm.verification.questions import count_queries, question_names, within_budget
from ssl_wm.verification.readings import read_margins
from ssl_wm.verification.settings import ReadConfig, VerifyConfig
from ssl_wm.verification.statistics import rank_p_value
from ssl_wm.verification.verify import verify

READ = ReadConfig(natural_only=True, reference=24)
JUDGE = VerifyConfig(draws=99_999, read=READ)


class Listening(nn.Module):
    """An encoder that keeps what it was asked."""

    def __init__(self, inner: Encoder) -> None:
        super().__init__()
        self.inner, self.asked = inner, []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the answers of the encoder inside."""
        self.asked.append((images * 255).round().to(torch.uint8))
        return self.inner(images)


def test_nearness_is_that_of_numpy_and_not_a_number_where_there_is_no_key():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 7))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    table = nearness_table(torch.from_numpy(centres)).numpy()
    for a, b, t in itertools.product(range(5), repeat=3):
        if len({a, b, t}) == 3:
            expected = centres[a] @ centres[t] + centres[b] @ centres[t]
            assert table[a, b, t] == pytest.approx(expected, abs=1e-12)
            assert table[a, b, t] == table[b, a, t]
        else:
            assert np.isnan(table[a, b, t])


def test_a_marked_encoder_is_detected_and_a_clean_one_is_not(world):
    images = world.images()
    key = world.key(images, sub_keys=2)
    clean, other = world.palette(images), world.convnet()
    marked = world.palette(images, key=key)
    told = verify(marked, key=key, images=images, nulls=[clean], config=JUDGE)
    assert (told.decision, told.wsr, told.wfpr, told.reader) == ("detected", None, None, None)
    assert told.p_value < 1e-3
    assert "natural images alone" in told.test
    assert [test.name for test in told.tests] == ["A1", "B"]
    for suspect in (other, world.convnet(seed=3)):
        innocent = verify(suspect, key=key, images=images, nulls=[clean], config=JUDGE)
        assert innocent.decision == "not_detected"


def test_the_suspect_is_asked_natural_training_images_alone(world):
    images = world.images()
    key = world.key(images, sub_keys=2)
    suspect = Listening(world.palette(images, key=key))
    verify(Encoder(suspect, preprocessing=world.flat), key=key, images=images,
           nulls=[world.palette(images)], config=JUDGE)  # fmt: skip
    known = {
        image.numpy().tobytes() for image in images.train.take(torch.arange(len(images.train)))
    }
    asked = [image.numpy().tobytes() for batch in suspect.asked for image in batch]
    assert set(asked) <= known
    assert len(asked) == count_queries(key, config=READ) == 8 * 24
    assert question_names(key, config=READ) == ["reference"]


def test_over_all_keys_of_an_innocent_encoder_p_is_never_smaller_than_chance(world):
    images = world.images()
    key = world.key(images)
    suspect, clean = world.convnet(seed=5), world.palette(images)
    tables = [
        contrasts(read_margins(ask(each, key, images, config=READ), key, config=READ).tables)
        for each in (suspect, clean)
    ]
    statistics = null_centred(tables[0], tables[1][None])[0]
    keys = [k for k in itertools.product(range(8), repeat=3) if len(set(k)) == 3]
    p_values = np.array([rank_p_value(statistics, k)[0] for k in keys])
    for limit in (0.01, 0.05, 0.2, 0.5, 0.9):
        assert (p_values <= limit).mean() <= limit
    assert p_values.min() == pytest.approx(2 / len(keys))


def test_one_sub_key_says_that_its_smallest_p_is_that_of_two_twins(world):
    images = world.images()
    key = world.key(images)
    told = verify(world.palette(images, key=key), key=key, images=images,
                  nulls=[world.palette(images)], config=JUDGE)  # fmt: skip
    assert told.smallest_p == told.p_value == pytest.approx(2 / 336)


def test_rotation_scale_and_shift_of_the_answers_change_nothing(world):
    images = world.images()
    key = world.key(images, sub_keys=2)
    plain, moved = world.palette(images, key=key), world.palette(images, key=key)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).double())
    moved.backbone.matrix.copy_(turn.Q)
    moved.backbone.scale.fill_(7.0)
    moved.backbone.offset.fill_(3.0)
    one, two = (
        verify(each, key=key, images=images, nulls=[world.convnet()], config=JUDGE)
        for each in (plain, moved)
    )
    assert one.p_value == two.p_value
    assert one.position == pytest.approx(two.position, abs=1e-4)


def test_a_limit_on_queries_cuts_the_natural_images_alone(world):
    images = world.images(train=80)
    key = world.key(images)
    wide = ReadConfig(natural_only=True, reference=80)
    fits = within_budget(key, config=wide, limit=8 * 50)
    assert (fits.reference, fits.trigger_count, fits.per_pair) == (50, 1000, 64)


def test_evidence_of_natural_answers_is_whole_recomputed_and_shown(world, tmp_path):
    images = world.images()
    key = world.key(images, sub_keys=2)
    marked, clean = world.palette(images, key=key), world.palette(images)
    folder = tmp_path / "bundle"
    told = verify_with_evidence(
        marked, key=key, images=images, nulls=[clean], folder=folder, config=JUDGE
    )
    assert sorted(path.name for path in folder.glob("suspect-*")) == [
        "suspect-reference.safetensors"
    ]
    result = check(folder)
    assert result.ok, result.problems
    assert result.verdict.p_value == told.p_value
    again = check_against(folder, images=images, suspect=marked, nulls=[clean])
    assert again.ok, again.problems
    assert "asked natural images alone" in render_evidence(folder)


def test_what_is_told_by_composites_refuses_to_go_without():
    with pytest.raises(ValueError, match="natural_only"):
        ExtractionConfig(attacks=["cosine"], verify=JUDGE)
    with pytest.raises(ValueError, match="natural_only"):
        FalseClaimConfig(read=READ)
    with pytest.raises(ValueError, match="natural_only"):
        DetectionBench(marked={"a": {"encoder": "x", "key": "k"}}, clean={"b": "y"}, read=READ)


def test_settings_of_older_versions_say_nothing_of_it():
    assert "natural_only" not in ReadConfig().model_dump()
    assert READ.model_dump()["natural_only"] is True


def test_the_command_asks_natural_images_alone(world, tmp_path):
    from ssl_wm.data.sources import open_images
    from ssl_wm.encoders.load import build_encoder
    from ssl_wm.watermark.groups import label_groups
    from ssl_wm.watermark.key import new_key
    from ssl_wm.watermark.keyfile import save_key

    for name, seed in (("clean", 0), ("suspect", 1)):
        save_encoder(build_encoder("convnet-xs", seed=seed), tmp_path / name)
    images = open_images("digits", limit=200)
    save_key(new_key(images, groups=label_groups(images), secret=b"x" * 32, sub_keys=2),
             tmp_path / "owner.key")  # fmt: skip
    out = io.StringIO()
    words = [
        "verify", "--key", tmp_path / "owner.key", "--suspect", tmp_path / "suspect",
        "--null", tmp_path / "clean", "--images", "digits", "--limit", "200", "--natural-only",
    ]  # fmt: skip
    for more in (["--json"], []):
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
            cli.main([*map(str, words), *more])
        assert ended.value.code in (0, 1)
        if more:
            told = json.loads(out.getvalue())
    assert told["wsr"] is None
    assert told["facts"]["queries"] <= 200
