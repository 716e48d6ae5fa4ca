"""Curves of thefts: which cells are run, what is measured of them, and what a second run does."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from command_line import run
from scipy import stats
from sklearn.metrics.pairwise import paired_cosine_distances
from sklearn.neighbors import NearestNeighbors

from ssl_wm.bench import extraction as bench
from ssl_wm.bench.agreement import Reading, compare, estimate, per_image, read_labels
from ssl_wm.bench.extraction import ExtractionBench
from ssl_wm.bench.extraction_plan import ExtractionConfig, expand, pools_of
from ssl_wm.bench.extraction_rows import Measured, make_rows
from ssl_wm.encoders.load import build_encoder, save_encoder
from ssl_wm.errors import ConfigError, EncoderError, VerificationError
from ssl_wm.extraction.attacks import ATTACKS
from ssl_wm.report.extraction import extraction_markdown, extraction_table
from ssl_wm.watermark.keyfile import save_key

FIT = {"epochs": 1, "batch_size": 32, "warmup_steps": 0}
BASE = {"attack": "cosine", "arch": "convnet-xs", "budget": 64, "fit": FIT}
VERIFY = {
    "draws": 99, "read": {"per_pair": 8, "reference": 8, "trigger_count": 16, "recipes": 3}
}  # fmt: skip
SIZES = {"same": 1000, "other": 300}


def config(**changes: object) -> ExtractionConfig:
    given = {"images": {"spec": "digits"}, "steal": BASE, "verify": VERIFY, **changes}
    return ExtractionConfig.model_validate(given)


def test_star_is_the_base_and_one_change_at_a_time():
    lists = {
        "attacks": ["mse", "cosine"],
        "budgets": [10, 64],
        "archs": ["cnn9"],
        "pools": ["same", "other"],
    }
    found = expand(config(**lists), sizes=SIZES)
    assert [cell.point for cell in found] == [
        ("cosine", 64, "convnet-xs", "same"),
        ("mse", 64, "convnet-xs", "same"),
        ("cosine", 10, "convnet-xs", "same"),
        ("cosine", 64, "cnn9", "same"),
        ("cosine", 64, "convnet-xs", "other"),
    ]  # fmt: skip


def test_matrix_is_the_product_and_a_pool_is_never_asked_for_more_than_it_holds():
    lists = {
        "attacks": ["mse", "cosine"],
        "budgets": [10, 500, 600],
        "pools": ["other"],
        "seeds": [3, 4],
    }
    found = expand(config(design="matrix", **lists), sizes=SIZES)
    assert [(cell.attack, cell.budget, cell.seed) for cell in found] == [
        (attack, budget, seed)
        for attack in ("mse", "cosine") for budget in (10, 300) for seed in (3, 4)
    ]  # fmt: skip
    assert {cell.pool for cell in found} == {"other"}
    assert len({cell.name for cell in found}) == len(found)


def test_all_attacks_is_the_whole_table_and_no_budget_is_the_whole_pool():
    found = expand(config(attacks="all", steal={**BASE, "budget": None}), sizes=SIZES)
    assert {cell.attack for cell in found} == set(ATTACKS)
    assert len(found) == len(ATTACKS)
    assert {cell.budget for cell in found} == {1000}
    assert pools_of(config(pools=["other"])) == ["same", "other"]


def test_cells_of_one_seed_share_their_draws_and_other_seeds_do_not():
    whole = config(attacks=["mse"], seeds=[0, 1])
    cells = expand(whole, sizes=SIZES)
    seeds = {(cell.attack, cell.seed): cell.theft(whole).seed for cell in cells}
    assert seeds["mse", 0] == seeds["cosine", 0] != seeds["mse", 1]


def test_names_of_folders_differ_where_only_signs_differ():
    whole = config(archs=["timm/a?size=3", "timm/a&size=3"], design="matrix")
    names = [cell.name for cell in expand(whole, sizes=SIZES)]
    assert len(set(names)) == 2
    assert not any("/" in name or "?" in name for name in names)


def vote(queries: np.ndarray, bank: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Return the weighted kNN labels, in float64."""
    gaps, near = NearestNeighbors(n_neighbors=k, metric="cosine").fit(bank).kneighbors(queries)
    votes = np.zeros((len(queries), labels.max() + 1))
    for place, (gap, rows) in enumerate(zip(gaps, near, strict=True)):
        np.add.at(votes[place], labels[rows], np.exp((1 - gap) / 0.1))
    return votes.argmax(axis=1)


