"""The embedding API over real HTTP: answers, refusals, isolation, logs, and a fuzzer."""

from __future__ import annotations

import base64
import gc
import json
import logging
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from ssl_wm.encoders.encoder import Encoder
from ssl_wm.encoders.serve import Service, keep_usage, serving
from ssl_wm.encoders.serving.logs import JsonLines
from ssl_wm.errors import ConfigError

ROUTE = "/v1/embeddings"
BOB = {"Authorization": "Bearer bob-key"}


@pytest.fixture(scope="module")
def encoder(world):
    return world.convnet()


@pytest.fixture(scope="module")
def api(web, encoder):
    with web.running(encoder, max_images=20, max_bytes=200_000, max_pixels=10_000) as running:
        yield running


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def expected(service: Service, files: list[np.ndarray]) -> torch.Tensor:
    pixels = torch.from_numpy(np.stack(files)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        return service.encoder(pixels)


def random_pixels(count: int, *, side: int = 8, seed: int = 0) -> list[np.ndarray]:
    made = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return list(made)


def test_json_floats_base64_and_multipart_give_the_same_bits_as_the_encoder(api, web):
    arrays = random_pixels(9)
    files = [web.png(each) for each in arrays]
    truth = expected(api.service, arrays)
    plain = api.client.post(ROUTE, json={"images": [b64(f) for f in files]}).json()
    assert torch.equal(torch.tensor([d["embedding"] for d in plain["data"]]), truth)
    assert [d["index"] for d in plain["data"]] == list(range(9))
    assert (plain["width"], plain["model"]) == (8, api.service.model)
    packed = {"images": [b64(f) for f in files], "encoding_format": "base64"}
    answer = api.client.post(ROUTE, json=packed).json()
    raw = b"".join(base64.b64decode(d["embedding"]) for d in answer["data"])
    assert torch.equal(torch.from_numpy(np.frombuffer(raw, "<f4").reshape(9, 8).copy()), truth)
    form = [("images", (f"{i}.png", f, "image/png")) for i, f in enumerate(files)]
    answer = api.client.post(ROUTE, files=form, data={"encoding_format": "float"}).json()
    assert torch.equal(torch.tensor([d["embedding"] for d in answer["data"]]), truth)


def test_images_of_several_sizes_and_a_jpeg_go_into_one_request(api, web):
    one, two = random_pixels(1)[0], random_pixels(1, side=16)[0]
    files = [web.png(one), web.png(two), web.png(one), web.png(one, kind="JPEG")]
    data = api.client.post(ROUTE, json={"images": [b64(f) for f in files]}).json()["data"]
    rows = torch.tensor([d["embedding"] for d in data])
    assert torch.equal(rows[[0, 2]], expected(api.service, [one, one]))
    assert torch.equal(rows[1:2], expected(api.service, [two]))
    assert torch.isfinite(rows[3]).all()


def until(happens, *, seconds: float = 5.0) -> None:
    """Wait for what follows an answer a moment later."""
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.005)


