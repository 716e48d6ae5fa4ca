"""Measure the embedding API's throughput against the same encoder's local one, as JSON.

    python scripts/bench_serve.py --encoder convnet-s --clients 8 --images 4096

Rounds of local ``embed`` and of clients over loopback alternate. Clients send ready-made bodies
from a process of their own, as they would from other machines; their cost is a socket's.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import multiprocessing
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch

from ssl_wm.cli.terminal import guarded
from ssl_wm.encoders.asking.asker import png_bytes
from ssl_wm.encoders.embeddings import embed
from ssl_wm.encoders.load import load_encoder
from ssl_wm.encoders.serve import Service, serving
from ssl_wm.encoders.serving.settings import AccountConfig, AccountsConfig, ServeConfig
from ssl_wm.rng import torch_stream

KEY = "bench"


def clients(url: str, bodies: list[bytes], count: int, line: Any) -> None:
    """Wait for a word, send ``bodies`` from ``count`` clients, and tell the seconds of each."""
    place = urlsplit(url).netloc
    heads = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    kept = threading.local()

    def connect() -> None:
        kept.connection = HTTPConnection(place, timeout=120)

    def send(body: bytes) -> float:
        began = time.perf_counter()
        kept.connection.request("POST", "/v1/embeddings", body=body, headers=heads)
        answer = kept.connection.getresponse()
        told = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"the service answered {answer.status}: {told[:200]!r}")
        return time.perf_counter() - began

    while line.recv():  # new connections each round: the service closes those that lie idle
        with ThreadPoolExecutor(count, initializer=connect) as pool:
            line.send(list(pool.map(send, bodies)))


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--encoder", default="convnet-s")
    for name, value in (("side", 32), ("images", 4096), ("clients", 8), ("per-request", 64),
                        ("batch", 64), ("rounds", 3)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    shape = (given.images, 3, given.side, given.side)
    stream = torch_stream(0, "bench")
    images = torch.randint(0, 256, shape, generator=stream, dtype=torch.uint8)
    texts = [base64.b64encode(png_bytes(image)).decode() for image in images]
    parts = [texts[i : i + given.per_request] for i in range(0, len(texts), given.per_request)]
    bodies = [json.dumps({"images": part, "encoding_format": "base64"}).encode() for part in parts]
    encoder = load_encoder(given.encoder)
    account = AccountConfig(name="bench", sha256=hashlib.sha256(KEY.encode()).hexdigest())
    accounts = AccountsConfig(accounts=(account,))
    service = Service(encoder, config=ServeConfig(batch=given.batch), accounts=accounts,
                      secret=bytes(32))  # fmt: skip
    rates: dict[str, list[float]] = {"local": [], "served": []}
    waits: list[float] = []
    spawn = multiprocessing.get_context("spawn")
    with serving(service) as url:
        here, there = spawn.Pipe()
        other = spawn.Process(target=clients, args=(url, bodies, given.clients, there), daemon=True)
        other.start()
        there.close()  # so that waiting for a client that has died ends in an error
        for number in range(given.rounds + 1):  # the first round warms both sides up
            began = time.perf_counter()
            embed(encoder, images, batch_size=given.batch)
            local = given.images / (time.perf_counter() - began)
            began = time.perf_counter()
            here.send(True)
            seconds = here.recv()
            served = given.images / (time.perf_counter() - began)
            if number:
                rates["local"].append(local)
                rates["served"].append(served)
                waits += seconds
        here.send(False)
        other.join()
    ratios = [s / p for p, s in zip(rates["local"], rates["served"], strict=True)]
    told = {
        **vars(given), "threads": torch.get_num_threads(),
        "images_per_second": {name: round(float(np.median(r)), 1) for name, r in rates.items()},
        "ratio": round(float(np.median(ratios)), 3), "ratios": [round(r, 3) for r in ratios],
        "seconds_a_request": {f"p{q}": round(float(np.quantile(waits, q / 100)), 4)
                              for q in (50, 95, 99)},
    }  # fmt: skip
    sys.stdout.write(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(guarded(main))