def test_fidelity_and_agreement_are_those_of_scikit_learn():
    draw = np.random.default_rng(0)
    labels, truth = draw.integers(4, size=120), draw.integers(4, size=50)
    centres = draw.normal(size=(4, 6))
    train, test = (centres[given] + draw.normal(size=(len(given), 6)) for given in (labels, truth))
    own = [part + 0.7 * draw.normal(size=part.shape) for part in (train, test)]
    said = torch.from_numpy(labels)
    victim, copy = (
        read_labels(torch.from_numpy(a).float(), said, torch.from_numpy(b).float(), k=9)
        for a, b in ((train, test), own)
    )
    found = per_image(copy, victim=victim, labels=torch.from_numpy(truth))
    mine, theirs = vote(own[1], own[0], labels, 9), vote(test, train, labels, 9)
    np.testing.assert_array_equal(found["agreement"], mine == theirs)
    np.testing.assert_array_equal(found["knn"], mine == truth)
    expected = 1 - paired_cosine_distances(own[1], test)
    np.testing.assert_allclose(found["fidelity"], expected, atol=1e-6)
    assert 0 < found["agreement"].mean() < 1


def test_two_encoders_that_are_wrong_alike_agree_and_are_not_useful():
    reading = Reading(torch.eye(3), torch.tensor([1, 1, 1]), torch.tensor([1, 1, 1]))
    found = per_image(reading, victim=reading, labels=torch.tensor([0, 0, 0]))
    assert found["agreement"].mean() == 1
    assert found["knn"].mean() == 0


def test_intervals_are_scipys():
    hits = (torch.arange(80) < 60).double()
    exact = stats.binomtest(60, 80).proportion_ci(0.95, method="exact")
    assert estimate("knn", [hits])["interval"] == pytest.approx([exact.low, exact.high])
    means = [0.5, 0.7, 0.65]
    several = estimate("knn", [torch.tensor([value, value]).double() for value in means])
    assert several["interval"] == pytest.approx(
        stats.t.interval(0.95, 2, loc=np.mean(means), scale=stats.sem(means))
    )
    cosines = torch.from_numpy(np.random.default_rng(0).normal(0.8, 0.1, 400))
    one = estimate("fidelity", [cosines])
    low, high = stats.norm.interval(0.95, loc=float(cosines.mean()), scale=stats.sem(cosines))
    assert one["interval"] == pytest.approx([low, high], abs=0.001)
    assert {several["how"], one["how"]} == {"t over seeds", "bootstrap over test images"}


def test_only_what_is_worse_by_more_than_noise_is_marked():
    draw = torch.Generator().manual_seed(0)
    plain = (torch.rand(400, generator=draw) < 0.8).double()
    worse = plain * (torch.arange(400) % 10 > 0)
    same = plain.roll(7)
    assert compare([worse], [plain])["below"]
    assert not compare([same], [plain])["below"]
    assert not compare([plain], [worse])["below"]
    mine, theirs = (
        [torch.tensor([v]) for v in values] for values in ([0.5, 0.6, 0.7], [0.6, 0.72, 0.79])
    )
    told = compare(mine, theirs)
    expected = stats.ttest_rel([0.5, 0.6, 0.7], [0.6, 0.72, 0.79]).confidence_interval(0.95)
    assert told["interval"] == pytest.approx(list(expected), abs=1e-6)
    assert told["below"]


