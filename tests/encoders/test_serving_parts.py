"""The service's parts: accounts, buckets, batches, steady passes, replays, decoding."""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.load import load_encoder
from ssl_wm.encoders.serving.accounts import Account, Accounts, TokenBucket
from ssl_wm.encoders.serving.batching import Batcher
from ssl_wm.encoders.serving.decoding import decode_files, parse_json
from ssl_wm.encoders.serving.refusals import RefusedError
from ssl_wm.encoders.serving.replays import Replays
from ssl_wm.encoders.serving.service import usual_workers
from ssl_wm.encoders.serving.settings import AccountConfig, AccountsConfig, ServeConfig
from ssl_wm.encoders.serving.steady import SteadyEncoder, next_pass
from ssl_wm.errors import EncoderError

DIGEST = hashlib.sha256(b"key").hexdigest()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# --- accounts -----------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 10)), max_size=60))
def test_a_bucket_never_gives_more_than_its_rate_and_its_size(asks):
    clock = Clock()
    bucket = TokenBucket(rate=2.0, size=10, clock=clock)
    given_out = 0
    for pause, count in asks:
        clock.now += pause
        wait = bucket.take(count)
        given_out += 0 if wait else count
        assert given_out <= 10 + 2.0 * clock.now + 1e-6
        if wait:
            clock.now += wait + 1e-6
            assert bucket.take(count) == 0
            given_out += count


def account(**settings) -> tuple[Account, Clock, Clock]:
    clock, date = Clock(), Clock()
    made = Account(AccountConfig(name="a", sha256=DIGEST, **settings), clock=clock, date=date)
    return made, clock, date


def test_a_quota_is_billed_for_answers_alone_and_renewed_with_its_period():
    made, _, date = account(quota=10, period=100)
    made.reserve(6)
    made.release(6)
    made.reserve(6)
    with pytest.raises(RefusedError, match="4 images of this account's quota of 10") as caught:
        made.reserve(5)  # what is reserved counts
    assert (caught.value.status, caught.value.wait) == (429, 100)
    made.settle(6)
    assert (made.images, made.remaining) == (6, 4)
    date.now = 100.0
    made.reserve(10)
    made.settle(10)
    assert made.images == 16
    assert made.usage()["remaining"] == 0


def test_a_request_above_the_burst_is_told_to_shrink_and_one_too_soon_to_wait():
    made, clock, _ = account(images_per_second=4.0, burst=8)
    with pytest.raises(RefusedError) as caught:
        made.reserve(9)
    assert caught.value.status == 413
    made.reserve(8)
    with pytest.raises(RefusedError) as caught:
        made.reserve(2)
    assert (caught.value.status, caught.value.wait) == (429, 0.5)
    assert caught.value.headers()["Retry-After"] == "1"
    clock.now = 0.5
    made.reserve(2)
    made.release(2)  # an image that could not be read costs no tokens
    made.reserve(2)


def test_usage_outlives_a_restart():
    config = AccountsConfig(accounts=(AccountConfig(name="a", sha256=DIGEST, quota=5),))
    one = Accounts(config)
    one.find("key").reserve(3)
    one.find("key").settle(3)
    two = Accounts(config)
    two.restore(one.state())
    assert two.find("key").remaining == 2


def test_only_the_very_key_opens_an_account():
    known = Accounts(AccountsConfig(accounts=(AccountConfig(name="a", sha256=DIGEST),)))
    assert known.find("key").name == "a"
    for wrong in ("", "Key", "key ", "keykey", DIGEST, "k\u00e9y"):
        assert known.find(wrong) is None


def test_two_accounts_share_no_name_and_no_key():
    one = AccountConfig(name="a", sha256=DIGEST)
    for other in ({"name": "a", "sha256": "0" * 64}, {"name": "b", "sha256": DIGEST}):
        with pytest.raises(ValueError, match="two accounts have the same"):
            AccountsConfig(accounts=(one, AccountConfig(**other)))
    with pytest.raises(ValueError, match="name"):
        AccountConfig(name="../a", sha256=DIGEST)


# --- batches ------------------------------------------------------------------------------


def batcher(run, **settings) -> Batcher:
    whole = {"batch": 8, "wait_seconds": 0.05, "queue": 100, "queue_bytes": 10**6, **settings}
    return Batcher(run, **whole)


def images(count: int, *, side: int = 2, start: int = 0) -> list[torch.Tensor]:
    return [torch.full((3, side, side), start + i, dtype=torch.uint8) for i in range(count)]


def mean(batch: torch.Tensor) -> torch.Tensor:
    return batch.float().mean(dim=(2, 3))


