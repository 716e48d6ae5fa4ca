"""Queries: no image is asked twice, nothing foreign is reused, and the ledger is right."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from ssl_wm.data.image_set import ImageSet
from ssl_wm.data.views import ViewConfig
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import build_encoder, load_encoder
from ssl_wm.errors import ConfigError, DataError, EncoderError
from ssl_wm.extraction import queries
from ssl_wm.extraction.pool import Views
from ssl_wm.extraction.queries import Ledger, load_transfer_set, query, save_transfer_set

CALL = 8


@pytest.fixture(autouse=True)
def small_calls(monkeypatch):
    monkeypatch.setattr(queries, "CHUNK", CALL)


def pool_of(count: int = 30, *, seed: int = 0) -> ImageSet:
    """Images whose first pixel is their number."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=generator)
    pixels[:, 0, 0, 0] = torch.arange(count)
    return ImageSet("x", "train", pixels, torch.zeros(count, dtype=torch.int64), ("a",))


class Victim(nn.Module):
    """Answers with a linear map; notes which images came, and fails after ``patience`` calls."""

    def __init__(self, *, patience: int = 10**6, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.map = nn.Buffer(torch.randn(48, 7, generator=generator))
        self.patience, self.asked, self.calls = patience, [], 0

    def forward(self, images):
        if self.calls == self.patience:
            raise ConnectionError("the service is gone")
        self.calls += 1
        self.asked += (images[:, 0, 0, 0] * 255).round().long().tolist()
        return images.flatten(1) @ self.map


def chosen(count: int = 30, *, seed: int = 0, size: int = 21) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:size]


@pytest.mark.parametrize("kept", [False, True])
def test_each_image_is_sent_once_and_answered_in_order(kept, tmp_path):
    pool, indices, victim = pool_of(), chosen(), Victim()
    transfer = query(load_encoder(victim), pool, indices=indices, folder=tmp_path if kept else None)
    assert victim.asked == indices.tolist()
    assert torch.equal(transfer.indices, indices)
    expected = (pool.pixels[indices] / 255).flatten(1) @ victim.map
    torch.testing.assert_close(transfer.embeddings, expected)
    assert transfer.embeddings.dtype == torch.float32
    assert transfer.ledger == Ledger(unique=21, repeated=0)
    assert transfer.ledger.billed == 21
    assert transfer.pool == pool.fingerprint


@pytest.mark.parametrize("patience", [0, 1, 2])
def test_an_interrupted_theft_that_goes_on_asks_nothing_twice(patience, tmp_path):
    pool, indices = pool_of(), chosen()
    first, second = Victim(patience=patience), Victim()
    with pytest.raises(ConnectionError):
        query(load_encoder(first), pool, indices=indices, folder=tmp_path)
    resumed = query(load_encoder(second), pool, indices=indices, folder=tmp_path)
    assert first.asked + second.asked == indices.tolist()
    assert len(first.asked) == patience * CALL
    whole = query(load_encoder(Victim()), pool, indices=indices)
    assert torch.equal(resumed.embeddings, whole.embeddings)
    assert resumed.ledger == Ledger(unique=21, repeated=0)


def test_a_finished_theft_asks_nothing_at_all(tmp_path):
    pool, indices = pool_of(), chosen()
    first = query(load_encoder(Victim()), pool, indices=indices, folder=tmp_path)
    save_transfer_set(tmp_path, first)
    victim = Victim(patience=0)
    again = query(load_encoder(victim), pool, indices=indices, folder=tmp_path)
    assert victim.asked == []
    assert torch.equal(again.embeddings, first.embeddings)
    assert again.ledger == first.ledger