BODY = {"images": [b64(b"no image")]}
REFUSALS = [
    ({"headers": {"Authorization": "Bearer wrong"}, "json": BODY}, 401, "unauthorized"),
    ({"headers": {"Authorization": "Basic YWxpY2U="}, "json": BODY}, 401, "unauthorized"),
    ({"headers": {"Authorization": "Bearer"}, "json": BODY}, 401, "unauthorized"),
    ({"json": BODY}, 422, "unusable"),
    ({"json": {"images": []}}, 422, "unusable"),
    ({"json": {"images": "x"}}, 422, "unusable"),
    ({"json": {"images": [7]}}, 422, "unusable"),
    ({"json": {"images": ["***"]}}, 422, "unusable"),
    ({"json": {"images": ["file:///etc/passwd"]}}, 422, "unusable"),
    ({"json": {"images": ["http://127.0.0.1/x.png"]}}, 422, "unusable"),
    ({"json": {"images": [b64(b"x")], "path": "../../etc/passwd"}}, 422, "unusable"),
    ({"json": {"images": [b64(b"x")], "encoding_format": "hex"}}, 422, "unusable"),
    ({"json": ["x"]}, 422, "unusable"),
    ({"json": {"images": ["eA=="] * 21}}, 413, "too_many_images"),
    ({"json": {"images": ["eA" * 200_000]}}, 413, "too_large"),
    ({"content": b"{" * 5000, "headers": {"Content-Type": "application/json"}}, 422, "unusable"),
    ({"content": b"[" * 90_000, "headers": {"Content-Type": "application/json"}}, 422, "unusable"),
    ({"content": b"\xff\xfe", "headers": {"Content-Type": "application/json"}}, 422, "unusable"),
    ({"content": b"x", "headers": {"Content-Type": "image/png"}}, 415, "unsupported"),
    ({"content": b"x"}, 415, "unsupported"),
    ({"json": BODY, "headers": {"Content-Encoding": "gzip"}}, 415, "unsupported"),
    ({"json": BODY, "headers": {"Idempotency-Key": "a b"}}, 422, "idempotency_key"),
    ({"files": [("other", b"x")]}, 422, "unusable"),
    ({"files": [("images", ("../../x", b"x"))]}, 422, "unusable"),
    ({"files": [("images", b"x")] * 30}, 413, "too_many_images"),
    (
        {"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=y"}},
        422, "unusable",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "status", "kind"), REFUSALS)
def test_what_is_refused_is_refused_with_its_status_and_a_reason(api, sent, status, kind):
    answer = api.client.post(ROUTE, **sent)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
    assert answer.json()["error"]["message"]
    assert ("WWW-Authenticate" in answer.headers) == (status == 401)


def test_an_unknown_path_or_method_says_so_in_the_same_form(api):
    for method, path, status in (("GET", ROUTE, 405), ("GET", "/v1/../../etc/passwd", 404)):
        answer = api.client.request(method, path)
        assert answer.status_code == status
        assert answer.json()["error"]["type"] == "http"


def test_an_endless_body_without_a_length_is_cut(web, encoder):
    def endless():
        while True:
            yield b"x" * 10_000

    heads = {"Content-Type": "application/json"}
    with web.running(encoder, max_bytes=100_000, read_seconds=0.5) as api:
        began = time.monotonic()
        try:
            status = api.client.post(ROUTE, content=endless(), headers=heads).status_code
        except httpx.TransportError:
            status = 0  # closed while it still sent, before it read the answer
        assert status in (413, 0)
        assert time.monotonic() - began < 10
        until(lambda: not api.service.buffered.total and not api.service.in_work)
        assert api.client.get("/healthz").status_code == 200


def test_a_body_far_beyond_the_limit_is_read_to_its_end_so_that_413_arrives(api):
    for _ in range(5):
        answer = api.client.post(ROUTE, json={"images": ["e" * 5_000_000]})
        assert answer.status_code == 413


def test_a_body_that_does_not_arrive_ends_in_408_and_frees_its_place(web, encoder):
    with web.running(encoder, read_seconds=0.2) as api:
        port = int(api.url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)) as line:
            head = f"POST {ROUTE} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer alice-key\r\n"
            line.sendall(
                f"{head}Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{{".encode()
            )
            assert line.recv(100).startswith(b"HTTP/1.1 408")
        until(lambda: api.service.in_work == 0)


