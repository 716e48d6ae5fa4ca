"""The client against a service on loopback: order, checks, retries, what is kept, counts."""

from __future__ import annotations

import base64
import json
import logging
import sqlite3
import subprocess
import sys
import threading

import httpx
import pytest
import torch

from ssl_wm.encoders.asking.adapters import rows_by_index
from ssl_wm.encoders.asking.asker import eight_bits, png_bytes
from ssl_wm.encoders.asking.calls import Caller, Patience, retry_after
from ssl_wm.encoders.asking.kept import FILE, KeptAnswers
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import load_encoder
from ssl_wm.encoders.properties import width_of
from ssl_wm.encoders.remote import (
    Adapter,
    Answer,
    OpenAIAdapter,
    RemoteConfig,
    RemoteEncoder,
    RemoteError,
    Request,
)
from ssl_wm.errors import ConfigError, EncoderError, OutputError

KEY = "alice-key"


@pytest.fixture(scope="module")
def encoder(world):
    return world.convnet()


@pytest.fixture(scope="module")
def api(web, encoder):
    with web.running(encoder) as running:
        yield running


def pixels(count: int, *, seed: int = 0, side: int = 8) -> torch.Tensor:
    stream = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=stream, dtype=torch.uint8)


@pytest.fixture
def remote(api):
    made = []

    def make(url=None, *, adapter=None, key=KEY, **settings) -> RemoteEncoder:
        made.append(
            RemoteEncoder(url or api.url, key=key, adapter=adapter, config=RemoteConfig(**settings))
        )
        return made[-1]

    yield make
    for each in made:
        each.close()


def truth(api, images):
    with torch.inference_mode():
        return api.service.encoder(images)


# --- answers ------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "concurrency"), [(1, 1), (7, 4), (64, 2)])
def test_answers_are_the_local_ones_bit_for_bit_and_in_order(api, remote, batch, concurrency):
    images = pixels(50)
    one = remote(batch=batch, concurrency=concurrency)
    assert torch.equal(embed(one, images, batch_size=32), truth(api, images))
    assert one.counts.unique == one.counts.billed == 50
    assert one.counts.calls == sum(-(-n // batch) for n in (32, 18))


def test_float_images_are_sent_as_the_eight_bits_they_came_from(api, remote):
    images = pixels(5)
    assert torch.equal(remote()(images.float() / 255), truth(api, images))
    assert eight_bits(torch.tensor([-0.2, 0.5, 1.7])).tolist() == [0, 128, 255]


def test_a_spec_gives_the_encoder_and_its_options_stay_here(api, monkeypatch, tmp_path):
    monkeypatch.setenv("MY_KEY", KEY)
    text = f"{api.url}#cache={tmp_path}/a&batch=3&key_env=MY_KEY&width=8"
    one = load_encoder(text, width=8)
    assert isinstance(one, Encoder)
    assert not one.training
    assert one(pixels(4)).shape == (4, 8)
    assert (tmp_path / "a" / FILE).is_file()
    one.close()
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    other = load_encoder(f"{api.url}#key_file={file}")
    assert width_of(other) == 8
    other.close()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("http://host#bach=3", "did you mean 'batch'"),
        ("http://host#batch=0", "option 'batch'"),
        ("http://host#adapter=openai", "needs the model's name"),
        ("http://host#key_file=no/such", "cannot read the key file"),
        ("http://u:p@host", "no user or password"),
        ("http://", "http://HOST:PORT"),
        ("http://host:99999", "http://HOST:PORT"),
    ],
)
def test_an_unusable_address_is_explained_and_nothing_is_sent(text, says):
    with pytest.raises((EncoderError, ConfigError), match=says) as caught:
        load_encoder(text)
    assert "\n" not in str(caught.value)
    assert ":p@" not in str(caught.value)


