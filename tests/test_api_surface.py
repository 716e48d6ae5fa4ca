"""What others build on: public names, a light import, and arrows that point down only."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import ssl_wm

ROOT = Path(ssl_wm.__file__).parent
PUBLIC = {
    "Encoder", "PretrainConfig", "RemovalConfig", "StealConfig", "VerifyConfig", "WatermarkConfig",
    "embed_watermark", "keygen", "load_encoder", "load_key", "open_images", "pretrain", "remove",
    "save_encoder", "steal", "verify",
}  # fmt: skip
MATHS = (
    "extraction.losses", "watermark.losses", "watermark.mixers", "watermark.mgda",
    "encoders.nearest", "encoders.space", "verification.centring", "verification.margins",
    "verification.statistics", "verification.probe", "verification.knn",
)  # fmt: skip
NOT_MATHS = (
    "ssl_wm.config", "ssl_wm.files", "ssl_wm.console", "ssl_wm.cli", "ssl_wm.report",
    "logging", "os", "io", "pathlib", "shutil", "tempfile", "json", "yaml", "pydantic", "rich",
    "typer",
)  # fmt: skip


@cache
def modules() -> dict[str, Path]:
    """Return the package's modules by dotted name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imported(name: str) -> frozenset[str]:
    """Return all that a module imports, wherever in it, also for type checks only."""
    names = set()
    known = modules()
    for node in ast.walk(ast.parse(known[name].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} uses a relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {each for each in inside if each in known} or {str(node.module)}
    return frozenset(names)


def reached(name: str, *, but: frozenset[str] = frozenset()) -> set[str]:
    """Return the package's modules that ``name`` leads to, through any number of imports."""
    seen, todo = set(), [name]
    while todo:
        for each in imported(todo.pop()):
            if each in modules() and each not in seen | but:
                seen.add(each)
                todo.append(each)
    return seen


def test_the_public_names_are_these_and_no_module_hides_one():
    assert set(ssl_wm.__all__) == PUBLIC
    for name in modules():
        if name != "ssl_wm.__main__":
            import_module(name)
    for name in PUBLIC:
        assert callable(getattr(ssl_wm, name)), name
    with pytest.raises(AttributeError, match="no attribute 'waterproof'"):
        ssl_wm.waterproof  # noqa: B018


def test_importing_is_fast_imports_no_torch_and_opens_no_socket():
    program = """
import sys, time
def watch(event, _):
    if event.startswith("socket"):
        raise SystemExit("opened a socket")
sys.addaudithook(watch)
began = time.process_time()
import ssl_wm
used = time.process_time() - began
import ssl_wm.cli
for name in ("torch", "numpy", "lightning_fabric", "timm", "sklearn", "matplotlib"):
    assert name not in sys.modules, name
assert used < 0.5, used
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT.parent)},
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("thief", ["extraction", "removal", "detection"])
def test_a_thief_does_not_know_the_key(thief):
    for name in modules():
        if f"{name}.".startswith(f"ssl_wm.{thief}."):
            bad = {each for each in reached(name) if each.startswith("ssl_wm.watermark")}
            assert not bad, f"{name} leads to {sorted(bad)}"


@pytest.mark.parametrize("stage", ["verification", "evidence", "calibration"])
def test_who_judges_does_not_train(stage):
    for name in modules():
        if name.startswith(f"ssl_wm.{stage}"):
            bad = {each for each in reached(name) if each.startswith("ssl_wm.training")}
            assert not bad, f"{name} leads to {sorted(bad)}"


def test_verification_needs_neither_its_evidence_nor_its_calibration():
    for name in modules():
        if name.startswith("ssl_wm.verification"):
            above = ("ssl_wm.evidence", "ssl_wm.calibration")
            assert not [each for each in reached(name) if each.startswith(above)], name


def test_disputes_come_last_of_all_stages():
    for name in modules():
        inside = name.startswith("ssl_wm.disputes")
        if "." in name.removeprefix("ssl_wm.") and not inside:
            assert not any(each.startswith("ssl_wm.disputes") for each in imported(name)), name


@pytest.mark.parametrize("name", MATHS)
def test_maths_knows_no_files_settings_or_messages(name):
    whole = f"ssl_wm.{name}"
    but = frozenset({"ssl_wm.watermark.autoencoder"} if name == "watermark.mixers" else ())
    for part in {whole} | reached(whole, but=but):
        bad = [
            each
            for each in imported(part)
            if f"{each}.".startswith(tuple(f"{no}." for no in NOT_MATHS))
        ]
        assert not bad, f"{part} imports {bad}"


def test_only_files_py_writes_files():
    writers = {"write_text", "write_bytes", "savez", "save_file", "to_csv", "symlink_to"}
    for name, path in modules().items():
        if name == "ssl_wm.files":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr not in writers, f"{name}:{node.lineno}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("open", "print") or name in (
                    "ssl_wm.cli.app",
                    "ssl_wm.cli.terminal",
                ), f"{name}:{node.lineno}"


def test_no_module_imports_the_command_line():
    for name in modules():
        below = not name.startswith(("ssl_wm.cli", "ssl_wm.commands", "ssl_wm.__main__"))
        above = ("ssl_wm.cli", "ssl_wm.commands") if below else ("ssl_wm.cli",)
        if below or name.startswith("ssl_wm.commands"):
            assert not [each for each in imported(name) if each.startswith(above)], name


def test_every_module_says_what_it_is_for():
    for name, path in modules().items():
        assert ast.get_docstring(ast.parse(path.read_text())), f"{name} has no docstring"