def test_row_of_another_budget_or_pool_is_not_compared_with_this_cosine():
    good = torch.ones(30)
    images = dict.fromkeys(("fidelity", "agreement", "linear", "knn"), good)
    bad = dict.fromkeys(images, 0 * good)
    facts = {"calls": {"unique": 640, "repeated": 0, "billed": 640}}
    cells = expand(
        config(attacks=["mse", "cosine"], budgets=[10, 64], design="matrix"), sizes=SIZES
    )
    found = [Measured(each, facts, bad if each.attack == "mse" else images) for each in cells[:-1]]
    rows = make_rows([*found, Measured(cells[-1], {"error": "no"}, None)], price=0.5)
    told = {(row["attack"], row["budget"]): row for row in rows}
    assert told["mse", 10]["below"] == list(images)
    assert told["mse", 64]["against_cosine"] is None
    assert told["mse", 64]["below"] == []
    assert told["mse", 10]["cost"] == 0.32
    assert (told["cosine", 64]["status"], told["cosine", 64]["errors"]) == ("failed", {0: "no"})


@pytest.fixture(scope="module")
def stage(world):
    images = world.images(groups=4, train=24, test=10, side=16)
    key = world.key(images, sub_keys=1)
    return (
        images,
        key,
        build_encoder("convnet-xs", seed=1).eval(),
        build_encoder("convnet-xs", seed=2).eval(),
    )


def started(stage, out, **changes) -> ExtractionBench:
    images, key, victim, null = stage
    return ExtractionBench(
        config(**changes), victim=victim, images=images, out=out, key=key, nulls=[null]
    )


def test_second_run_steals_nothing_again_and_more_seeds_only_what_is_new(
    stage, tmp_path, monkeypatch
):
    calls = []
    own = bench.steal

    def counted(*given, **named):
        calls.append(named["config"].attack)
        return own(*given, **named)

    monkeypatch.setattr(bench, "steal", counted)
    first = started(stage, tmp_path, attacks=["mse"]).run()
    assert sorted(calls) == ["cosine", "mse"]
    again = started(stage, tmp_path, attacks=["mse"]).run()
    assert again["rows"] == first["rows"]
    assert len(calls) == 2
    more = started(stage, tmp_path, attacks=["mse"], seeds=[0, 1]).run()
    assert len(calls) == 4
    row = more["rows"][0]
    assert row["seeds"] == [0, 1]
    assert row["fidelity"]["how"] == "t over seeds"
    assert row["fidelity"]["seeds"][0] == first["rows"][0]["fidelity"]["value"]
    with pytest.raises(ConfigError, match=r"steal\.fit\.epochs was 1, now 2"):
        started(stage, tmp_path, steal={**BASE, "fit": {**FIT, "epochs": 2}}).run()
    with pytest.raises(ConfigError, match="neighbours was 20, now 5"):
        started(stage, tmp_path, neighbours=5).run()


