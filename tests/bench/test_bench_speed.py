"""Speed side by side: how timings become ratios, what the same result is, what a run keeps."""

from __future__ import annotations

import json
import math
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from command_line import run
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from ssl_wm.bench import rivals, speed, speed_memory
from ssl_wm.bench.side_by_side import Case, Side, Timing, measure, timed
from ssl_wm.bench.speed_plan import NAMES, SpeedConfig, load_speed_config, setup_of
from ssl_wm.bench.speed_reading import (
    compare_classes,
    compare_neighbours,
    embedding_case,
    knn_case,
    probe_case,
)
from ssl_wm.bench.speed_sizes import GPU, QUICK, Sizes, synthetic_embeddings
from ssl_wm.bench.speed_training import augmentation_case, our_training, training_case, work_of
from ssl_wm.errors import ConfigError, TrainingError, VerificationError
from ssl_wm.report.speed import memory_stages, ratio_cases, speed_lines, speed_markdown, write_speed

TINY = {
    "arch": "convnet-xs", "batch_size": 8, "warmup": 1, "steps": 2, "augmented": 2,
    "embedded": 24, "embed_batch": 16, "bank": 300, "queries": 50, "neighbours": 5, "probed": 300,
    "width": 16, "memory_images": 160, "read_per_pair": 8, "read_recipes": 2, "read_reference": 8,
    "large_bank": 400, "large_width": 8, "large_queries": 10,
}  # fmt: skip


def config(**changes: object) -> SpeedConfig:
    given = {"repeats": 2, "workers": 0, "compile": False, "sizes": TINY, **changes}
    return SpeedConfig.model_validate(given)


@pytest.fixture(scope="module")
def setup():
    return setup_of(config())


