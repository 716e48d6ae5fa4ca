"""Settings: what a file says, what a flag says on top, and what is no setting at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ssl_wm.bench.detection_plan import DetectionBench
from ssl_wm.bench.extraction_plan import ExtractionConfig
from ssl_wm.bench.robustness_plan import RobustnessConfig
from ssl_wm.bench.story_plan import BenchConfig, load_bench_config
from ssl_wm.bench.survival_plan import SurvivalConfig
from ssl_wm.config import Settings, load_settings, merge, parse, read_yaml
from ssl_wm.errors import ConfigError

ROOT = Path(__file__).parents[1]
MODELS = {
    "detection": DetectionBench, "extraction": ExtractionConfig, "robustness": RobustnessConfig,
    "survival": SurvivalConfig,
}  # fmt: skip
names = st.text("abc", min_size=1, max_size=3)
trees = st.recursive(
    st.integers() | st.text("xyz"), lambda below: st.dictionaries(names, below), max_leaves=8
)


def write(folder: Path, text: str) -> Path:
    path = folder / "my.yaml"
    path.write_text(text)
    return path


def test_no_file_and_no_flags_give_the_documented_defaults():
    settings = load_settings(None, {})
    assert settings == Settings()
    assert (settings.pretrain.objective, settings.steal.attack) == ("simclr", "cosine")
    assert (settings.watermark.method, settings.verify.alpha) == ("bend-space", 0.01)


def test_a_flag_overrides_the_file_and_the_file_the_default(tmp_path):
    path = write(tmp_path, "steal: {attack: mse, budget: 50, fit: {epochs: 3}}\n")
    flags = {"steal.attack": "cont-steal", "steal.fit.epochs": None, "images.spec": "digits"}
    settings = load_settings(path, flags)
    assert settings.steal.attack == "cont-steal"
    assert (settings.steal.budget, settings.steal.fit.epochs) == (50, 3)
    assert settings.images.spec == "digits"


def test_one_file_serves_every_stage(tmp_path):
    text = """