def test_rates_and_quotas_are_told_with_the_time_to_wait(web, encoder):
    limits = {"images_per_second": 20.0, "burst": 4, "quota": 6, "period": 10**9}
    with web.running(encoder, account=limits) as api:
        four = {"images": [b64(web.png(seed=s)) for s in range(4)]}
        assert api.client.post(ROUTE, json=four).status_code == 200
        soon = api.client.post(ROUTE, json=four | {"images": four["images"][:2]})
        assert (soon.status_code, soon.json()["error"]["type"]) == (429, "rate_limit")
        assert soon.headers["Retry-After"] == "1"
        time.sleep(int(soon.headers["Retry-After-Ms"]) / 1000 + 0.01)
        two = {"images": four["images"][:2]}
        assert api.client.post(ROUTE, json=two).status_code == 200
        over = api.client.post(ROUTE, json=two)
        assert (over.status_code, over.json()["error"]["type"]) == (429, "quota")
        assert int(over.headers["Retry-After"]) > 1
        usage = api.client.get("/v1/usage").json()
        assert (usage["account"], usage["images"], usage["remaining"]) == ("alice", 6, 0)
        others = api.client.get("/v1/usage", headers=BOB).json()
        assert (others["account"], others["images"]) == ("bob", 0)
        assert api.client.post(ROUTE, json=four, headers=BOB).status_code == 200
        assert api.client.get("/v1/usage").json()["images"] == 6
        bad = {"images": ["eA=="]}
        assert api.client.post(ROUTE, json=bad, headers=BOB).status_code == 422
        assert api.client.get("/v1/usage", headers=BOB).json()["images"] == 4


def test_requests_a_second_are_limited_before_their_body_is_looked_at(web, encoder):
    with web.running(encoder, account={"requests_per_second": 1.0}) as api:
        codes = [api.client.post(ROUTE, json={"images": 7}).status_code for _ in range(5)]
        assert codes[:2] == [422, 422]
        assert 429 in codes


def test_a_call_sent_twice_is_computed_and_billed_once_and_no_other_account_sees_it(web, encoder):
    calls: list[int] = []

    class Counting(torch.nn.Module):
        def forward(self, batch):
            calls.append(len(batch))
            return batch.flatten(1)[:, :5] + 0.01 * len(calls)

    with web.running(Encoder(Counting()).eval(), defence={"noise": 0.5}) as api:
        body = {"images": [b64(web.png())]}
        named = {"Idempotency-Key": "k1"}
        first = api.client.post(ROUTE, json=body, headers=named)
        again = api.client.post(ROUTE, json=body, headers=named)
        assert first.json()["data"] == again.json()["data"]
        assert again.headers["Idempotency-Replayed"] == "true"
        assert (first.json()["usage"], again.json()["usage"]) == (
            {"billed_images": 1}, {"billed_images": 0},
        )  # fmt: skip
        other = api.client.post(ROUTE, json=body, headers=named | BOB)
        assert "Idempotency-Replayed" not in other.headers
        assert other.json()["data"] != first.json()["data"]
        assert other.json()["usage"] == {"billed_images": 1}
        stranger = {"images": [b64(web.png(seed=1))]}
        assert api.client.post(ROUTE, json=stranger, headers=named).status_code == 422
        usage = api.client.get("/v1/usage").json()
        assert (usage["images"], usage["replayed"], usage["requests"]) == (1, 1, 2)


def test_defences_reach_the_answers_and_an_account_sees_its_own_map(web, encoder):
    with web.running(encoder, defence={"rotate": True, "rounding": 3}) as api:
        body = {"images": [b64(web.png())]}
        alice = api.client.post(ROUTE, json=body).json()["data"][0]["embedding"]
        bob = api.client.post(ROUTE, json=body, headers=BOB).json()["data"][0]["embedding"]
        assert alice != bob
        assert np.linalg.norm(alice) == pytest.approx(np.linalg.norm(bob), abs=0.01)
        assert np.allclose(alice, np.round(alice, 3), atol=1e-6)