class Ticks:
    """A clock that is one second later at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def paced(name: str, seconds: list[float], order: list[str], *, items: float = 10) -> Side:
    """Return a side whose runs take ``seconds`` in turn."""
    left = iter(seconds)

    def run(clock: object) -> Timing:
        order.append(name)
        return Timing(next(left), items)

    return Side(name, run)


def two(a: list[float], b: list[float], order: list[str], **settings: object) -> Case:
    sides = (paced("a", a, order), paced("b", b, order, items=20))
    return Case("two", "things", *sides, **{"bar": 1.0, **settings})


def test_ratio_is_taken_within_each_repeat_and_the_median_of_them_is_told():
    order: list[str] = []
    told = measure(two([9.0, 1.0, 2.0, 4.0], [9.0, 8.0, 4.0, 2.0], order), repeats=3, clock=Ticks())
    # items 10 and 20: rates 10, 5, 2.5 beside 2.5, 5, 10; the first runs are not measured
    assert told["ratio"]["each"] == [4.0, 1.0, 0.25]
    assert told["ratio"]["median"] == 1.0
    assert (told["ratio"]["low"], told["ratio"]["high"]) == (0.25, 4.0)
    assert told["sides"]["a"]["rate"] == {"median": 5.0, "low": 2.5, "high": 10.0}
    assert told["met"] is True
    assert order == ["a", "b", "a", "b", "b", "a", "a", "b"]


def test_side_that_begins_changes_and_own_warmups_are_not_run_twice():
    order: list[str] = []
    measure(two([1.0] * 2, [1.0] * 2, order), repeats=2, clock=Ticks(), warm=False)
    assert order == ["a", "b", "b", "a"]
    with pytest.raises(ConfigError, match="at least 1"):
        measure(two([], [], []), repeats=0, clock=Ticks())


@pytest.mark.parametrize(
    ("of", "bar", "same", "met"),
    [
        ("rate", 2.0, True, True), ("rate", 2.1, True, False), ("rate", 2.0, False, False),
        ("time", 0.5, True, True), ("time", 0.4, True, False),
    ],
)  # fmt: skip
def test_bar_is_a_least_rate_or_a_most_time_and_counts_only_for_the_same_result(of, bar, same, met):
    case = two([1.0], [4.0], [], of=of, bar=bar, checks=lambda: {"same": same})
    told = measure(case, repeats=1, clock=Ticks(), warm=False)
    assert told["ratio"]["median"] == {"rate": 2.0, "time": 0.5}[of]
    assert told["met"] is met


def test_timed_side_waits_for_the_device_before_each_look_at_the_clock():
    done: list[str] = []
    side = timed(lambda: done.append("work"), items=3, wait=lambda: done.append("wait"))

    def clock() -> float:
        done.append("look")
        return float(len(done))

    assert side.run(clock).items == 3
    assert done == ["wait", "look", "work", "wait", "look"]


def test_our_training_times_the_steps_after_the_warmup_alone(setup, monkeypatch):
    waits: list[int] = []
    watched = replace(setup, sizes=setup.sizes.model_copy(update={"warmup": 2, "steps": 3}))
    monkeypatch.setattr(type(watched), "wait", lambda self: waits.append(1))
    clock = Ticks()
    took = our_training(watched, clock=clock)
    assert (took.seconds, took.items) == (1.0, 24)
    assert clock.now == 2.0  # looked at twice: no look in between costs time
    assert len(waits) == 2


def test_lightly_trains_the_steps_that_are_counted_and_a_dead_worker_is_told(setup, monkeypatch):
    steps: list[int] = []
    own = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda *given, **named: (steps.append(1), own(*given, **named))[1]
    )
    took = training_case(setup).theirs.run(Ticks())
    assert (took.seconds, took.items) == (1.0, 16)
    assert len(steps) == 3
    with pytest.raises(TrainingError, match="ended after 3 of 6 batches"):
        short_of_images(setup, steps=5)

    def dies(*_: object) -> None:
        raise RuntimeError("DataLoader worker (pid 1) exited unexpectedly")

    monkeypatch.setattr(rivals.PicturePairs, "__getitem__", dies)
    with pytest.raises(TrainingError, match=r"lightly's training failed.*exited unexpectedly"):
        training_case(setup).theirs.run(Ticks())


def short_of_images(setup, *, steps: int) -> Timing:
    return rivals.lightly_training(
        torch.nn.Sequential(torch.nn.AvgPool2d(32), torch.nn.Flatten()), setup.pixels[:24],
        width=3, batch_size=8, warmup=1, steps=steps, workers=0, min_scale=0.2,
        device=torch.device("cpu"), clock=Ticks(), wait=lambda: None,
    )  # fmt: skip


def test_lightly_sees_colours_as_strongly_changed_as_ours(setup):
    from ssl_wm.data.views import ViewConfig

    views = ViewConfig()
    pairs = rivals.PicturePairs(setup.pixels[:2], min_scale=views.min_scale)
    found = [
        part
        for view in pairs.transform.transforms
        for part in walk(view.transform)
        if type(part).__name__ == "ColorJitter"
    ]
    assert len(found) == 2
    for jitter in found:
        assert jitter.brightness == pytest.approx((1 - views.brightness, 1 + views.brightness))
        assert jitter.saturation == pytest.approx((1 - views.saturation, 1 + views.saturation))
        assert jitter.contrast == pytest.approx((1 - views.contrast, 1 + views.contrast))
        assert jitter.hue == pytest.approx((-views.hue, views.hue))


def walk(transform: object) -> list[object]:
    inner = getattr(transform, "transforms", None)
    parts = inner if inner is not None else [getattr(transform, "transform", None)]
    return [transform, *(each for part in parts if part is not None for each in walk(part))]


def test_fast_device_is_not_timed_on_batches_that_were_ready_before(setup):
    assert setup.rival_warmup == 1
    on_gpu = replace(setup, device=torch.device("cuda"), workers=6)
    assert on_gpu.rival_warmup == 12
    assert len(on_gpu.pixels) >= 8 * (12 + 2 + 12)


def test_work_of_a_step_is_three_forward_passes_of_two_views(setup):
    from torch.utils.flop_counter import FlopCounterMode

    from ssl_wm.encoders.load import build_encoder

    encoder = build_encoder("convnet-xs", seed=0)
    with FlopCounterMode(display=False) as counter:
        encoder(torch.rand(1, 3, 32, 32))
    once = counter.get_total_flops() / 1e9
    # forward and backward of two views; the first layer needs no gradient of its input
    assert 0.75 * 6 * once < work_of(setup)["gflop_per_image"] < 1.25 * 6 * once


def test_embedding_is_checked_against_the_bare_forward_pass(setup, monkeypatch):
    case = embedding_case(setup)
    assert case.checks()["same"] is True
    assert case.ours.run(Ticks()).items == 24
    own = speed.CASES["embedding"].__globals__["embed"]
    monkeypatch.setitem(
        embedding_case.__globals__, "embed", lambda *a, **k: own(*a, **k).roll(1, dims=0)
    )
    assert embedding_case(setup).checks()["same"] is False


def cloud(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact(queries: torch.Tensor, bank: torch.Tensor, k: int) -> torch.Tensor:
    unit = [each.double() / each.double().norm(dim=1, keepdim=True) for each in (queries, bank)]
    return torch.from_numpy(np.argsort(-(unit[0] @ unit[1].T).numpy(), axis=1)[:, :k].copy())


def test_wrong_neighbours_are_caught_and_only_ties_of_rounding_are_let_through():
    bank, queries = cloud(200, 8), cloud(20, 8, seed=1)
    bank[7] = 3 * bank[3]  # the same direction: no float32 search can order these two
    queries[0] = bank[3] + 0.01 * queries[0]
    true = exact(queries, bank, 6)
    at = (true[0] == 3) | (true[0] == 7)
    assert int(at.sum()) == 2

    def told(theirs: torch.Tensor, k: int = 5) -> tuple[int, int, int]:
        found = compare_neighbours(queries, bank, ours=true[:, :k], theirs=theirs)
        return tuple(found.values())

    shuffled = true[:, torch.tensor([4, 2, 0, 1, 3])]
    assert told(shuffled) == (20, 0, 0)
    one = true[:, :1].clone()
    one[0] = 10 - one[0]  # 3 for 7 or 7 for 3
    assert told(one, k=1) == (19, 1, 0)
    wrong = true[:, :5].clone()
    wrong[4, 4] = true[4, 5]
    assert told(wrong) == (19, 0, 1)
    twice = true[:, :5].clone()
    twice[4, 4] = twice[4, 3]
    assert told(twice) == (19, 0, 1)


def test_wrong_classes_are_caught_and_only_tied_votes_are_let_through():
    bank = torch.eye(4).repeat(2, 1)  # each direction twice
    labels = torch.tensor([0, 1, 2, 3, 1, 1, 2, 3])
    queries = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1.0, 0]])
    found = torch.tensor([[0, 4], [2, 6]])
    ours = torch.tensor([0, 2])

    def told(theirs: list[int]) -> tuple[int, int, int]:
        counts = compare_classes(
            queries, bank, labels, found=found, ours=ours, theirs=torch.tensor(theirs)
        )
        return tuple(counts.values())

    assert told([0, 2]) == (2, 0, 0)
    assert told([1, 2]) == (1, 1, 0)  # one neighbour of each class, equally near
    assert told([0, 3]) == (1, 0, 1)


def test_knn_measurement_is_not_met_when_our_search_is_wrong(setup, monkeypatch):
    assert knn_case(setup).checks()["same"] is True
    own = knn_case.__globals__["nearest"]

    def off(queries, bank, *, k):
        cosines, indices = own(queries, bank, k=k + 1)
        return cosines[:, 1:], indices[:, 1:]

    monkeypatch.setitem(knn_case.__globals__, "nearest", off)
    told = measure(knn_case(setup), repeats=1, clock=Ticks())
    assert told["checks"]["other_neighbours"] == 50
    assert told["met"] is False


def test_lightlys_side_of_knn_is_the_weighted_vote_that_scikit_learn_takes():
    bank, labels = synthetic_embeddings(200, width=12, classes=4, seed=0, split="bank")
    queries, _ = synthetic_embeddings(60, width=12, classes=4, seed=0, split="queries")
    unit = [(each / each.norm(dim=1, keepdim=True)).double().numpy() for each in (queries, bank)]
    judge = KNeighborsClassifier(
        9, metric="cosine", algorithm="brute", weights=lambda gaps: np.exp((1 - gaps) / 0.1)
    ).fit(unit[1], labels.numpy())
    found = rivals.lightly_knn(queries, bank, labels, k=9, temperature=0.1, block=7)
    assert np.array_equal(found.numpy(), judge.predict(unit[0]))
    places = rivals.topk_neighbours(queries, bank, k=9, block=7)
    assert torch.equal(places.sort(dim=1).values, exact(queries, bank, 9).sort(dim=1).values)


def test_probe_measurement_compares_accuracies_on_rows_that_neither_side_saw(setup, monkeypatch):
    told = probe_case(setup).checks()
    z, labels = synthetic_embeddings(300, width=16, classes=10, seed=0, split="probe")
    held, truth = synthetic_embeddings(150, width=16, classes=10, seed=0, split="held out")
    scaler = StandardScaler().fit(z.numpy())
    model = LogisticRegression(tol=1e-4, max_iter=2000).fit(scaler.transform(z.numpy()), labels)
    right = model.score(scaler.transform(held.numpy()), truth.numpy())
    assert told["accuracy_scikit_learn"] == pytest.approx(right)
    assert told["points_apart"] == pytest.approx(100 * abs(told["accuracy_ours"] - right))
    own = probe_case.__globals__["fit_probe"]
    monkeypatch.setitem(
        probe_case.__globals__, "fit_probe", lambda rows, of: own(rows, (of + 1) % 10)
    )
    assert probe_case(setup).checks()["same"] is False


@pytest.mark.parametrize("width", [32, 256])
def test_synthetic_classes_overlap_at_any_width_so_that_an_accuracy_says_something(width):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    shape = {"width": width, "classes": 10, "seed": 3}
    z, labels = synthetic_embeddings(6000, **shape, split="bank")
    again, _ = synthetic_embeddings(6000, **shape, split="bank")
    held, truth = synthetic_embeddings(1000, **shape, split="queries")
    assert torch.equal(z, again)
    assert z.dtype == torch.float32
    assert not torch.equal(z[:1000], held)
    right = LinearDiscriminantAnalysis().fit(z.numpy(), labels).score(held.numpy(), truth)
    assert 0.5 < right < 0.95
    scales = np.linalg.eigvalsh(np.cov((z - z.mean(dim=0)).numpy(), rowvar=False))
    assert scales[-1] > 10 * scales[0]


def test_augmentation_counts_two_views_of_every_image(setup):
    case = augmentation_case(setup)
    assert case.of == "time"
    assert case.ours.run(Ticks()) == Timing(1.0, 16)


def test_sizes_follow_the_device_and_quick_and_a_config_changes_single_ones(monkeypatch):
    usual = setup_of(SpeedConfig(device="cpu")).sizes
    assert usual == Sizes()
    assert (usual.bank, usual.width, usual.queries) == (50_000, 512, 10_000)
    assert (usual.large_bank, usual.large_width) == (1_000_000, 768)
    quick = setup_of(SpeedConfig(quick=True, sizes={"bank": 77})).sizes
    assert quick.bank == 77
    assert quick.model_dump() == {**Sizes().model_dump(), **QUICK, "bank": 77}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: True)
    there = setup_of(SpeedConfig())
    assert there.precision == "bf16-mixed"
    assert there.on_gpu
    assert there.sizes.model_dump() == {**Sizes().model_dump(), **GPU}
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES"):
        setup_of(SpeedConfig(device="cpu"))
    assert not setup_of(SpeedConfig(device="cpu", cases=("knn", "probe"))).on_gpu


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"cases": ["nkn"]}, "did you mean 'knn'"), ({"repeats": 0}, "repeats"),
        ({"device": "tpu"}, "device"), ({"sizes": {"banks": 3}}, "did you mean 'bank'"),
        ({"sizes": {"steps": 0}}, "steps"), ({"repeat": 3}, "did you mean 'repeats'"),
        ({"device": "cuda"}, "finds no GPU"),
    ],
)  # fmt: skip
def test_mistake_in_the_settings_names_what_is_wrong(given, match, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=match):
        load_speed_config(None, given)


@pytest.fixture
def counted(monkeypatch):
    """Cases that take no time; their names in the order in which they were prepared."""
    made: list[str] = []

    def entry(name: str):
        def prepare(setup: object) -> Case:
            made.append(name)
            return two([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], [])

        return prepare

    monkeypatch.setattr(speed, "CASES", {name: entry(name) for name in NAMES if name != "memory"})
    return made


def test_run_keeps_what_is_finished_and_adds_what_is_asked_for_later(counted, tmp_path):
    first = speed.run_speed(config(cases=("probe", "knn")), out=tmp_path)
    assert counted == ["knn", "probe"]
    assert list(first["cases"]) == ["knn", "probe"]
    again = speed.run_speed(config(cases=("training", "knn")), out=tmp_path)
    assert counted == ["knn", "probe", "training"]
    assert list(again["cases"]) == ["training", "knn", "probe"]
    assert again["cases"]["knn"] == first["cases"]["knn"]
    assert json.loads((tmp_path / "speed.json").read_text()) == again
    with pytest.raises(ConfigError, match=r"settings\.repeats was 2, now 3.*--overwrite"):
        speed.run_speed(config(repeats=3), out=tmp_path)
    with pytest.raises(ConfigError, match=r"settings\.sizes\.bank was 300, now 301"):
        speed.run_speed(config(sizes={**TINY, "bank": 301}), out=tmp_path)


def test_run_is_not_resumed_on_another_machine_or_from_a_damaged_file(
    counted, tmp_path, monkeypatch
):
    wanted = config(cases=("knn",))
    speed.run_speed(wanted, out=tmp_path)
    monkeypatch.setattr(speed, "machine", lambda: {"cpu": "another"})
    with pytest.raises(ConfigError, match=r"machine\.cpu was .*, now another"):
        speed.run_speed(wanted, out=tmp_path)
    for damage in ("{", "[]", '{"cases": 3}'):
        (tmp_path / "speed.json").write_text(damage)
        with pytest.raises(ConfigError, match=r"speed\.json"):
            speed.run_speed(wanted, out=tmp_path)


def test_measurement_that_fails_is_told_tried_again_and_the_others_are_made(
    counted, tmp_path, monkeypatch
):
    whole = dict(speed.CASES)

    def fails(setup: object) -> Case:
        raise TrainingError("the loss is not finite")

    def full(setup: object) -> Case:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(speed, "CASES", {**whole, "training": fails, "embedding": full})
    seen: list[list[str]] = []
    own = speed.write_json
    monkeypatch.setattr(
        speed,
        "write_json",
        lambda path, facts: (seen.append(list(facts["cases"])), own(path, facts)),
    )
    wanted = config(cases=("training", "embedding", "augmentation"))
    told = speed.run_speed(wanted, out=tmp_path)
    assert told["failed"] == ["training", "embedding"]
    assert [len(names) for names in seen] == [1, 2, 3]
    assert "the loss is not finite" in speed_markdown(told)
    assert "memory does not suffice" in " ".join(speed_lines(told))
    write_speed(told, tmp_path)
    monkeypatch.setattr(speed, "CASES", whole)
    told = speed.run_speed(wanted, out=tmp_path)
    assert told["failed"] == []
    assert counted == ["augmentation", "training", "embedding"]
    monkeypatch.setattr(speed, "CASES", {**whole, "training": fails})
    with pytest.raises(VerificationError, match=r"none of 1 measurements.*not finite"):
        speed.run_speed(config(cases=("training",)), out=tmp_path / "other")


def test_every_stage_says_what_goes_in_and_its_bytes(setup):
    expected = {
        "knn": 4 * 16 * (300 + 50), "large knn": 4 * 8 * (400 + 10), "probe": 300 * (4 * 16 + 8),
    }  # fmt: skip
    for name, prepare in speed_memory.STAGES.items():
        work = prepare(setup)
        assert work.input_bytes == expected.get(name, work.input_bytes), name
        assert work.input_bytes > 3 * 32 * 32 if name not in expected else True
        assert all(math.prod(shape) > 0 for shape in work.inputs.values())
        work.run()


def test_peak_keeps_what_was_given_back_and_the_limit_is_of_the_whole_process():
    before, size = speed_memory.resident(), 100_000_000
    held = np.ones(size // 8)
    top = speed_memory.resident()
    assert top > before + 0.8 * size
    del held
    assert speed_memory.resident() < top - 0.8 * size
    assert speed_memory.peak() > top - 0.1 * size
    told = {"input_bytes": 4, "baseline_bytes": 10**9, "peak_bytes": speed_memory.LIMIT}
    assert speed_memory.judge_stage("large knn", told)["met"] is True
    told["peak_bytes"] += 1
    assert speed_memory.judge_stage("large knn", told)["met"] is False
    assert "met" not in speed_memory.judge_stage("probe", told)


def test_stage_reaches_its_own_process_whole(setup):
    assert len(setup.pixels) >= 24  # made, and not to be sent along
    work, name, given = pickle.loads(
        pickle.dumps((speed_memory.measure_stage, "probe", replace(setup)))
    )
    assert given == setup
    assert "pixels" not in vars(given)
    told = work(name, given)
    assert told["inputs"] == {"rows": [300, 16], "labels": [300]}
    assert told["peak_bytes"] >= told["baseline_bytes"] > 10**8


def test_process_that_is_killed_is_one_failed_stage_and_the_others_are_told(setup, monkeypatch):
    assert speed_memory.in_child(math.sqrt, 9.0) == 3.0
    with pytest.raises(VerificationError, match="ended early"):
        speed_memory.in_child(os._exit, 9)
    good = {"input_bytes": 10, "baseline_bytes": 20, "peak_bytes": 50}

    def child(work: object, name: str, _: object) -> dict[str, int]:
        if name == "large knn":
            raise VerificationError("ended early")
        return dict(good)

    monkeypatch.setattr(speed_memory, "in_child", child)
    told = speed_memory.measure_memory(setup)
    assert told["stages"]["large knn"] == {"error": "ended early"}
    assert told["stages"]["probe"]["ratio"] == 3.0
    assert told["met"] is False


def test_command_measures_tells_and_goes_on(tmp_path):
    settings, out = tmp_path / "speed.yaml", tmp_path / "out"
    settings.write_text(yaml.safe_dump({"workers": 0, "sizes": TINY}))
    words = ("bench", "speed", "--config", settings, "--quick", "--repeats", 2, "--out", out)
    code, printed, err = run(*words, "--only", "knn", "--json")
    assert code == 0, err
    told = json.loads(printed)
    assert list(told["cases"]) == ["knn"]
    assert told["repeats"] == 2
    assert len(told["cases"]["knn"]["ratio"]["each"]) == 2
    assert told["cases"]["knn"]["checks"]["same"] is True
    assert told["files"] == [str(out / f"speed.{kind}") for kind in ("json", "md", "png")]
    assert (out / "speed.png").read_bytes().startswith(b"\x89PNG")
    code, printed, err = run(*words, "--only", "probe,knn", "--resume")
    assert code == 0, err
    assert "scikit-learn" in printed
    assert "quick sizes" in printed
    assert "knn: ratio" not in err
    kept = json.loads((out / "speed.json").read_text())
    assert kept["cases"]["knn"] == told["cases"]["knn"]
    table = (out / "speed.md").read_text()
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    assert len({line.count("|") for line in lines}) == 1
    assert "| knn | ours: " in table


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--only", "knn,prob"), "did you mean 'probe'"), (("--device", "tpu"), "device"),
        (("--repeats", "0"), "repeats"), (("--config", "nowhere.yaml"), "nowhere.yaml"),
    ],
)  # fmt: skip
def test_mistake_gives_one_line_and_2_and_makes_no_folder(words, says, tmp_path):
    code, out, err = run("bench", "speed", *words, "--out", tmp_path / "none")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert says in err
    assert not (tmp_path / "none").exists()


def test_report_shows_memory_beside_ratios(tmp_path):
    stage = {
        "inputs": {}, "input_bytes": 3_000_000_000, "baseline_bytes": 10**9,
        "peak_bytes": 7 * 10**9,
    }  # fmt: skip
    case = measure(two([1.0], [2.0], []), repeats=1, clock=Ticks(), warm=False)
    stages = {
        "large knn": speed_memory.judge_stage("large knn", stage),
        "probe": {"error": "ended early"},
    }
    result = {
        **speed.told({}, speed.identity_of(config(), setup_of(config()))),
        "cases": {"embedding": case, "memory": {"stages": stages, "load_before_run": 0.5}},
    }  # fmt: skip
    assert list(ratio_cases(result)) == ["embedding"]
    assert list(memory_stages(result)) == ["large knn"]
    text = speed_markdown(result)
    assert "| large knn | 3,000 | 1,000 | 7,000 | 6,000 | 2 | 8,000, met |" in text
    assert "memory of probe was not measured: ended early" in text
    files = write_speed(result, tmp_path)
    first = (tmp_path / "speed.png").read_bytes()
    write_speed(result, tmp_path)
    assert (tmp_path / "speed.png").read_bytes() == first
    assert len(files) == 2
