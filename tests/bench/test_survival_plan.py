"""Settings of the survival benchmark and the cells that follow from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from small_survival import CLEAN_FIT, FIT, MOVE, NONE, SMALL, config

from ssl_wm.bench.survival import SurvivalBench
from ssl_wm.bench.survival_plan import expand, load_survival_config, pools_of
from ssl_wm.bench.survival_thieves import Thief
from ssl_wm.errors import ConfigError

SIZES = {"same": 1000, "half": 500, "signs": 300}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"embeders": {}}, "did you mean 'embedders'"),
        ({"clean": {}}, "exactly one of pretrain"),
        ({"clean": {**CLEAN_FIT, "encoder": "c"}}, "exactly one of pretrain"),
        ({"embedders": {}}, "'embedders'"),
        ({"embedders": {"clean": NONE}}, "the control"),
        ({"embedders": {"a/b": NONE}}, "letters, digits"),
        ({"embedders": {"m": {"watermark": {"method": "move-targt"}}}}, "did you mean 'move-t"),
        ({"embedders": {"m": {"watermark": {"options": {"hiden": 1}}}}}, "did you mean 'hidden'"),
        ({"embedders": {"m": {**MOVE, "thefts": "ones"}}}, "did you mean 'one'"),
        ({"embedders": {"m": {**MOVE, "runs": 2}}}, "raise runs"),
        ({"embedders": {"m": {**MOVE, "epochs": 2}}}, "epochs"),
        ({"thefts": {"one": [{"attacks": ["mze"]}]}}, "did you mean 'mse'"),
        ({"thefts": {"one": [{"budgets": [0]}]}}, "budgets"),
        ({"thefts": {"one": [{"atacks": ["mse"]}]}}, "atacks"),
        ({"bars": {"copies": [{"name": "x", "p": 2}]}}, "bars.copies"),
        ({"verify": {"access": "labels"}}, "judged by embeddings"),
        ({"runs": 0}, "'runs'"),
        ({"images": {}}, "--images FOLDER"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_in_one_line(changes, says, tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    with pytest.raises(ConfigError) as caught:
        load_survival_config(path, {})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_architecture_or_too_few_groups_end_the_run_before_anything(world, tmp_path):
    images = world.images(groups=4, train=8, test=8, side=16)
    for changes, says in (
        ({"thefts": {"one": [{"archs": ["convnet-q"]}]}}, "convnet-q"),
        ({"clean": {"pretrain": {"arch": "convnet-q"}}}, "convnet-q"),
        ({"key": {"groups": "labels", "sub_keys": 2}}, "there are 4"),
    ):
        with pytest.raises(ConfigError, match=says):
            SurvivalBench(config(**changes), images=images, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_grid_is_all_combinations_and_what_two_grids_share_is_stolen_once():
    grids = [
        {"attacks": ["mse", "cosine"], "budgets": [100, 400]},
        {"attacks": ["mse"], "budgets": [100], "archs": ["convnet-xs", "cnn9"]},
        {"starts": ["own"], "pools": ["signs", "half"], "budgets": [400]},
    ]
    found = config(thefts={"one": grids}).thieves("one", sizes=SIZES)
    assert found == [
        Thief("mse", "convnet-xs", False, 100, "same"),
        Thief("mse", "convnet-xs", False, 400, "same"),
        Thief("cosine", "convnet-xs", False, 100, "same"),
        Thief("cosine", "convnet-xs", False, 400, "same"),
        Thief("mse", "cnn9", False, 100, "same"),
        Thief("cosine", "own", True, 300, "signs"),  # the pool holds no more
        Thief("cosine", "own", True, 400, "half"),
    ]
    assert len({thief.name for thief in found}) == len(found)
    assert [thief.kind for thief in found[-2:]] == ["other", "in-task"]


def test_no_budget_is_the_whole_pool_and_all_attacks_is_every_one():
    whole = config(thefts={"one": [{"pools": ["same", "half"]}]})
    assert [thief.budget for thief in whole.thieves("one", sizes=SIZES)] == [1000, 500]
    assert len(config(thefts={"one": [{"attacks": "all"}]}).thieves("one")) > 10


def test_a_thief_with_his_own_encoder_starts_from_it_and_others_from_fresh_weights():
    base = {**SMALL["steal"], "held_out": 0.1}
    whole = config(steal=base, thefts={"one": [{"starts": ["own"], "archs": ["cnn9"]}]})
    fresh, warm = (whole.theft(thief, run=0) for thief in whole.thieves("one", sizes=SIZES))
    assert (fresh.arch, fresh.start) == ("cnn9", None)
    assert warm.start == "own"
    assert (fresh.held_out, warm.held_out, warm.fit.epochs) == (0.1, 0.1, 1)


def test_thieves_without_a_control_do_not_steal_the_clean_encoder():
    grids = [{"attacks": ["cosine"]}, {"attacks": ["mse", "cosine", "rda"], "control": False}]
    whole = config(thefts={"one": grids})
    stolen = [
        (cell.embedder, cell.thief.attack)
        for cell in expand(whole, sizes=SIZES)
        if cell.thief is not None
    ]
    assert stolen == [("clean", "cosine"), ("move", "cosine"), ("move", "mse"), ("move", "rda")]


def test_cells_are_run_by_run_with_the_control_just_before_each_copy():
    embedders = {
        "none": NONE, "move": {**MOVE, "thefts": "two"}, "peer": {**MOVE, "runs": 1}
    }  # fmt: skip
    whole = config(
        runs=2, embedders=embedders, thefts={"one": [{}], "two": [{"attacks": ["cosine", "mse"]}]}
    )
    told = [
        (cell.run, cell.embedder, cell.thief and cell.thief.attack)
        for cell in expand(whole, sizes=SIZES)
    ]
    run = [
        ("clean", None), ("none", None), ("move", None), ("clean", "cosine"), ("move", "cosine"),
        ("clean", "mse"), ("move", "mse"),
    ]  # fmt: skip
    first = [*run, ("peer", None), ("peer", "cosine")]
    assert told == [*((0, *each) for each in first), *((1, *each) for each in run)]
    folders = {cell.folder(Path("out")) for cell in expand(whole, sizes=SIZES)}
    assert len(folders) == len(told)
    assert Path("out/run-1/clean") in folders
    assert Path("out/run-0/move/victim") in folders
    assert Path("out/run-0/move/thefts/mse_1000_convnet-xs_same") in folders


def test_thieves_of_one_run_draw_alike_and_runs_draw_differently():
    whole = config(runs=2, thefts={"one": [{"attacks": ["cosine", "mse"]}]})
    thieves = whole.thieves("one", sizes=SIZES)
    seeds = [{whole.theft(thief, run=run).seed for thief in thieves} for run in (0, 1)]
    assert len(seeds[0]) == len(seeds[1]) == 1
    assert seeds[0] != seeds[1]


def test_pools_are_those_of_the_sets_that_are_used():
    sets = {"one": [{"pools": ["same", "signs"]}], "spare": [{"pools": ["far"]}]}
    assert pools_of(config(thefts=sets)) == ["same", "signs"]


def test_a_marked_encoder_is_compared_with_the_fine_tuning_that_is_as_long():
    long = {**FIT, "epochs": 3}
    embedders = {
        "none": NONE, "none-long": {"watermark": {"method": "none", "fit": long}},
        "long": {"watermark": {"fit": long}}, "other": {"watermark": {"fit": {"epochs": 9}}},
    }  # fmt: skip
    whole = config(embedders=embedders)
    assert [whole.reference(name) for name in embedders] == [None, None, "none-long", "none"]
    assert config(embedders={"move": MOVE}).reference("move") is None