def test_interrupted_measurement_does_not_steal_again_and_the_victim_is_read_once(
    stage, tmp_path, monkeypatch
):
    own, read = ExtractionBench._judge, []
    monkeypatch.setattr(ExtractionBench, "_judge", lambda self, encoder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        started(stage, tmp_path).run()
    monkeypatch.setattr(ExtractionBench, "_judge", own)
    monkeypatch.setattr(bench, "steal", lambda *given, **named: 1 / 0)
    embedded = bench.embed

    def counted(encoder, *given, **named):
        read.append(encoder is stage[2])
        return embedded(encoder, *given, **named)

    monkeypatch.setattr(bench, "embed", counted)
    assert started(stage, tmp_path).run()["failed"] == 0
    assert read.count(True) == 2
    assert read.count(False) == 2


def test_failed_cell_is_told_and_tried_again_and_the_others_are_measured(
    stage, tmp_path, monkeypatch
):
    own = bench.steal

    def broken(*given, **named):
        if named["config"].attack == "mse":
            raise EncoderError("the service is away")
        return own(*given, **named)

    monkeypatch.setattr(bench, "steal", broken)
    result = started(stage, tmp_path, attacks=["mse"]).run()
    assert result["failed"] == 1
    assert {row["attack"]: row["status"] for row in result["rows"]} == {
        "cosine": "measured",
        "mse": "failed",
    }
    assert "the service is away" in extraction_markdown(result)
    assert "NaN" not in (tmp_path / "result.json").read_text()
    monkeypatch.setattr(bench, "steal", own)
    assert started(stage, tmp_path, attacks=["mse"]).run()["failed"] == 0
    monkeypatch.setattr(
        bench,
        "steal",
        lambda *given, **named: broken(config=config(steal={**BASE, "attack": "mse"}).steal),
    )
    with pytest.raises(VerificationError, match=r"none of 1 cells.*the service is away"):
        started(stage, tmp_path / "other").run()


def test_a_key_without_a_null_encoder_is_refused_before_anything_is_stolen(stage, tmp_path):
    images, key, victim, _ = stage
    with pytest.raises(ConfigError, match="--null"):
        ExtractionBench(config(), victim=victim, images=images, out=tmp_path, key=key)


@pytest.fixture(scope="module")
def place(stage, tmp_path_factory):
    from PIL import Image

    at = tmp_path_factory.mktemp("extraction")
    images, _, victim, null = stage
    for half in (images.train, images.test):
        for number, (pixels, label) in enumerate(zip(half.pixels, half.labels, strict=True)):
            folder = at / "images" / half.split / f"colour {label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{number:04}.png")
    for name, encoder in (("victim", victim), ("null", null)):
        save_encoder(encoder, at / name)
    (at / "bench.yaml").write_text(yaml.safe_dump({"steal": BASE, "verify": VERIFY}))
    return at


def test_command_measures_two_attacks_with_two_budgets(place, world):
    from ssl_wm.data.sources import open_images

    key = world.key(open_images(str(place / "images")), sub_keys=1)
    save_key(key, place / "owner.key")
    words = (
        "bench", "extraction", "--config", place / "bench.yaml", "--victim", place / "victim",
        "--key", place / "owner.key", "--null", place / "null", "--images", place / "images",
        "--attacks", "cosine,rda", "--budgets", "40,64", "--design", "matrix", "--price", "0.5",
        "--out", place / "out",
    )  # fmt: skip
    code, out, err = run(*words, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["rows"] == json.loads((place / "out" / "result.json").read_text())["rows"]
    rows = {(row["attack"], row["budget"]): row for row in told["rows"]}
    assert set(rows) == {("cosine", 40), ("cosine", 64), ("rda", 40), ("rda", 64)}
    assert rows["rda", 40]["calls"]["billed"] == 400
    assert rows["rda", 40]["cost"] == 0.2
    for row in rows.values():
        for name in ("fidelity", "agreement", "linear", "knn", "wsr", "wfpr"):
            low, high = row[name]["interval"]
            assert low <= row[name]["value"] <= high
        assert 0 < row["p_value"]["value"] <= 1
        folder = place / "out" / "cells" / row["cells"][0]
        assert (folder / "encoder.safetensors").is_file()
        assert not (folder / "transfer.safetensors").exists()
    assert (place / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    table = (place / "out" / "table.md").read_text()
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1
    code, out, err = run(*words, "--resume")
    assert code == 0
    assert "rda" in out
    assert "curves.png" in out
    assert "steal" not in err
    assert extraction_table(told).row_count == 5


def test_unknown_attack_names_the_nearest_and_ends_with_2(place):
    code, out, err = run(
        "bench", "extraction", "--victim", place / "victim", "--images", place / "images",
        "--attacks", "cosine,cont-stael", "--out", place / "none",
    )  # fmt: skip
    assert (code, out) == (2, "")
    assert "did you mean 'cont-steal'?" in err
    assert not (place / "none").exists()