def test_requests_share_passes_and_each_gets_its_own_rows_in_order():
    sizes: list[int] = []
    one = batcher(mean, on_batch=sizes.append)
    futures = [one.submit(images(3, start=10 * n)) for n in range(8)]
    for n, future in enumerate(futures):
        assert future.result(5)[:, 0].tolist() == [10 * n, 10 * n + 1, 10 * n + 2]
    one.close()
    assert sum(sizes) == 24
    assert max(sizes) == 8
    assert len(sizes) <= 5


def test_a_pass_holds_one_shape_and_no_shape_starves():
    shapes: list[tuple[int, ...]] = []

    def run(batch):
        shapes.append(tuple(batch.shape[1:]))
        return mean(batch)

    one = batcher(run)
    mixed = [each for pair in zip(images(6), images(6, side=4), strict=True) for each in pair]
    rows = one.submit(mixed).result(5)
    one.close()
    assert rows[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert set(shapes) == {(3, 2, 2), (3, 4, 4)}


def test_a_full_queue_refuses_and_tells_when_to_come_again():
    free = threading.Event()

    def run(batch):
        free.wait(10)
        return mean(batch)

    one = batcher(run, queue=10, batch=4)
    first = one.submit(images(4))
    while one.waiting:
        time.sleep(0.001)
    kept = one.submit(images(10))
    with pytest.raises(RefusedError) as caught:
        one.submit(images(1))
    assert caught.value.status == 503
    assert caught.value.wait > 0
    free.set()
    assert len(first.result(5)) == 4
    assert len(kept.result(5)) == 10
    big = batcher(mean, queue_bytes=100)
    with pytest.raises(RefusedError, match="too many images wait"):
        big.submit(images(1, side=8))
    big.close()
    one.close()


def test_closing_finishes_what_waits_and_takes_no_more():
    one = batcher(mean, wait_seconds=30.0)
    future = one.submit(images(3))
    one.close()
    assert len(future.result(0)) == 3
    with pytest.raises(RefusedError, match="stopping"):
        one.submit(images(1))


def test_an_encoder_that_fails_fails_its_requests_and_not_the_worker():
    def run(batch):
        if batch.shape[-1] == 4:
            raise RuntimeError("broken")
        return mean(batch)

    one = batcher(run)
    bad, good = one.submit(images(2, side=4)), one.submit(images(2))
    with pytest.raises(RuntimeError, match="broken"):
        bad.result(5)
    assert len(good.result(5)) == 2
    one.close()


def test_two_workers_run_passes_at_the_same_time_and_rows_keep_their_places():
    entered, both = threading.Semaphore(0), threading.Event()

    def run(batch):
        if not entered.acquire(blocking=False):  # the first pass waits here for the second
            entered.release()
            assert both.wait(10)
        both.set()
        return mean(batch)

    one = batcher(run, workers=2, batch=3)
    futures = [one.submit(images(3, start=10 * n)) for n in range(4)]
    for n, future in enumerate(futures):
        assert future.result(10)[:, 0].tolist() == [10 * n, 10 * n + 1, 10 * n + 2]
    one.close()


def test_what_waits_is_shared_out_among_idle_workers():
    sizes: list[int] = []
    together = threading.Barrier(4, timeout=10)

    def run(batch):
        together.wait()
        return mean(batch)

    one = batcher(run, workers=4, batch=8, on_batch=sizes.append)
    while one.idle < 4:
        time.sleep(0.001)
    assert one.submit(images(8)).result(10)[:, 0].tolist() == list(range(8))
    one.close()
    assert sizes == [2, 2, 2, 2]


@pytest.mark.parametrize("workers", [1, 2, 64])
def test_workers_share_the_threads_and_leave_others_theirs(workers):
    seen: list[int] = []

    def run(batch):
        seen.append(torch.get_num_threads())
        return mean(batch)

    before = torch.get_num_threads()
    one = batcher(run, workers=workers)
    one.submit(images(1)).result(5)
    one.close()
    assert seen == [max(1, before // workers)]
    assert torch.get_num_threads() == before
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == before


def test_two_passes_at_once_only_where_the_encoder_bears_them():
    named, given = load_encoder("convnet-xs"), load_encoder(lambda images: images.mean(dim=(2, 3)))
    assert usual_workers(named) == min(2, torch.get_num_threads())
    assert usual_workers(given) == 1


# --- steady passes ------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["convnet-xs?seed=1", "convnet-xs+20?seed=1", "cnn9?seed=1"])
def test_an_answer_does_not_depend_on_what_shares_its_pass(spec):
    encoder = SteadyEncoder(load_encoder(spec), batch=16)
    pixels = torch.randint(0, 256, (37, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        whole = encoder(pixels)
        for size in (1, 2, 3, 5, 8, 16, 23):
            parts = torch.cat([encoder(part) for part in torch.split(pixels, size)])
            assert torch.equal(parts, whole), size
        order = torch.randperm(37)
        assert torch.equal(encoder(pixels[order]), whole[order])
    assert torch.equal(embed(encoder, pixels, batch_size=7), whole)


def test_a_size_whose_answers_differ_is_never_used():
    class Moody(torch.nn.Module):
        def forward(self, batch):
            return batch.flatten(1) + (0.0 if len(batch) in (4, 16) else 1e-3)

    sizes: list[int] = []

    class Noting(Moody):
        def forward(self, batch):
            sizes.append(len(batch))
            return super().forward(batch)

    encoder = SteadyEncoder(Encoder(Noting()).eval(), batch=16)
    pixels = torch.rand(7, 3, 2, 2)
    one_by_one = torch.cat([encoder(part) for part in torch.split(pixels, 1)])
    assert torch.equal(one_by_one, encoder(pixels))
    assert encoder.sizes(pixels) == (16,)  # 8 differs, and what is below it is not tried
    sizes.clear()
    encoder(pixels)
    assert sizes == [16]


@given(st.integers(1, 300), st.sampled_from([(64,), (8, 16, 32, 64), (1, 2, 4)]))
def test_passes_cover_all_images_and_have_known_sizes(count, sizes):
    done = 0
    while done < count:
        taken, size = next_pass(count - done, sizes)
        assert 0 < taken <= size
        assert size in sizes
        done += taken
    assert done == count


def test_a_steady_encoder_refuses_to_answer_in_training_mode(world):
    encoder = SteadyEncoder(world.convnet(), batch=4)
    with pytest.raises(EncoderError, match="eval mode"):
        encoder.train()(torch.rand(2, 3, 8, 8))


# --- replays ------------------------------------------------------------------------------


def test_a_replay_belongs_to_one_account_and_one_content_and_is_forgotten_in_time():
    async def story() -> None:
        clock = Clock()
        replays = Replays(most=3000, seconds=10, clock=clock)
        loop = asyncio.get_running_loop()

        async def put(account: str, key: str, content: str) -> None:
            future = loop.create_future()
            replays.start(account, key, content=content, rows=future)
            assert replays.find(account, key, content=content) is future  # still in work
            future.set_result(torch.zeros(1, 10))
            await asyncio.sleep(0)

        await put("alice", "k", "c")
        assert replays.find("bob", "k", content="c") is None
        with pytest.raises(RefusedError, match="another request"):
            replays.find("alice", "k", content="other")
        clock.now = 11
        assert replays.find("alice", "k", content="c") is None
        for number in range(20):
            await put("alice", str(number), "c")
        assert len(replays) == 2  # 1064 bytes each
        failed = loop.create_future()
        replays.start("alice", "bad", content="c", rows=failed)
        failed.set_exception(RuntimeError("no"))
        await asyncio.sleep(0)
        assert replays.find("alice", "bad", content="c") is None

    asyncio.run(story())


# --- decoding -----------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    whole = kind + data
    return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))


def bomb(side: int) -> bytes:
    """Return a small PNG whose header promises side x side pixels of zeros."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(10_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_png_comes_out_as_the_pixels_that_went_in(web):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    (decoded,) = decode_files([web.png(pixels)], limits=ServeConfig())
    assert torch.equal(decoded, torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize("side", [600, 20_000, 2_000_000_000])
def test_a_bomb_is_refused_by_its_header_before_a_pixel_is_decoded(side, monkeypatch):
    from PIL import PngImagePlugin

    def never(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", never)
    monkeypatch.setattr("ssl_wm.encoders.serving.decoding.plain_pixels", never)
    limits = ServeConfig(max_pixels=512 * 512)
    with pytest.raises(RefusedError) as caught:
        decode_files([bomb(side)], limits=limits)
    assert caught.value.status in (413, 422)
    if side < 2_000_000_000:
        assert caught.value.status == 413


def test_many_images_that_each_fit_are_limited_together(web):
    limits = ServeConfig(max_request_pixels=3 * 64)
    assert len(decode_files([web.png()] * 3, limits=limits)) == 3
    with pytest.raises(RefusedError, match="together") as caught:
        decode_files([web.png()] * 4, limits=limits)
    assert caught.value.status == 413


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP"])
def test_only_png_and_jpeg_reach_a_decoder(web, kind):
    with pytest.raises(RefusedError, match="neither a PNG nor a JPEG") as caught:
        decode_files([web.png(kind=kind)], limits=ServeConfig())
    assert caught.value.status == 422


@given(st.binary(max_size=300))
def test_any_bytes_are_an_image_or_a_refusal(data):
    for head in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"):
        with pytest.raises(RefusedError):
            decode_files([head + data], limits=ServeConfig())


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.sampled_from(["images", "encoding_format", "x"]), s)))  # fmt: skip # noqa: E501
def test_any_json_is_a_request_or_a_refusal(value):
    status = 200
    try:
        asked = parse_json(json.dumps(value).encode(), limits=ServeConfig())
        assert asked.files
    except RefusedError as error:
        status = error.status
    assert status in (200, 413, 422)