def test_repeated_images_are_billed_and_counted_apart():
    indices = torch.tensor([4, 1, 4, 4, 0])
    transfer = query(load_encoder(Victim()), pool_of(), indices=indices)
    assert transfer.ledger == Ledger(unique=3, repeated=2)
    assert transfer.ledger.billed == 5


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"indices": chosen(seed=1)}, "answers to other queries"),
        ({"indices": chosen(size=20)}, "answers to other queries"),
        ({"pool": pool_of(seed=1)}, "answers to other queries"),
        ({"victim": Victim(seed=1)}, "answers of another victim"),
    ],
    ids=["order", "number", "pool", "victim"],
)
def test_answers_to_something_else_are_never_reused(finished, change, says, tmp_path):
    asked = {"victim": Victim(patience=10 if finished else 1), "pool": pool_of()}
    asked |= {"indices": chosen()}

    def run(*, victim, pool, indices):
        return query(load_encoder(victim), pool, indices=indices, folder=tmp_path)

    if finished:
        save_transfer_set(tmp_path, run(**asked))
    else:
        with pytest.raises(ConnectionError):
            run(**asked)
    with pytest.raises(DataError, match=f"{says}.*--overwrite") as caught:
        run(**(asked | change))
    assert "\n" not in str(caught.value)


def test_a_function_can_be_the_victim(tmp_path):
    pool, indices = pool_of(), chosen()
    service = load_encoder(lambda images: images.flatten(1).numpy())
    transfer = query(service, pool, indices=indices, folder=tmp_path)
    assert transfer.embeddings.shape == (21, 48)
    again = query(service, pool, indices=indices, folder=tmp_path)
    assert torch.equal(again.embeddings, transfer.embeddings)


def test_a_transfer_set_comes_back_as_it_was_and_its_parts_go(tmp_path):
    pool, indices = pool_of(), torch.tensor([3, 3, 9, 0])
    transfer = query(load_encoder(Victim()), pool, indices=indices, folder=tmp_path)
    assert (tmp_path / "answers").is_dir()
    save_transfer_set(tmp_path, transfer)
    save_transfer_set(tmp_path, transfer)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ledger.json", "queries.json", "transfer.safetensors"
    ]  # fmt: skip
    loaded = load_transfer_set(tmp_path)
    assert torch.equal(loaded.indices, indices)
    assert torch.equal(loaded.embeddings, transfer.embeddings)
    assert (loaded.ledger, loaded.pool) == (transfer.ledger, transfer.pool)
    ledger = json.loads((tmp_path / "ledger.json").read_text())
    assert ledger["calls"] == {"unique": 3, "repeated": 1, "billed": 4}


def test_a_kill_between_the_two_files_of_a_transfer_set_is_mended(tmp_path, monkeypatch):
    pool, indices = pool_of(), chosen()
    transfer = query(load_encoder(Victim()), pool, indices=indices, folder=tmp_path)

    def killed(*_args: object) -> None:
        raise KeyboardInterrupt

    for name in ("write_json", "write_tensors"):
        with monkeypatch.context() as patch:
            patch.setattr(queries, name, killed)
            with pytest.raises(KeyboardInterrupt):
                save_transfer_set(tmp_path, transfer)
        victim = Victim(patience=0)
        again = query(load_encoder(victim), pool, indices=indices, folder=tmp_path)
        assert torch.equal(again.embeddings, transfer.embeddings)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("transfer.safetensors", b"cut"),
        ("ledger.json", b"{}"),
        ("ledger.json", b"[1]"),
        ("ledger.json", b'{"calls": {"unique": "many", "repeated": 0}, "pool": "x"}'),
        ("ledger.json", None),
        ("transfer.safetensors", None),
    ],
)
def test_a_damaged_transfer_set_is_told_in_one_line(name, content, tmp_path):
    save_transfer_set(tmp_path, query(load_encoder(Victim()), pool_of(), indices=chosen()))
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name.replace(".", r"\.")) as caught:
        load_transfer_set(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "foreign"])