images: {spec: digits, limit: 100}
pretrain: {arch: cnn9, objective: byol, fit: {learning_rate: 2e-3}}
key: {groups: labels}
watermark: {method: mea-defender, options: {temperature: 0.5}}
steal: {arch: vgg-small}
verify: {alpha: 0.05, read: {per_pair: 16}}
"""
    settings = load_settings(write(tmp_path, text), {})
    assert settings.pretrain.fit.learning_rate == 0.002
    assert settings.watermark.options == {"temperature": 0.5}
    assert settings.verify.read.per_pair == 16
    assert Settings.model_validate(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steel: {}", ["unknown setting 'steel'", "did you mean 'steal'?", "pretrain"]),
        ("steal: {atack: mse}", ["'steal.atack'", "did you mean 'attack'?"]),
        ("verify: {read: {perpair: 9}}", ["'verify.read.perpair'", "did you mean 'per_pair'?"]),
        ("steal: {fit: {epoch: 1}}", ["'steal.fit.epoch'", "did you mean 'epochs'?"]),
        ("images: {zzz: 1}", ["unknown setting 'images.zzz'", "Known here: spec, size"]),
        ("verify: {alpha: 0}", ["'verify.alpha'", "greater than 0", "got 0"]),
        ("verify: {alpha: 1}", ["'verify.alpha'", "less than 1"]),
        ("steal: {budget: 0}", ["'steal.budget'"]),
        ("steal: {held_out: 0.5}", ["'steal.held_out'"]),
        ("pretrain: {fit: {epochs: -1}}", ["'pretrain.fit.epochs'", "got -1"]),
        ("pretrain: {fit: {batch_size: 1}}", ["'pretrain.fit.batch_size'"]),
        ("pretrain: {fit: {precision: fp8}}", ["'pretrain.fit.precision'", "bf16-mixed"]),
        ("pretrain: {seed: many}", ["'pretrain.seed'", "got 'many'"]),
        ("key: {groups: colours}", ["'key.groups'", "clusters"]),
        ("key: {clusters: 2}", ["'key.clusters'"]),
        ("images: {limit: 0}\nsteal: {budget: 0}", ["(and 1 more)"]),
        ("images: digits", ["'images'"]),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(text, words, tmp_path):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_settings(path, {})
    message = str(caught.value)
    assert "\n" not in message
    for word in [str(path), *words]:
        assert word in message


def test_a_wrong_flag_is_named_like_a_setting():
    with pytest.raises(ConfigError, match=r"setting 'verify.alpha'.*got 2"):
        load_settings(None, {"verify.alpha": 2.0})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "must be a mapping"),
        (b"- 1\n- 2\n", "must be a mapping"),
        (b"a: [1, 2\nb: 3\n", "is not YAML (line 2)"),
        (b"a: !!python/object/apply:os.system ['true']\n", "is not YAML (line 1): plain data"),
        (b"\xff\xfe\x00", "cannot read config"),
    ],
)
def test_a_file_that_is_no_mapping_of_plain_data_is_refused(content, words, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert words in str(caught.value)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"cannot read config .*directory"):
        read_yaml(tmp_path)


def test_settings_cannot_be_changed_after_the_fact():
    with pytest.raises(ValidationError, match="frozen"):
        load_settings(None, {}).steal.attack = "mse"


@given(st.dictionaries(names, trees))
def test_merging_nothing_changes_nothing(data):
    assert merge(data, {}) == data
    assert merge(data, dict.fromkeys(["a", "b.c"])) == data


def test_a_setting_that_stands_twice_is_refused_with_its_line(tmp_path):
    path = write(tmp_path, "steal:\n  attack: mse\n  budget: 5\n  attack: cosine\n")
    with pytest.raises(ConfigError, match=r"my.yaml \(line 4\): 'attack' is set twice"):
        read_yaml(path)
    twice_apart = write(tmp_path, "steal: {seed: 1}\nwatermark: {seed: 2}\n")
    assert read_yaml(twice_apart) == {"steal": {"seed": 1}, "watermark": {"seed": 2}}


@given(st.dictionaries(names, trees), st.lists(names, min_size=1, max_size=3), st.integers())
def test_a_merged_value_is_found_at_its_path_and_the_input_stays(data, path, value):
    before = repr(data)
    level = merge(data, {".".join(path): value})
    for part in path:
        level = level[part]
    assert level == value
    assert repr(data) == before


def test_the_packaged_demo_is_the_one_in_configs():
    demo = load_bench_config(None, {})
    assert demo == load_bench_config(ROOT / "configs" / "demo.yaml", {})
    assert {"clean", "watermarked", "stolen", "independent"} == set(demo.encoders)
    assert load_bench_config(None, {"seed": 5, "images.limit": 9}).images.limit == 9


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_config_that_is_handed_out_loads(path):
    model = MODELS.get(path.name.partition("-")[0])
    model = model or (BenchConfig if "encoders" in read_yaml(path) else Settings)
    assert isinstance(parse(model, read_yaml(path), source=str(path)), model)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("keys: {k: {}}\nencoders: {}", "encoders"),
        ("keys: {k: {}}\nencoders: {clean: {}}", "exactly one of pretrain, watermark, steal"),
        ("keys: {k: {}}\nencoders: {clean: {steal: {}}}", "'of' names the parent"),
        ("keys: {k: {of: x}}\nencoders: {clean: {pretrain: {}}}", "there is no encoder 'x'"),
        ("keys: {k: {}}\nencoders: {s: {steal: {}, of: clean}}", "not defined above it"),
        ("keys: {k: {}}\nencoders: {clean: {pretrain: {}, key: l}}", "unknown key 'l'"),
        ("keys: {k: {clsters: 3}}\nencoders: {clean: {pretrain: {}}}", "clsters"),
    ],
)
def test_a_story_that_makes_no_sense_is_refused(text, words, tmp_path):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_bench_config(path, {})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
