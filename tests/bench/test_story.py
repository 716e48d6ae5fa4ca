"""A whole story from one config, at toy size."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch
import yaml

from ssl_wm.bench.story import run_benchmark
from ssl_wm.bench.story_plan import BenchConfig, load_bench_config
from ssl_wm.errors import ConfigError

ROOT = Path(__file__).parents[2]
FIT = {"epochs": 1, "batch_size": 64, "warmup_steps": 2}
STORY = {
    "title": "toy",
    "images": {"spec": "digits", "limit": 400},
    "keys": {"owner": {"of": "clean", "groups": "labels", "sub_keys": 3, "autoencoder_steps": 2}},
    "encoders": {
        "clean": {"pretrain": {"arch": "convnet-xs", "fit": FIT}},
        "watermarked": {"of": "clean", "watermark": {"options": {"steps": 20}, "fit": FIT}},
        "stolen": {"of": "watermarked", "steal": {"arch": "convnet-xs", "fit": FIT}},
        "independent": {"pretrain": {"arch": "convnet-xs", "fit": FIT}},
    },
    "verify": {"draws": 999, "read": {"per_pair": 8, "reference": 20, "trigger_count": 40}},
    "maps": ["clean", "stolen"],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "out"
    return out, run_benchmark(BenchConfig.model_validate(STORY), out=out)


def test_result_has_utility_for_all_and_verdicts_for_all_but_clean(finished):
    out, result = finished
    names = {"clean", "watermarked", "stolen", "independent"}
    assert set(result["utility"]) == names
    assert set(result["verdicts"]) == names - {"clean"}
    assert json.loads((out / "result.json").read_text())["utility"] == result["utility"]
    for verdict in result["verdicts"].values():
        assert {"decision", "p_value", "wsr", "wfpr"} <= set(verdict)


def test_every_encoder_and_the_key_stay_for_the_other_commands(finished):
    out, _ = finished
    for name in STORY["encoders"]:
        assert (out / name / "encoder.safetensors").is_file()
        assert not (out / name / "training.ckpt").exists()
    assert (out / "owner.key").stat().st_mode & 0o777 == 0o600


def test_report_is_one_page_that_loads_nothing_and_hides_the_secret(finished):
    out, _ = finished
    page = (out / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    secret = json.loads((out / "owner.key").read_text())["secret"]
    assert secret not in page
    assert secret not in (out / "result.json").read_text()


def test_table_for_the_docs_has_a_line_for_each_encoder(finished, capsys, monkeypatch):
    out, result = finished
    monkeypatch.setattr("sys.argv", ["results_table.py", str(out / "result.json")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / "results_table.py"), run_name="__main__")
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == list(result["utility"])
    assert len({line.count("|") for line in lines}) == 1


def test_second_run_makes_nothing_again_and_says_the_same(finished):
    out, first = finished
    weights = out / "stolen" / "encoder.safetensors"
    before = weights.stat().st_mtime_ns
    again = run_benchmark(BenchConfig.model_validate(STORY), out=out)
    assert weights.stat().st_mtime_ns == before
    for name, verdict in first["verdicts"].items():
        assert again["verdicts"][name]["p_value"] == verdict["p_value"]


def test_cell_made_with_other_settings_is_refused_not_mixed_in(finished):
    out, _ = finished
    changed = BenchConfig.model_validate({**STORY, "seed": 5})
    with pytest.raises(ConfigError, match="other settings"):
        run_benchmark(changed, out=out)


def test_copy_of_the_same_seed_is_bit_identical_in_another_folder(finished, tmp_path):
    from safetensors.torch import load_file

    out, _ = finished
    story = {**STORY, "encoders": {"clean": STORY["encoders"]["clean"]}, "maps": []}
    run_benchmark(BenchConfig.model_validate(story), out=tmp_path)
    one, two = (load_file(f / "clean" / "encoder.safetensors") for f in (out, tmp_path))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoders": {"x": {"of": "clean", "steal": {}}}}, "not defined above"),
        ({"encoders": {"clean": {"pretrain": {}, "steal": {}}}}, "exactly one of"),
        ({"encoders": {"clean": {"pretrain": {}, "of": "clean"}}}, "'of' names the parent"),
        ({"maps": ["nobody"]}, "no encoder 'nobody'"),
        ({"encoders": {"clean": {"pretrain": {}, "key": "none"}}, "maps": []}, "unknown key"),
    ],
)
def test_story_that_cannot_be_told_is_refused_before_any_training(tmp_path, change, words):
    path = tmp_path / "story.yaml"
    path.write_text(yaml.safe_dump({**STORY, **change}, sort_keys=False))
    with pytest.raises(ConfigError, match=words):
        load_bench_config(path, {})