def test_damaged_partial_answers_are_not_used(damage, tmp_path):
    pool, indices = pool_of(), chosen()
    with pytest.raises(ConnectionError):
        query(load_encoder(Victim(patience=2)), pool, indices=indices, folder=tmp_path)
    first, second = sorted((tmp_path / "answers").iterdir())
    if damage == "cut":
        first.write_bytes(first.read_bytes()[:-3])
    else:
        first.write_bytes(second.read_bytes())
    with pytest.raises(DataError, match=r"00000\.safetensors"):
        query(load_encoder(Victim()), pool, indices=indices, folder=tmp_path)


def test_an_answer_of_nan_or_of_another_width_stops_the_theft():
    calls = []

    def widens(images):
        calls.append(1)
        return images.flatten(1)[:, : 5 + len(calls)]

    with pytest.raises(EncoderError, match="6 numbers an image, and now 7"):
        query(load_encoder(widens), pool_of(), indices=chosen())
    with pytest.raises(EncoderError, match="not finite"):
        query(load_encoder(lambda x: x.flatten(1) / 0), pool_of(), indices=chosen())


def test_asking_leaves_the_victim_as_it_was():
    victim = build_encoder("convnet-xs").train()
    before = {name: value.clone() for name, value in victim.state_dict().items()}
    query(victim, pool_of(), indices=chosen())
    assert victim.training
    assert all(torch.equal(value, before[name]) for name, value in victim.state_dict().items())
    assert isinstance(victim, Encoder)


def test_repeats_go_out_pass_after_pass_and_their_mean_comes_back(tmp_path):
    pool, indices, calls = pool_of(), chosen(size=10), []

    def drifts(images):
        calls.append((images[:, 0, 0, 0] * 255).round().long().tolist())
        return images.flatten(1) + len(calls)

    transfer = query(load_encoder(drifts), pool, indices=indices, folder=tmp_path, repeats=4)
    assert [number for call in calls for number in call] == indices.tolist() * 4
    expected = torch.zeros(10, 48)
    places = indices.repeat(4).split(CALL)
    for number, part in enumerate(places, start=1):
        for index in part:
            row = (indices == index).nonzero().item()
            expected[row] += (pool.pixels[index].flatten() / 255 + number) / 4
    torch.testing.assert_close(transfer.embeddings, expected)
    assert transfer.ledger == Ledger(unique=10, repeated=30)
    with pytest.raises(DataError, match="other queries"):
        query(load_encoder(drifts), pool, indices=indices, folder=tmp_path, repeats=3)


@pytest.mark.parametrize("change", [{"seed": 1}, {"name": "b"}, {"count": 3}, {"unit": True}])
def test_views_of_other_settings_are_other_queries(change, tmp_path):
    pool, indices = pool_of(), chosen(size=10)
    settings = {"config": ViewConfig(), "seed": 0, "name": "a", "count": 2}
    victim = load_encoder(Victim())
    one = query(victim, pool, indices=indices, folder=tmp_path, views=Views(**settings))
    assert one.ledger == Ledger(unique=20)
    again = query(victim, pool, indices=indices, views=Views(**settings))
    assert torch.equal(one.embeddings, again.embeddings)
    other = Views(**(settings | change))
    assert not torch.equal(
        query(victim, pool, indices=indices, views=other).embeddings, one.embeddings
    )
    with pytest.raises(DataError, match="other queries"):
        query(victim, pool, indices=indices, folder=tmp_path, views=other)


def test_nothing_to_send_is_told():
    with pytest.raises(DataError, match="no image"):
        query(load_encoder(Victim()), pool_of(), indices=torch.empty(0, dtype=torch.int64))


def test_repeats_are_refused_where_a_remote_victim_would_answer_them_from_its_cache():
    victim = build_encoder("convnet-xs", seed=1)
    victim.made["reuse"] = True
    with pytest.raises(ConfigError, match="reuse=no"):
        query(victim, pool_of(8), indices=torch.arange(8), repeats=2)
    victim.made["reuse"] = False
    assert query(victim, pool_of(8), indices=torch.arange(8), repeats=2).ledger.billed == 16
