"""A theft over real HTTP with faults equals the local one, and a killed one resumes for free."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ssl_wm.encoders.load import load_encoder
from ssl_wm.encoders.remote import RemoteConfig, RemoteEncoder
from ssl_wm.extraction.queries import load_transfer_set, query

KEY = "alice-key"
KINDS = ("429", "500", "broken", "lost", "slow")
THIEF = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from conftest import make_images
from ssl_wm.encoders.load import load_encoder
from ssl_wm.extraction.queries import query, save_transfer_set
images = make_images(train=int(sys.argv[3]))
remote = load_encoder(sys.argv[2])
folder, indices = Path(sys.argv[4]), torch.arange(len(images.train))
save_transfer_set(folder, query(remote, images.train, indices=indices, folder=folder))
"""


def plan(share: float, *, seed: int = 0):
    """Return faults for a ``share`` of the requests, each kind for a fifth of it."""
    chance = random.Random(seed)

    def fault(_: int) -> str | None:
        return chance.choice(KINDS) if chance.random() < share else None

    return fault


def spoiled(web, faults: list, share: float, *, seconds: float = 1.0):
    def wrap(app):
        faults.append(web.Faults(app, plan(share), seconds=seconds))
        return faults[-1]

    return wrap


def steal_both_ways(
    web, encoder, pool, tmp_path: Path, *, share: float, timeout: float, batch: int
):
    """Query ``pool`` over HTTP with faults and locally, and compare all that a thief keeps."""
    faults: list = []
    wrap = spoiled(web, faults, share, seconds=2 * timeout)
    indices = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))
    with web.running(encoder, wrap=wrap) as api:
        config = RemoteConfig(
            cache=tmp_path / "kept", batch=batch, timeout=timeout, tries=12, backoff=0.02
        )
        remote = RemoteEncoder(api.url, key=KEY, config=config)
        began = time.perf_counter()
        far = query(remote, pool, indices=indices, folder=tmp_path / "far")
        seconds = time.perf_counter() - began
        usage, counts, local = remote.usage(), remote.counts, api.service.encoder
        remote.close()
    near = query(local, pool, indices=indices, folder=tmp_path / "near")
    assert torch.equal(far.embeddings, near.embeddings)
    assert torch.equal(far.indices, near.indices)
    assert far.ledger == near.ledger
    assert (counts.unique, counts.repeated) == (far.ledger.unique, far.ledger.repeated)
    assert usage["images"] == counts.billed == far.ledger.billed == len(pool)
    assert set(faults[0].made) == set(KINDS)
    assert counts.retries >= len(faults[0].made) - faults[0].made.count("slow")
    return SimpleNamespace(seconds=seconds, counts=counts, faults=faults[0].made, usage=usage)


def test_a_theft_with_faults_equals_the_local_one_and_its_bill(web, world, tmp_path):
    pool = world.images(train=60).train
    steal_both_ways(web, world.convnet(), pool, tmp_path, share=0.4, timeout=0.3, batch=8)


def start_thief(url: str, folder: Path, *, train: int) -> subprocess.Popen:
    arguments = [str(Path(__file__).parents[1]), url, str(train), str(folder)]
    return subprocess.Popen(
        [sys.executable, "-c", THIEF, *arguments], env={**os.environ, "SSL_WM_API_KEY": KEY},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def killed_and_resumed(web, encoder, tmp_path: Path, *, train: int, batch: int, share: float):
    """Kill a thief's process in the middle, run it again, and return the usage and the pool."""
    faults: list = []
    with web.running(encoder, wrap=spoiled(web, faults, share, seconds=0.05)) as api:
        url = f"{api.url}#cache={tmp_path / 'kept'}&batch={batch}&backoff=0.02"
        thief = start_thief(url, tmp_path / "far", train=train)
        account = api.service.accounts.find(KEY)
        while account.images < 8 * train * 0.3:
            assert thief.poll() is None
            time.sleep(0.005)
        thief.send_signal(signal.SIGKILL)
        thief.wait()
        at_kill = account.images
        assert at_kill < 8 * train
        thief.stderr.close()
        again = start_thief(url, tmp_path / "far", train=train)
        _, said = again.communicate(timeout=300)
        assert again.returncode == 0, said
        return at_kill, account.images, api.service.encoder


def test_a_killed_theft_resumes_without_paying_for_an_image_twice(web, world, tmp_path):
    encoder = world.convnet()
    at_kill, billed, local = killed_and_resumed(
        web, encoder, tmp_path, train=80, batch=8, share=0.1
    )
    assert 0 < at_kill < billed == 640
    pool = world.images(train=80).train
    near = query(local, pool, indices=torch.arange(640), folder=tmp_path / "near")
    far = load_transfer_set(tmp_path / "far")
    assert torch.equal(far.embeddings, near.embeddings)


@pytest.mark.slow
def test_10_000_queries_with_faults_equal_the_local_ones_and_their_bill(web, world, tmp_path):
    pool = world.images(train=1250, side=32).train
    encoder = load_encoder("convnet-s?seed=1")
    told = steal_both_ways(web, encoder, pool, tmp_path, share=0.15, timeout=3.0, batch=64)
    print(f"10,000 queries with {len(told.faults)} faults: {told.seconds:.0f} s, {told.counts}, "
          f"server {told.usage}")  # fmt: skip


@pytest.mark.slow
def test_10_000_queries_killed_in_the_middle_are_billed_once(web, world, tmp_path):
    encoder = load_encoder("convnet-xs?seed=1")
    at_kill, billed, _ = killed_and_resumed(
        web, encoder, tmp_path, train=1250, batch=64, share=0.05
    )
    print(f"killed at {at_kill} of 10,000 images; billed after the resumption: {billed}")
    assert billed == 10_000
