"""The serve command as a process: its settings, its errors, and how it ends."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image

from ssl_wm.commands.serve import read_accounts, read_defence, read_secret, read_settings, serve
from ssl_wm.errors import ConfigError, SslWmError

KEY = "a-key-for-the-test"
DIGEST = "0" * 64


def start(*words: str, **variables: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "ssl_wm", "serve", *words], stderr=subprocess.PIPE, text=True,
        env={**os.environ, **variables},
    )  # fmt: skip


def image(seed: int = 0) -> str:
    file = BytesIO()
    Image.effect_noise((32, 32), 50 + seed).convert("RGB").save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_it_serves_until_told_to_stop_finishes_and_exits_with_0(tmp_path):
    usage = tmp_path / "usage.json"
    words = ["--encoder", "convnet-xs?seed=1", "--port", "0", "--usage", str(usage)]
    process = start(*words, "--defence", "rounding=2", SSL_WM_API_KEY=KEY)
    first = json.loads(process.stderr.readline())
    assert first["event"] == "listening"
    url = first["url"]
    assert "rounding" in process.stderr.readline()
    heads = {"Authorization": f"Bearer {KEY}"}
    while True:
        try:
            assert httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
            break
        except httpx.ConnectError:
            time.sleep(0.02)
    codes: list[int] = []

    def ask() -> None:
        body = {"images": [image(seed) for seed in range(200)]}
        answer = httpx.post(
            f"{url}/v1/embeddings", json=body, headers=heads, trust_env=False, timeout=60
        )
        codes.append(answer.status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    while "ssl_wm_batch_images_count 0.0" in httpx.get(f"{url}/metrics", trust_env=False).text:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    asking.join()
    assert process.returncode == 0, said
    assert codes == [200]
    assert json.loads(usage.read_text())["default"]["images"] == 200
    assert KEY not in said
    assert json.loads(said.splitlines()[-1])["event"] == "stopped"


def test_without_a_key_a_random_one_is_shown_and_ctrl_c_ends_it_even_at_once():
    process = start("--encoder", "convnet-xs", "--port", "0", SSL_WM_API_KEY="")
    lines = [process.stderr.readline() for _ in range(2)]
    assert json.loads(lines[1])["event"] == "listening"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    (key,) = re.findall(r"the key of this run is (\S{43})$", lines[0].strip())
    assert key


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"encoder": "convnet-z"}, "did you mean"),
        ({"flags": {"port": 99999}}, "'port'"),
        ({"defences": ["b5b"]}, "did you mean 'b4b'"),
        ({"keys": Path("no.yaml")}, "no.yaml does not exist"),
        ({"flags": {"port": 9, "host": "203.0.113.1"}}, "cannot listen on 203.0.113.1"),
    ],
)
def test_a_wrong_call_is_explained(changed, says, monkeypatch):
    monkeypatch.setenv("SSL_WM_API_KEY", KEY)
    given = {
        "flags": {}, "defences": [], "config": None, "keys": None, "secret": None, "usage": None,
        "encoder": "convnet-xs", **changed,
    }  # fmt: skip
    with pytest.raises(SslWmError, match=says):
        serve(given.pop("encoder"), **given)


def test_without_fastapi_one_line_names_the_extra():
    program = """
import sys
sys.modules["fastapi"] = None
from ssl_wm.cli import main
main(["serve", "--encoder", "convnet-xs"])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 2
    assert "pip install 'ssl-wm[serve]'" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_flags_go_before_the_file_and_defences_are_read(tmp_path):
    path = tmp_path / "serve.yaml"
    path.write_text("port: 9000\nmax_images: 7\nqueue: 70\ndefence: {b4b: {bits: 6}, noise: 0.2}\n")
    told = read_settings(path, {"port": 9001, "host": None}, ["top-k=5", "rotate"])
    assert (told.port, told.host, told.max_images) == (9001, "127.0.0.1", 7)
    assert told.defence.active == ("b4b", "noise", "rotate", "top_k")
    assert told.defence.b4b.bits == 6
    assert read_settings(None, {}, ["b4b"]).defence.b4b.bits == 12


@pytest.mark.parametrize(
    ("text", "says"),
    [("noise", "needs a value"), ("rotate=3", "takes no value"), ("nois=1", "did you mean")],
)
def test_a_wrong_defence_is_explained(text, says):
    with pytest.raises(ConfigError, match=says):
        read_defence(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("accounts: []", "accounts"),
        (f"accounts: [{{name: a, sha256: '{DIGEST}', rate: 3}}]", "unknown setting"),
        ("accounts: [{name: a, sha256: my-own-key}]", "sha256"),
        ("queue: 3", "accounts"),
    ],
)
def test_a_wrong_accounts_file_is_explained_without_showing_what_may_be_a_key(tmp_path, text, says):
    path = tmp_path / "accounts.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        read_accounts(path)
    assert "my-own-key" not in str(caught.value)


def test_a_secret_that_is_too_short_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(b"x" * 31)
    with pytest.raises(ConfigError, match="31 bytes"):
        read_secret(tmp_path / "secret")
    with pytest.raises(ConfigError, match="cannot read"):
        read_secret(tmp_path / "nothing")