def test_too_much_at_once_is_told_to_come_back(web, encoder):
    entered, free = threading.Event(), threading.Event()

    class Slow(torch.nn.Module):
        def forward(self, batch):
            entered.set()
            free.wait(10)
            return batch.flatten(1)[:, :5]

    slow = Encoder(Slow()).eval()
    free.set()
    with web.running(slow, queue=8, max_images=8, max_requests=3) as api:
        body = {"images": [b64(web.png(seed=s)) for s in range(8)]}
        api.client.post(ROUTE, json=body)
        entered.clear()
        free.clear()
        with ThreadPoolExecutor(3) as pool:
            first = pool.submit(api.client.post, ROUTE, json=body)
            entered.wait(5)
            second = pool.submit(api.client.post, ROUTE, json=body)
            while not api.service.batcher.waiting:
                time.sleep(0.005)
            full = api.client.post(ROUTE, json=body)
            third = pool.submit(api.client.post, ROUTE, json=body)
            third.result(5)
            free.set()
            assert (full.status_code, full.json()["error"]["type"]) == (503, "busy")
            assert "Retry-After" in full.headers
            assert {first.result(5).status_code, second.result(5).status_code} == {200}
            assert third.result(5).status_code == 503
        until(lambda: api.service.in_work == 0)


def test_an_encoder_that_breaks_is_a_500_without_its_text_and_costs_nothing(web):
    class Broken(torch.nn.Module):
        def forward(self, batch):
            if batch.shape[-1] == 9:
                raise RuntimeError("secret weights")
            return batch.flatten(1)[:, :5]

    with web.running(Encoder(Broken()).eval()) as api:
        answer = api.client.post(ROUTE, json={"images": [b64(web.png(side=9))]})
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert api.client.get("/v1/usage").json()["images"] == 0
        assert api.client.post(ROUTE, json={"images": [b64(web.png())]}).status_code == 200


def test_metrics_and_health_tell_no_names_and_logs_no_keys_or_contents(web, encoder):
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(JsonLines().format(record))

    logger, handler = logging.getLogger("ssl_wm.serve"), Keep()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with web.running(encoder) as api:
            image = b64(web.png())
            api.client.post(ROUTE, json={"images": [image]})
            api.client.post(
                ROUTE, json={"images": [image]}, headers={"Authorization": "Bearer zz9"}
            )
            metrics = api.client.get("/metrics").text
            health = api.client.get("/healthz").json()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    assert 'ssl_wm_requests_total{status="200"} 1.0' in metrics
    assert 'ssl_wm_refused_total{reason="unauthorized"} 1.0' in metrics
    assert "ssl_wm_images_total 1.0" in metrics
    assert "alice" not in metrics
    assert health == {"status": "ok", "model": api.service.model, "width": 8}
    told = [json.loads(line) for line in lines]
    requests = [each for each in told if each["event"] == "request" and each["path"] == ROUTE]
    assert [(r["status"], r.get("account"), r.get("images")) for r in requests] == [
        (200, "alice", 1), (401, None, None),
    ]  # fmt: skip
    whole = "".join(lines)
    assert image[:40] not in whole
    assert "alice-key" not in whole
    assert "zz9" not in whole


def test_used_quota_is_kept_over_a_restart(web, encoder, tmp_path):
    path = tmp_path / "usage.json"
    one = web.make_service(encoder, account={"quota": 9})
    save = keep_usage(one, path)
    one.accounts.find("alice-key").reserve(5)
    one.accounts.find("alice-key").settle(5)
    save()
    two = web.make_service(encoder, account={"quota": 9})
    keep_usage(two, path)
    assert two.accounts.find("alice-key").remaining == 4
    path.write_text('{"alice": {"images": "many"}}')
    with pytest.raises(ConfigError, match="damaged"):
        keep_usage(two, path)
    for service in (one, two):
        service.batcher.close()


def test_stopping_finishes_started_requests(web):
    entered, slow = threading.Event(), threading.Event()

    class Slow(torch.nn.Module):
        def forward(self, batch):
            entered.set()
            time.sleep(0.3 if slow.is_set() else 0.0)
            return batch.flatten(1)[:, :5]

    pool = ThreadPoolExecutor(1)
    service = web.make_service(Encoder(Slow()).eval())
    with serving(service) as url:
        heads = {"Authorization": "Bearer alice-key"}
        body = {"images": [b64(web.png())]}
        assert httpx.post(url + ROUTE, json=body, headers=heads, timeout=20).status_code == 200
        entered.clear()
        slow.set()
        sent = pool.submit(httpx.post, url + ROUTE, json=body, headers=heads, timeout=20)
        entered.wait(5)
    assert sent.result(5).status_code == 200
    pool.shutdown()


