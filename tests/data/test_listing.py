from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_wm.data.listing import Listing, balanced, hold_out, list_folder
from ssl_wm.errors import DataError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def listing_of(labels: list[int]) -> Listing:
    names = tuple(f"c{label}/{index}" for index, label in enumerate(labels))
    items = tuple(map(Path, names))
    classes = tuple(map(str, range(max(labels) + 1)))
    return Listing(items, names, tuple(labels), classes, is_files=True)


def test_a_flat_folder_lists_sorted_classes_nested_images_and_what_it_leaves_out(tmp_path):
    touch(
        tmp_path,
        *("dog/b.PNG", "dog/a.jpg", "cat/deep/er/x.webp", "cat/labels.csv"),
        *("README.md", "loose.png", ".hidden/x.png", "cat/.DS_Store"),
    )
    train, test = list_folder(tmp_path)
    assert test is None
    assert train.class_names == ("cat", "dog")
    assert train.names == ("cat/deep/er/x.webp", "dog/a.jpg", "dog/b.PNG")
    assert train.labels == (0, 1, 1)
    assert train.items[0] == tmp_path / "cat/deep/er/x.webp"
    assert train.ignored == ("README.md", "loose.png", "cat/labels.csv")


@pytest.mark.parametrize("half", ["test", "val"])
def test_halves_are_found_and_names_tell_them_apart(half, tmp_path):
    touch(tmp_path, "train/a/1.png", "train/b/1.png", f"{half}/a/1.png", f"{half}/b/2.png")
    train, test = list_folder(tmp_path)
    assert train.names == ("train/a/1.png", "train/b/1.png")
    assert test.names == (f"{half}/a/1.png", f"{half}/b/2.png")
    assert train.class_names == test.class_names == ("a", "b")


def test_test_is_preferred_to_val(tmp_path):
    touch(tmp_path, *(f"{half}/a/1.png" for half in ("train", "test", "val")))
    assert list_folder(tmp_path)[1].names == ("test/a/1.png",)


def test_classes_that_are_called_train_and_test_stay_classes(tmp_path):
    touch(tmp_path, "train/1.png", "test/1.png", "bus/1.png")
    train, test = list_folder(tmp_path)
    assert train.class_names == ("bus", "test", "train")
    assert test is None


BAD_LAYOUTS = {
    "a file": (["x.png"], "x.png", "is a file; name the folder"),
    "missing": ([], "nowhere", "does not exist; give a folder, torchvision/<Dataset> or digits"),
    "images directly": (["1.png", "2.png"], "", "holds images directly and has no class folders"),
    "empty": ([".keep"], "", "is empty and has no class folders"),
    "empty class": (["a/1.png", "b/notes.txt"], "", "b holds no image (.jpg, .jpeg"),
    "train only": (["train/a/1.png"], "", "has train/ but not both train/ and test/"),
    "test only": (["test/a/1.png"], "", "has test/ but not both train/ and test/"),
    "other classes": (
        ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"],
        "",
        "must hold the same classes; only in train/: b; only in test/: c",
    ),
    "many other classes": (
        ["train/a/1.png", "test/a/1.png", *(f"test/{c}/1.png" for c in "bcdef")],
        "",
        "only in train/: none; only in test/: b, c, d and 2 more",
    ),
}


@pytest.mark.parametrize("case", BAD_LAYOUTS)
def test_a_bad_layout_gives_one_line_that_names_the_folder_and_the_fault(case, tmp_path):
    files, spec, says = BAD_LAYOUTS[case]
    touch(tmp_path, *files)
    with pytest.raises(DataError) as caught:
        list_folder(tmp_path / spec)
    message = str(caught.value)
    assert says in message
    assert str(tmp_path) in message
    assert "\n" not in message


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid"), reason="needs POSIX names")
def test_names_that_are_not_utf8_still_give_printable_ids(tmp_path):
    (tmp_path / "a").mkdir()
    try:
        (tmp_path / "a" / os.fsdecode(b"caf\xe9.png")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert list_folder(tmp_path)[0].names == ("a/caf\\xe9.png",)


labels_lists = st.lists(st.integers(0, 4), min_size=1, max_size=60)


@given(labels_lists.filter(lambda labels: max(Counter(labels).values()) > 1), st.randoms())
def test_the_held_out_quarter_is_balanced_and_blind_to_the_order_of_listing(labels, random):
    listing = listing_of(labels)
    train, test = hold_out(listing, spec="x")
    assert sorted(train.names + test.names) == sorted(listing.names)
    sizes, held = Counter(listing.labels), Counter(test.labels)
    for label, n in sizes.items():
        assert held[label] == (0 if n == 1 else max(1, int(n / 4 + 0.5)))
    order = list(range(len(listing)))
    random.shuffle(order)
    shuffled = Listing(
        items=tuple(listing.items[i] for i in order),
        names=tuple(listing.names[i] for i in order),
        labels=tuple(listing.labels[i] for i in order),
        class_names=listing.class_names,
        is_files=True,
    )
    assert set(hold_out(shuffled, spec="x")[1].names) == set(test.names)


def test_the_held_out_quarter_of_a_class_ignores_the_other_classes():
    both = hold_out(listing_of([0] * 20 + [1] * 9), spec="x")[1]
    alone = hold_out(listing_of([0] * 20), spec="x")[1]
    assert [name for name in both.names if name.startswith("c0")] == list(alone.names)


def test_the_held_out_quarter_never_changes_between_versions():
    held_out = hold_out(listing_of([0] * 12), spec="x")[1]
    assert held_out.names == ("c0/1", "c0/4", "c0/10")


def test_classes_of_one_image_cannot_be_split():
    with pytest.raises(DataError, match=r"^folder has one image per class"):
        hold_out(listing_of([0, 1, 2]), spec="folder")


@given(labels_lists, st.integers(1, 70))
def test_limit_takes_from_the_classes_in_turn_and_grows_without_dropping(labels, limit):
    listing = listing_of(labels)
    few, more = balanced(listing, limit), balanced(listing, limit + 1)
    assert len(few) == min(limit, len(listing))
    assert set(few.names) <= set(more.names)
    assert list(few.names) == [name for name in listing.names if name in set(few.names)]
    sizes, taken = Counter(listing.labels), Counter(few.labels)
    unfinished = [taken[label] for label in sizes if taken[label] < sizes[label]]
    if unfinished:
        assert max(taken.values()) - min(unfinished) <= 1
