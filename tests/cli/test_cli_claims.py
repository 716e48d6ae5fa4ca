"""The commands behind a claim: keys with beacons, looks, budgets, nulls, trace, evidence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import Ran, run

from ssl_wm.encoders.load import build_encoder, save_encoder
from ssl_wm.verification.carried import both, carried_p_value
from ssl_wm.watermark.keyfile import load_key

SMALL = """
images: {spec: digits, limit: 400}
key: {autoencoder_steps: 2, clusters: 9}
verify: {draws: 999, read: {per_pair: 8, recipes: 4, reference: 20, trigger_count: 16}}
nulls:
  count: 2
  retrained: 0.5
  pretrain: {epochs: 1, batch_size: 100}
  steal: {epochs: 1, batch_size: 100}
calibrate:
  keys: 40
  draws: 999
  read: {per_pair: 8, recipes: 0, reference: 20, trigger_count: 16}
"""


@pytest.fixture(scope="module")
def at(tmp_path_factory) -> Path:
    """Return a folder with a config, encoders of random weights and a key of 3 sub-keys."""
    folder = tmp_path_factory.mktemp("claims")
    (folder / "small.yaml").write_text(SMALL)
    for seed, name in enumerate(("clean", "other", "third")):
        save_encoder(build_encoder("convnet-xs", seed=seed), folder / name)
    made = run(
        "keygen", "--encoder", folder / "clean", "--out", folder / "owner.key", *told(folder)
    )
    assert made.code == 0, made.err
    assert made.json["sub_keys"] == 3
    return folder


def told(at: Path) -> list[object]:
    return ["--config", at / "small.yaml", "--json"]


def verify(at: Path, *words: object, key: str = "owner.key") -> Ran:
    return run("verify", "--key", at / key, "--suspect", at / "other", "--null", at / "clean",
               *words, *told(at))  # fmt: skip


def test_a_beacon_is_mixed_into_a_published_key_once(at, tmp_path):
    final = tmp_path / "final.key"
    mixed = run(
        "keygen", "--from", at / "owner.key", "--beacon", "round 7", "--out", final, "--json"
    )
    assert mixed.code == 0
    before, after = load_key(at / "owner.key"), load_key(final)
    assert mixed.json["commitment"] == before.commitment == after.commitment
    assert mixed.json["beacon"] == after.beacon == "round 7"
    assert final.stat().st_mode & 0o777 == 0o600
    assert [sub.seed for sub in before.sub_keys] != [sub.seed for sub in after.sub_keys]
    again = run("keygen", "--from", final, "--beacon", "round 8", "--out", tmp_path / "x.key")
    assert again.code == 2
    assert "has a beacon already" in again.err
    alone = run("keygen", "--beacon", "round 7", "--out", tmp_path / "x.key")
    assert alone.code == 2
    assert "give both --from" in alone.err


def test_of_spare_sub_keys_the_chosen_are_used_and_chosen_anew_once_a_beacon_is_in(at, tmp_path):
    words = ("--encoder", at / "clean", "--sub-keys", 1, "--spare", 2, *told(at))
    made = run("keygen", "--out", tmp_path / "spare.key", *words)
    assert made.code == 0, made.err
    assert (made.json["sub_keys"], len(made.json["chosen"])) == (3, 1)
    before = load_key(tmp_path / "spare.key")
    assert list(before.chosen or ()) == made.json["chosen"]
    judged = verify(at, key=tmp_path / "spare.key").json
    assert [sub["index"] for sub in judged["sub_keys"]] == made.json["chosen"]
    assert "times 3 ways" in judged["test"]

    mix = ("keygen", "--from", tmp_path / "spare.key", "--beacon", "round 7")
    alone = run(*mix, "--out", tmp_path / "final.key")
    assert alone.code == 2
    assert "--encoder SPEC" in alone.err
    mixed = run(*mix, "--out", tmp_path / "final.key", *words)
    assert mixed.code == 0, mixed.err
    after = load_key(tmp_path / "final.key")
    assert (after.commitment, len(after.sub_keys)) == (before.commitment, 1)


def test_licensees_with_spare_sub_keys_have_a_choice_of_their_own(at, tmp_path):
    words = ("--encoder", at / "clean", "--sub-keys", 1, "--spare", 2, *told(at))
    assert run("keygen", "--count", 3, "--out", tmp_path / "keys", *words).code == 0
    keys = [load_key(tmp_path / "keys" / f"licensee-{number}.key") for number in range(3)]
    assert [len(key.sub_keys) for key in keys] == [1, 1, 1]


def test_licensees_get_different_keys_over_the_same_groups(at, tmp_path):
    made = run(
        "keygen", "--encoder", at / "clean", "--count", 3, "--out", tmp_path / "keys", *told(at)
    )
    assert made.code == 0, made.err
    keys = [load_key(Path(path)) for path in made.json["keys"]]
    assert len({key.commitment for key in keys}) == 3
    assert len({json.dumps(key.terms.statement) for key in keys}) == 1
    traced = run("trace", "--keys", tmp_path / "keys", "--suspect", at / "other", "--null",
                 at / "clean", *told(at))  # fmt: skip
    assert traced.code == {"traced": 0, "not_traced": 1, "inconclusive": 2}[traced.json["decision"]]
    assert set(traced.json["licensees"]) == {"licensee-0", "licensee-1", "licensee-2"}
    for told_of in traced.json["licensees"].values():
        assert told_of["adjusted_p_value"] >= told_of["p_value"]


def test_a_verdict_tells_all_four_tests_and_what_was_asked(at):
    ran = verify(at)
    verdict = ran.json
    assert [test["name"] for test in verdict["tests"]] == ["A1", "C", "A2", "B"]
    assert verdict["tests"][3]["smallest_p"] == 0.5
    assert f"the suspect will be sent {verdict['facts']['queries']:,} images" in ran.err
    assert verdict["facts"]["clean_encoder_committed"] == load_key(at / "owner.key").terms.encoder


def test_a_later_look_has_a_smaller_limit(at):
    limits = [verify(at, "--look", look).json["alpha"] for look in (1, 2)]
    assert limits[0] == pytest.approx(4 * limits[1])
    assert limits[0] < 0.01


def test_one_sub_key_is_enough_and_its_choice_is_paid_for(at):
    one = verify(at, "--sub-key", 1).json
    assert [sub["index"] for sub in one["sub_keys"]] == [1]
    sub = one["sub_keys"][0]
    assert one["tests"][0]["p_value"] == pytest.approx(min(1, 3 * sub["p_value"]))
    carriers = carried_p_value(np.array([sub["carriers"]]), count=190)
    assert one["p_value"] == pytest.approx(min(1, 3 * float(both(sub["p_value"], carriers))))
    missing = verify(at, "--sub-key", 3)
    assert missing.code == 2
    assert "sub-keys 0 to 2" in missing.err


def test_the_query_limit_is_kept_or_refused_before_anything_is_sent(at):
    few = verify(at, "--max-queries", 2100)
    assert few.json["facts"]["queries"] <= 2100, few.err
    none = verify(at, "--max-queries", 100)
    assert none.code == 2
    assert "needs at least" in none.err
    assert "asking" not in none.err


def test_labels_alone_give_a_verdict(at):
    verdict = verify(at, "--access", "labels").json
    assert verdict["facts"]["settings"]["access"] == "labels"
    assert 0 < verdict["p_value"] <= 1


def test_the_space_that_was_asked_for_is_in_the_verdict_and_a_wrong_one_is_refused(at):
    assert verify(at).json["facts"]["settings"]["read"]["space"] == "evened"
    plain = verify(at, "--space", "plain", "--natural-only").json
    assert "space" not in plain["facts"]["settings"]["read"]
    refused = verify(at, "--space", "sideways")
    assert (refused.code, refused.out) == (2, "")
    assert "evened" in refused.err
    assert "Traceback" not in refused.err


def test_the_centring_that_was_asked_for_is_sealed_and_a_wrong_one_is_refused(at, tmp_path):
    assert "centring" not in verify(at).json["facts"]["settings"]["read"]
    bundle = tmp_path / "bundle"
    fitted = verify(at, "--centring", "fitted", "--evidence", bundle)
    assert fitted.json["facts"]["settings"]["read"]["centring"] == "fitted"
    assert run("evidence", "check", bundle).code == 0
    page = Path(run("evidence", "report", bundle, "--json").json["out"])
    assert "explains the suspect" in page.read_text()
    refused = verify(at, "--centring", "sideways")
    assert (refused.code, refused.out) == (2, "")
    assert "fitted" in refused.err
    assert "Traceback" not in refused.err


def test_evidence_is_sealed_checked_shown_and_any_change_is_named(at, tmp_path):
    bundle = tmp_path / "bundle"
    sealed = verify(at, "--sub-key", 0, "--evidence", bundle)
    assert sealed.code in (0, 1, 2), sealed.err
    assert sealed.json["evidence"] == str(bundle)
    whole = run("evidence", "check", bundle, "--json")
    assert (whole.code, whole.json["problems"]) == (0, [])
    against = run("evidence", "check", bundle, "--images", "digits", "--limit", 400, "--suspect",
                  at / "other", "--json")  # fmt: skip
    assert against.code == 0, against.out + against.err
    shown = run("evidence", "report", bundle, "--json")
    page = Path(shown.json["out"])
    assert page.read_text().startswith("<!")
    assert "http:" not in page.read_text()
    assert "https:" not in page.read_text()
    refused = verify(at, "--evidence", bundle)
    assert refused.code == 2
    assert "is not empty" in refused.err
    victim = sorted(path for path in bundle.iterdir() if path.suffix == ".safetensors")[0]
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(bytes(data))
    broken = run("evidence", "check", bundle)
    assert broken.code == 2
    assert victim.name in broken.out


def test_nulls_are_made_and_a_folder_of_them_can_be_named(at, tmp_path):
    made = run("nulls", "--encoder", at / "clean", "--out", tmp_path / "nulls", *told(at))
    assert made.code == 0, made.err
    assert len(made.json["encoders"]) == 2
    ran = run("verify", "--key", at / "owner.key", "--suspect", at / "third", "--null",
              at / "clean", "--null", tmp_path / "nulls", *told(at))  # fmt: skip
    assert len(ran.json["facts"]["nulls"]) == 3
    measured = run("calibrate", "--key", at / "owner.key", "--null", at / "clean", "--null",
                   tmp_path / "nulls", "--out", tmp_path / "calibration", *told(at))  # fmt: skip
    assert measured.code == 0, measured.err
    assert (tmp_path / "calibration" / "result.json").is_file()
    beside = run(
        "calibrate", "--key", at / "owner.key", "--null", at / "clean", "--null", at / "other",
        "--innocent", tmp_path / "nulls", "--innocent", at / "third", "--natural-only",
        "--centring", "fitted", "--out", tmp_path / "natural", *told(at),
    )  # fmt: skip
    assert beside.code == 0, beside.err
    assert len(beside.json["facts"]["nulls"]) == 2
    assert sorted(beside.json["encoders"]) == ["null-00", "null-01", "third"]
    assert beside.json["naive"] == {}
    read = beside.json["facts"]["settings"]["read"]
    assert (read["natural_only"], read["centring"]) == (True, "fitted")


def test_calibration_without_a_suspect_says_what_to_add(at, tmp_path):
    alone = run("calibrate", "--key", at / "owner.key", "--null", at / "clean", "--out",
                tmp_path / "c", *told(at))  # fmt: skip
    assert alone.code == 2
    assert "at least one innocent suspect" in alone.err
    twice = run(
        "calibrate", "--key", at / "owner.key", "--null", at / "clean", "--innocent", at / "other",
        "--innocent", at / "other", "--out", tmp_path / "c", *told(at),
    )  # fmt: skip
    assert twice.code == 2
    assert "named twice" in twice.err