# --- fuzzing ------------------------------------------------------------------------------


def malformed(chance: random.Random, good: bytes) -> dict:
    """Return one malformed request: wrong types, cut and flipped images, bombs, broken forms."""
    kind = chance.randrange(9)
    heads = {"Content-Type": "application/json"}
    if kind == 0:
        return {"content": chance.randbytes(chance.randrange(3000)), "headers": heads}
    if kind == 1:
        wrong = chance.choice([None, 7, "x", {}, [None], [[]], [{}], [1e999], ["\x00"], True])
        return {"content": json.dumps({"images": wrong}).encode(), "headers": heads}
    if kind == 2:
        cut = good[: chance.randrange(len(good) - 20)]
        return {"json": {"images": [b64(cut)]}}
    if kind == 3:
        data = bytearray(good)
        for _ in range(8):
            data[chance.randrange(8, 40)] ^= chance.randrange(1, 256)
        return {"json": {"images": [b64(bytes(data))]}}
    if kind == 4:
        side = chance.choice([600, 30_000, 2**31 - 1])
        data = good[:16] + side.to_bytes(4, "big") * 2 + good[24:]
        return {"json": {"images": [b64(data)]}}
    if kind == 5:
        return {"json": {"images": ["eA=="] * chance.randrange(1, 600)}}
    if kind == 6:
        heads = {"Content-Type": f"multipart/form-data; boundary={chance.randrange(9)}"}
        return {"content": chance.randbytes(500) + b"--1\r\n\r\n", "headers": heads}
    if kind == 7:
        return {"files": [("images", (None, chance.randbytes(chance.randrange(1, 2_000_000))))]}
    heads = {"Content-Type": chance.choice(["", "text/html", "application/json;" * 50])}
    return {"content": b"[" * chance.randrange(9000), "headers": heads}


def resident() -> int:
    """Return the bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return 4096 * pages


def fuzz(api, web, *, count: int, seed: int) -> set[int]:
    """Send ``count`` malformed requests from 4 clients and return the statuses that came."""
    good, seen = web.png(side=16), set()

    def some(part: int) -> None:
        chance = random.Random(seed + part)
        for _ in range(count // 4):
            seen.add(api.client.post(ROUTE, **malformed(chance, good)).status_code)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(some, range(4)))
    return seen


def check_serving(api, web) -> None:
    arrays = random_pixels(3, seed=9)
    body = {"images": [b64(web.png(each)) for each in arrays]}
    data = api.client.post(ROUTE, json=body).json()["data"]
    rows = torch.tensor([each["embedding"] for each in data])
    assert torch.equal(rows, expected(api.service, arrays))
    until(lambda: (api.service.in_work, api.service.buffered.total) == (0, 0))
    assert len(api.service.replays) == 0


def test_300_malformed_requests_leave_it_serving(web, encoder):
    with web.running(encoder, max_bytes=2**20) as api:
        seen = fuzz(api, web, count=300, seed=0)
        assert seen <= {413, 415, 422}
        assert seen >= {413, 415, 422}
        check_serving(api, web)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_10_000_malformed_requests_leave_it_serving_and_memory_flat(web, encoder):
    with web.running(encoder, max_bytes=2**20) as api:
        fuzz(api, web, count=1000, seed=100)
        gc.collect()
        before, began = resident(), time.perf_counter()
        seen = fuzz(api, web, count=10_000, seed=200)
        seconds = time.perf_counter() - began
        gc.collect()
        grown = resident() - before
        print(f"10,000 malformed: {seconds:.0f} s, memory {before / 2**20:.0f} MiB "
              f"{grown / 2**20:+.1f} MiB, statuses {sorted(seen)}")  # fmt: skip
        assert seen <= {413, 415, 422}
        assert grown < 16 * 2**20
        check_serving(api, web)
