"""Null encoders are various, unmarked, resumable, and never mixed with those of other settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssl_wm import nulls as module
from ssl_wm.data.sources import open_images
from ssl_wm.encoders.load import build_encoder, encoder_digest, load_encoder, save_encoder
from ssl_wm.encoders.saved import FACTS
from ssl_wm.errors import ConfigError, TrainingError
from ssl_wm.extraction.steal import ATTACKS
from ssl_wm.null_plans import COPIES, OWN, WASHES, NullsConfig, plan_nulls, sized
from ssl_wm.nulls import make_nulls, null_folders
from ssl_wm.removal.remove import REMOVALS, checked
from ssl_wm.training.pretrain import PretrainConfig, pretrain
from ssl_wm.training.settings import FitConfig

FIT = FitConfig(epochs=1, batch_size=32, warmup_steps=2)
CONFIG = NullsConfig(count=4, retrained=0.5, pretrain=FIT, steal=FIT, seed=3)
LIKE = PretrainConfig(arch="convnet-xs", objective="byol", fit=FIT)


@pytest.fixture(scope="module")
def images():
    return open_images("digits", limit=64)


@pytest.fixture(scope="module")
def clean(images):
    return pretrain(images.train, config=LIKE)[0]


@pytest.fixture(scope="module")
def made(clean, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("nulls") / "out"
    return make_nulls(clean, images, config=CONFIG, out=out)


def fingerprint(folder: Path) -> str:
    return encoder_digest(load_encoder(folder))


# --- the plan ----------------------------------------------------------------------------------


def test_every_recipe_of_the_table_can_be_carried_out():
    for copy in COPIES:
        assert copy.attack in ATTACKS
        assert 0 < copy.share <= 1
        assert copy.arch == OWN or build_encoder(copy.arch)
    assert len({copy.attack for copy in COPIES}) >= 4
    assert len({copy.arch for copy in COPIES}) >= 4
    assert len(set(COPIES)) == len(COPIES)


def test_plans_follow_the_clean_encoder_and_cover_the_table_and_the_pools(clean, images):
    pools = {"": images.train, "other": images.test}
    config = NullsConfig(count=40, retrained=0.25)
    plans = plan_nulls(clean, config=config, pools=pools)
    retrained = [plan.pretrain for plan in plans if plan.pretrain is not None]
    copies = [(plan.pool, plan.steal) for plan in plans if plan.steal is not None]
    assert (len(retrained), len(copies)) == (10, 30)
    for settings in retrained:
        assert settings.model_copy(update={"seed": LIKE.seed}) == LIKE
    seeds = [plan.pretrain.seed if plan.pretrain else plan.steal.seed for plan in plans]
    assert len(set(seeds)) == 40
    assert LIKE.seed not in seeds
    attacks = {(theft.attack, theft.arch) for _, theft in copies}
    assert attacks == {
        (copy.attack, "convnet-xs" if copy.arch == OWN else copy.arch) for copy in COPIES
    }
    for pool, theft in copies:
        assert 1 <= theft.budget <= len(pools[pool])
    for attack in {copy.attack for copy in COPIES}:
        assert {pool for pool, theft in copies if theft.attack == attack} == {"", "other"}
    assert "queries of other" in next(plan.says for plan in plans if plan.pool)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.25, 5), (0.3, 6), (1.0, 20)])
def test_the_share_of_retrained_ones_is_kept_and_more_of_them_change_nothing(
    clean, images, share, expected
):
    def plans(count: int) -> list[object]:
        config = NullsConfig(count=count, retrained=share)
        return plan_nulls(clean, config=config, pools={"": images.train})

    whole = plans(20)
    assert sum(plan.pretrain is not None for plan in whole) == expected
    assert plans(7) == whole[:7]


def test_an_encoder_that_we_did_not_pretrain_gets_a_stated_stand_in(images, capsys):
    for width, arch in ((96, "convnet-xs"), (256, "convnet-s"), (2048, "convnet-l")):
        foreign = load_encoder(f"convnet-s+{width}?seed=1")
        plans = plan_nulls(foreign, config=NullsConfig(count=8), pools={"": images.train})
        (first, _) = [plan.pretrain for plan in plans if plan.pretrain is not None]
        assert (first.arch, first.objective) == (arch, "simclr")
        assert f"null encoders are {arch} trained by simclr" in capsys.readouterr().err


def test_large_or_odd_images_are_shown_at_a_side_that_our_shapes_take(images):
    odd = replace(images.train, pixels=torch.zeros(len(images.train), 3, 9, 9, dtype=torch.uint8))
    assert sized("vgg-small", images=odd) == "vgg-small?size=10"
    large = replace(odd, pixels=torch.zeros(len(odd), 3, 100, 80, dtype=torch.uint8))
    assert sized("cnn9", images=large) == "cnn9?size=64"
    foreign = load_encoder("convnet-s?seed=1&size=32")
    for plan in plan_nulls(foreign, config=NullsConfig(count=12), pools={"": odd}):
        arch = plan.pretrain.arch if plan.pretrain else plan.steal.arch
        assert arch.endswith("?size=10")


def test_a_marked_encoder_is_no_source_of_nulls(clean, images, tmp_path):
    marked = load_encoder("convnet-xs?seed=1")
    marked.made = {"stage": "watermark"}
    with pytest.raises(ConfigError, match="carries a watermark"):
        make_nulls(marked, images, config=CONFIG, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_encoder_that_was_fine_tuned_without_a_mark_is_a_source_of_nulls(images):
    unmarked = load_encoder("convnet-xs?seed=1")
    unmarked.made = {"stage": "watermark", "config": {"method": "none"}}
    assert len(plan_nulls(unmarked, config=CONFIG, pools={"": images.train})) == CONFIG.count


def test_every_washing_of_the_table_can_be_carried_out_with_the_owners_images():
    for wash in WASHES:
        assert checked([wash.attempt], wash.strength) == (wash.strength,)
        assert REMOVALS[wash.attempt].needs != "other labels"
    assert len(set(WASHES)) == len(WASHES)


def test_an_encoder_is_cut_only_where_layers_are_left(world, images):
    config = NullsConfig(count=20, retrained=0, washed=1)
    plans = plan_nulls(world.convnet(), config=config, pools={"": images.train})
    cuts = {plan.wash[0].strength for plan in plans if plan.wash[0].attempt == "cut-layers"}
    assert cuts == {1}  # of its two layers


@pytest.mark.parametrize(("retrained", "washed"), [(0.0, 0.6), (0.25, 0.5), (0.4, 0.6), (1.0, 0)])
def test_the_share_of_washed_ones_is_kept_and_more_of_them_change_nothing(
    clean, images, retrained, washed
):
    def plans(count: int) -> list[object]:
        config = NullsConfig(count=count, retrained=retrained, washed=washed)
        return plan_nulls(clean, config=config, pools={"": images.train})

    whole = plans(40)
    assert sum(plan.wash is not None for plan in whole) == 40 * washed
    assert sum(plan.pretrain is not None for plan in whole) == 40 * retrained
    assert plans(13) == whole[:13]
    if washed:
        assert {plan.wash[0] for plan in whole if plan.wash} == set(WASHES)
        assert any("the clean encoder after ssl at 0.001" in plan.says for plan in whole)


def test_images_of_one_class_are_washed_without_labels(clean, images):
    one = replace(images.train, labels=torch.zeros(len(images.train), dtype=torch.int64))
    config = NullsConfig(count=20, retrained=0, washed=1)
    plans = plan_nulls(clean, config=config, pools={"": one})
    assert {plan.wash[0].attempt for plan in plans} == {"ssl", "weight-shift", "cut-layers"}


def test_washed_nulls_are_the_clean_encoder_changed_and_go_on_where_they_stopped(
    clean, images, tmp_path, monkeypatch
):
    config = NullsConfig(count=4, retrained=0, washed=1, wash=FIT)
    made = make_nulls(clean, images, config=config, out=tmp_path)
    digests = [fingerprint(folder) for folder in made]
    assert len({*digests, encoder_digest(clean)}) == 5
    attempts = [load_encoder(folder).made["attempt"] for folder in made]
    assert attempts == ["ssl", "ftal", "weight-shift", "cut-layers"]
    assert not list(tmp_path.rglob("training.ckpt"))
    monkeypatch.setattr(module, "remove", lambda *a, **k: pytest.fail("made again"))
    assert make_nulls(clean, images, config=config, out=tmp_path) == made
    other = config.model_copy(update={"wash": FIT.model_copy(update={"epochs": 2})})
    with pytest.raises(ConfigError, match="made with other settings"):
        make_nulls(clean, images, config=other, out=tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"retrained": 1.1}, {"counts": 3}, {"retrained": 0.6, "washed": 0.6}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="validation error"):
        NullsConfig(**wrong)


# --- the folders -------------------------------------------------------------------------------


def test_each_null_is_a_saved_encoder_in_its_own_folder(made, clean, images):
    assert [folder.name for folder in made] == ["null-00", "null-01", "null-02", "null-03"]
    digests = {fingerprint(folder) for folder in made} | {encoder_digest(clean)}
    assert len(digests) == 5
    stages = [load_encoder(folder).made["stage"] for folder in made]
    assert stages == ["steal", "pretrain", "steal", "pretrain"]
    queries = json.loads((made[0] / "ledger.json").read_text())["calls"]["billed"]
    assert queries == len(images.train)
    for folder in made:
        note = json.loads((folder / module.NOTE).read_text())
        assert note["says"]
        left = {path.name for path in folder.iterdir()}
        assert not left & {"training.ckpt", "transfer.safetensors", "queries.json", "answers"}


def test_finished_ones_are_kept_and_more_can_be_added(made, clean, images, capsys, monkeypatch):
    out, before = made[0].parent, [fingerprint(folder) for folder in made]
    trained = []
    real = module.steal

    def record(*args, **settings):
        trained.append(settings["folder"].name)
        return real(*args, **settings)

    monkeypatch.setattr(module, "steal", record)
    monkeypatch.setattr(module, "pretrain", lambda *_, **__: pytest.fail("trained again"))
    more = make_nulls(clean, images, config=CONFIG.model_copy(update={"count": 5}), out=out)
    assert trained == ["null-04"]
    assert [fingerprint(folder) for folder in more[:4]] == before
    said = capsys.readouterr().err
    assert "null-00 (1 of 5): there already" in said
    assert "null-04 (5 of 5): copy by" in said


def test_an_interrupted_one_is_made_again_to_the_same_weights(
    made, clean, images, tmp_path, monkeypatch
):
    config = CONFIG.model_copy(update={"count": 1})
    real = module.save_encoder

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_encoder", killed)
    with pytest.raises(KeyboardInterrupt):
        make_nulls(clean, images, config=config, out=tmp_path)
    assert (tmp_path / "null-00" / "training.ckpt").is_file()
    assert null_folders(tmp_path) == []
    monkeypatch.setattr(module, "save_encoder", real)
    (folder,) = make_nulls(clean, images, config=config, out=tmp_path)
    assert fingerprint(folder) == fingerprint(made[0])


@pytest.mark.parametrize("what", ["seed", "images", "clean"])
def test_nulls_of_other_settings_images_or_encoders_are_refused(made, clean, images, what):
    config, others, encoder = CONFIG, images, clean
    if what == "seed":
        config = CONFIG.model_copy(update={"seed": 4})
    if what == "images":
        others = replace(images, train=images.test)
    if what == "clean":
        encoder = build_encoder("convnet-xs", seed=5)
        encoder.made = clean.made
    with pytest.raises(ConfigError, match="null-00 was made with other settings"):
        make_nulls(encoder, others, config=config, out=made[0].parent)


def test_a_collapsed_null_is_refused_by_name(clean, images, tmp_path, monkeypatch):
    def collapsed(*_: object, **__: object) -> object:
        encoder = build_encoder("convnet-xs")
        for weights in encoder.parameters():
            weights.data.zero_()
        return encoder, []

    monkeypatch.setattr(module, "pretrain", collapsed)
    config = CONFIG.model_copy(update={"count": 1, "retrained": 1.0})
    with pytest.raises(TrainingError, match=r"null-00 .* came out useless"):
        make_nulls(clean, images, config=config, out=tmp_path)
    assert null_folders(tmp_path) == []


# --- null_folders ------------------------------------------------------------------------------


def test_a_folder_of_encoders_is_opened_out_and_an_encoder_is_itself(tmp_path):
    encoder = build_encoder("convnet-xs")
    for name in ("null-100", "null-20", "null-03"):
        save_encoder(encoder, tmp_path / name)
    (tmp_path / "null-04").mkdir()
    (tmp_path / "file").write_text("x")
    names = [folder.name for folder in null_folders(tmp_path)]
    assert names == ["null-03", "null-20", "null-100"]
    one = tmp_path / "null-20"
    assert (one / FACTS).is_file()
    assert null_folders(one) == [one]
    assert null_folders(tmp_path / "null-04") == null_folders(tmp_path / "file") == []


def test_a_marked_encoder_among_several_is_refused(tmp_path):
    encoder = build_encoder("convnet-xs")
    save_encoder(encoder, tmp_path / "clean")
    encoder.made = {"stage": "watermark"}
    save_encoder(encoder, tmp_path / "watermarked")
    with pytest.raises(ConfigError, match=r"watermarked carries a watermark.*one by one"):
        null_folders(tmp_path)