def test_without_httpx_one_line_names_the_extra():
    program = """
import sys
sys.modules["httpx"] = None
from ssl_wm.encoders.load import load_encoder
from ssl_wm.errors import EncoderError
try:
    load_encoder("http://host")
except EncoderError as error:
    sys.exit(str(error))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "pip install 'ssl-wm[remote]'" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_the_key_is_in_no_text_that_can_be_read(api, remote, caplog):
    one = remote()
    with caplog.at_level(logging.DEBUG):
        one(pixels(2))
    wrong = remote(key="not-the-key")
    with pytest.raises(RemoteError, match="refuses the key") as caught:
        wrong(pixels(1))
    said = f"{one!r}{one.made}{one.arch}{one.counts}{vars(one)}{vars(one._asker)}{caught.value}"
    said += caplog.text
    assert KEY not in said
    assert "not-the-key" not in said


# --- checks of what comes -----------------------------------------------------------------


class Fake:
    """A service whose answers the test chooses: ``answer(body) -> (status, json, headers)``."""

    def __init__(self, answer) -> None:
        self.answer, self.bodies, self.heads = answer, [], []

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            return await send({"type": "lifespan.shutdown.complete"})
        data, more = b"", True
        while more:
            message = await receive()
            data, more = data + message.get("body", b""), message.get("more_body", False)
        self.bodies.append(json.loads(data))
        self.heads.append(dict(scope["headers"]))
        status, value, heads = self.answer(self.bodies[-1])
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        listed = [(k.encode(), v.encode()) for k, v in heads.items()]
        await send({"type": "http.response.start", "status": status, "headers": listed})
        return await send({"type": "http.response.body", "body": text})


@pytest.fixture
def fake(web, encoder):
    """Return a maker of fake services: ``fake(answer)`` -> (address, the fake)."""
    opened = []

    def make(answer):
        one = Fake(answer)
        context = web.running(encoder, wrap=lambda app: one)
        opened.append((context, context.__enter__()))
        return opened[-1][1].url, one

    yield make
    for context, api in opened:
        context.__exit__(None, None, None)
        api.service.batcher.close()
        api.service.pool.shutdown()


def rows(values, **more):
    data = [{"index": i, "embedding": v} for i, v in enumerate(values)]
    return 200, {"data": data, "model": "m", **more}, {}


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (rows([[1.0, 2.0]]), "1 embeddings for 2 images"),
        (rows([[1.0, 2.0], [1.0]]), "widths"),
        (rows([[1.0, 2.0], [1.0, float("nan")]]), "NaN or infinity"),
        (rows([[1.0], [2.0]]), "where 2 were expected"),
        (rows([[1.0, 2.0], [1.0, "x"]]), "cannot be read"),
        (rows([[1.0, 2.0], "AAA"]), "neither a list of numbers nor base64"),
        ((200, {"rows": []}, {}), "cannot be read"),
        ((200, [1], {}), "cannot be read"),
        ((200, b"<html>", {}), "not JSON"),
        ((404, {"detail": "no"}, {}), "status 404"),
        ((307, b"", {"location": "http://elsewhere/"}), "status 307"),
        ((422, {"error": {"message": "a\nb"}}, {}), "status 422: a b"),
        ((413, {}, {}), "refuses the request's size"),
        (
            (200, {"data": [{"index": 0, "embedding": [1, 2]}] * 2, "model": "m"}, {}),
            "some images twice",
        ),
    ],
)
def test_a_wrong_answer_is_told_and_never_kept(fake, remote, tmp_path, answer, says):
    url, one = fake(lambda _: answer)
    client = remote(url, cache=tmp_path, width=2)
    with pytest.raises(RemoteError, match=says):
        client(pixels(2))
    assert client.counts.unique == 0
    assert len(one.bodies) == (2 if answer[0] == 413 else 1)  # nothing final is tried again


def test_a_service_that_changes_its_model_midway_is_not_mixed(fake, remote, tmp_path):
    names = iter(["one", "one", "two"])
    url, _ = fake(lambda body: rows([[1.0]] * len(body["images"]), model=next(names)))
    client = remote(url, cache=tmp_path, batch=1, concurrency=1)
    client(pixels(2))
    with pytest.raises(RemoteError, match="'two' and did with 'one' before"):
        client(pixels(1, seed=1))
    client.close()
    names = iter(["two"])
    with pytest.raises(RemoteError, match="'two' and did with 'one'"):
        remote(url, cache=tmp_path)(pixels(1, seed=2))


def test_a_canary_tells_that_the_same_image_is_answered_otherwise(fake, remote, caplog):
    calls = []

    def answer(body):
        calls.append(len(body["images"]))
        return rows([[float(len(calls) > 3)]] * len(body["images"]))

    url, one = fake(answer)
    client = remote(url, batch=2, concurrency=1, canary=2)
    for seed in range(3):
        client(pixels(2, seed=seed))
    assert calls == [2, 1, 2, 1, 2, 1]
    assert client.counts.drifts == 2
    assert "changed by up to 1" in caplog.text
    assert (client.counts.unique, client.counts.repeated, client.counts.billed) == (6, 3, 9)
    names = [heads[b"idempotency-key"] for heads in one.heads]
    assert len(set(names)) == 6  # a canary must not be answered from the service's memory


def test_another_kind_of_service_needs_one_small_class(fake, remote):
    class Mine(Adapter):
        path = "/embed"

        def build_request(self, images):
            return Request({"pictures": [base64.b64encode(i).decode() for i in images]})

        def parse_response(self, body, *, count):
            return Answer(torch.tensor(body["vectors"]))

    url, one = fake(lambda body: (200, {"vectors": [[1.0, 2.0] for _ in body["pictures"]]}, {}))
    assert remote(url, adapter=Mine())(pixels(3)).tolist() == [[1.0, 2.0]] * 3
    assert base64.b64decode(one.bodies[0]["pictures"][0]) == png_bytes(pixels(3)[0])


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_an_openai_style_service_is_asked_and_read_by_index(fake, remote, encoding):
    def answer(body):
        numbers = torch.arange(2.0 * len(body["input"])).view(-1, 2)
        texts = [base64.b64encode(r.numpy().tobytes()).decode() for r in numbers]
        values = texts if body["encoding_format"] == "base64" else numbers.tolist()
        data = [{"index": i, "embedding": v} for i, v in enumerate(values)]
        return 200, {"data": data[::-1]}, {}

    url, one = fake(answer)
    client = remote(url, adapter=OpenAIAdapter("clip", encoding_format=encoding))
    assert client(pixels(3)).tolist() == [[0, 1], [2, 3], [4, 5]]
    assert one.bodies[0]["model"] == "clip"
    assert one.bodies[0]["input"][0].startswith("data:image/png;base64,")
    with pytest.raises(RemoteError, match="embeddings for 3 images"):
        rows_by_index([], count=3)


# --- sizes, retries -----------------------------------------------------------------------


def test_a_service_that_takes_fewer_is_asked_for_fewer_and_it_is_remembered(fake, remote, tmp_path):
    def answer(body):
        count = len(body["images"])
        return rows([[float(len(i))] for i in body["images"]]) if count <= 5 else (413, {}, {})

    url, one = fake(answer)
    client = remote(url, cache=tmp_path, batch=32, concurrency=3)
    images = pixels(40)
    expected = [[float(len(base64.b64encode(png_bytes(image))))] for image in images]
    assert client(images).tolist() == expected
    assert [len(b["images"]) for b in one.bodies][:4] == [32, 16, 8, 4]
    assert all(len(b["images"]) == 4 for b in one.bodies[4:])
    client.close()
    remote(url, cache=tmp_path, batch=32)(pixels(8, seed=1))
    assert [len(b["images"]) for b in one.bodies[-2:]] == [4, 4]


def test_pauses_grow_without_bound_but_the_longest_and_are_spread(remote):
    patience = Patience(first=0.5, longest=8.0)
    assert [patience.pause(n, asked=None, chance=1.0) for n in (1, 2, 3, 9)] == [1, 2, 4, 8]
    assert patience.pause(3, asked=None, chance=0.0) == 0
    assert patience.pause(1, asked=7.0, chance=0.0) == 7
    assert 7 < patience.pause(1, asked=7.0, chance=0.9) < 9


def test_retry_after_is_read_as_a_number_or_a_date():
    assert retry_after({"retry-after": "2"}) == 2
    assert retry_after({"retry-after": "9", "retry-after-ms": "50"}) == 0.05
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT"}) > 1e9
    for text in ("soon", "-1", "nan", "inf", ""):
        assert retry_after({"retry-after": text}) is None


def caller(url: str, slept: list[float], **settings) -> Caller:
    return Caller(
        url=url, key=None, patience=Patience(**settings), connections=2,
        too_large=lambda status, _: status == 413, sleep=slept.append, chance=lambda: 1.0,
    )  # fmt: skip


def test_a_call_is_tried_again_as_told_and_gives_up_in_the_end(fake):
    codes = iter([(503, {}, {"retry-after": "3"}), (500, {}, {}), (429, {}, {}), rows([[1.0]])])
    url, _ = fake(lambda _: next(codes))
    slept, failed = [], []
    one = caller(url, slept, first=0.5)
    body = one.post({"images": []}, headers={}, on_failure=lambda: failed.append(1))
    assert body["model"] == "m"
    assert len(failed) == 3
    assert slept[0] == pytest.approx(3.8)
    assert [pause for pause in slept if pause in (2.0, 4.0)] == [2.0, 4.0]
    one.close()
    url, fakes = fake(lambda _: (500, {}, {}))
    two = caller(url, slept, tries=3)
    with pytest.raises(RemoteError, match=r"in 3 tries \(last: status 500\)"):
        two.post({}, headers={}, on_failure=lambda: None)
    assert len(fakes.bodies) == 3
    two.close()


def test_a_wait_beyond_all_patience_is_an_error_that_tells_how_long(fake):
    url, _ = fake(lambda _: (429, {}, {"retry-after": "86400"}))
    one = caller(url, [])
    with pytest.raises(RemoteError, match="asks to wait 86400 s"):
        one.post({}, headers={}, on_failure=lambda: None)
    one.close()


def test_an_answer_without_end_is_cut(fake, monkeypatch):
    monkeypatch.setattr("ssl_wm.encoders.asking.calls.MOST", 1000)
    url, _ = fake(lambda _: (200, b"x" * 5000, {}))
    one = caller(url, [])
    with pytest.raises(RemoteError, match="more than 1000 bytes"):
        one.post({}, headers={}, on_failure=lambda: None)
    one.close()


def test_nobody_listening_is_told_after_the_tries(remote):
    client = remote("http://127.0.0.1:9", tries=2)
    with pytest.raises(RemoteError, match="ConnectError"):
        client(pixels(1))


def test_a_key_sent_in_the_open_is_warned_of(caplog):
    RemoteEncoder("http://example.org", key="k").close()
    assert "without encryption" in caplog.text
    caplog.clear()
    RemoteEncoder("https://example.org", key="k").close()
    RemoteEncoder("http://127.0.0.1:1", key="k").close()
    assert not caplog.text


# --- what is kept -------------------------------------------------------------------------


def test_an_image_is_paid_for_once_over_calls_and_processes(api, remote, tmp_path):
    images = torch.cat([pixels(6), pixels(6)])
    one = remote(cache=tmp_path, batch=4)
    first = one(images)
    assert (one.counts.unique, one.counts.repeated, one.counts.kept) == (6, 0, 6)
    one.close()
    with httpx.Client(trust_env=False) as client:
        before = client.get(f"{api.url}/v1/usage", headers={"Authorization": f"Bearer {KEY}"})
    two = remote(cache=tmp_path)
    assert torch.equal(two(images), first)
    assert (two.counts.unique, two.counts.calls) == (6, 0)
    assert two.usage()["images"] == before.json()["images"]


def test_without_reuse_every_image_is_sent_every_time_and_counted(web, encoder, remote):
    with web.running(encoder, defence={"noise": 0.1}) as api:
        one = remote(api.url, reuse=False, batch=4)
        images = torch.cat([pixels(3)] * 2)
        first, second = one(images), one(images)
        assert not torch.equal(first, second)
        assert not torch.equal(first[:3], first[3:])
        assert (one.counts.unique, one.counts.repeated, one.counts.billed) == (3, 9, 12)
        assert one.usage()["images"] == 12


def test_answers_to_one_key_are_not_given_for_another(web, encoder, remote, tmp_path):
    with web.running(encoder, defence={"rotate": True}) as api:
        alice = remote(api.url, cache=tmp_path)(pixels(3))
        bob = remote(api.url, key="bob-key", cache=tmp_path)(pixels(3))
        assert not torch.allclose(alice, bob, atol=1e-4)


def test_a_damaged_row_is_asked_for_again_and_a_damaged_file_is_told(api, remote, tmp_path, caplog):
    one = remote(cache=tmp_path)
    first = one(pixels(4))
    one.close()
    base = sqlite3.connect(tmp_path / FILE)
    base.execute("UPDATE answers SET row = zeroblob(32) WHERE key = (SELECT max(key) FROM answers)")
    base.commit()
    base.close()
    two = remote(cache=tmp_path)
    assert torch.equal(two(pixels(4)), first)
    assert "1 kept answers" in caplog.text
    two.close()
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(b"x" * len(whole))
    with pytest.raises(RemoteError, match="damaged"):
        remote(cache=tmp_path)


def test_answers_are_kept_whole_or_not_at_all(tmp_path):
    one = KeptAnswers(tmp_path)
    one.write([b"a"], torch.ones(1, 3), notes={"model": "m"})

    class Stop(Exception):
        pass

    class Torn(dict):
        def items(self):
            raise Stop  # after the rows are in, before the end

    with pytest.raises(Stop):
        one.write([b"b", b"c"], torch.ones(2, 3), notes=Torn())
    assert set(one.read([b"a", b"b", b"c"])) == {b"a"}
    log = tmp_path / f"{FILE}-wal"
    copied = tmp_path / "copy"
    copied.mkdir()
    (copied / FILE).write_bytes((tmp_path / FILE).read_bytes())
    (copied / f"{FILE}-wal").write_bytes(log.read_bytes()[:-100])  # torn: the last write is lost
    two = KeptAnswers(copied)
    assert two.read([b"a"]) == {} or torch.equal(two.read([b"a"])[b"a"], torch.ones(3))
    two.write([b"a"], torch.ones(1, 3), notes={})
    one.close()
    two.close()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot keep answers"):
        KeptAnswers(tmp_path / "file")


def test_threads_may_share_one_client(api, remote):
    one = remote(batch=4)
    parts = [pixels(9, seed=seed) for seed in range(6)]
    found: dict[int, torch.Tensor] = {}

    def ask(number: int) -> None:
        found[number] = one(parts[number])

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    for number, images in enumerate(parts):
        assert torch.equal(found[number], truth(api, images))


def test_what_is_no_batch_of_images_is_refused_before_it_is_sent(remote):
    with pytest.raises(EncoderError, match=r"\(B, 3, H, W\)"):
        remote()(torch.zeros(3, 8, 8))
    with pytest.raises(EncoderError, match="no images"):
        remote()(torch.zeros(0, 3, 8, 8))
