"""PyTorch pickles, read with ``weights_only=True`` and nothing else: no code of theirs runs.

When that fails, the message names what was blocked; the names come from disassembling the
pickle, which executes nothing.
"""

from __future__ import annotations

import io
import pickletools
import re
import warnings
import zipfile
from pathlib import Path

import torch

from ssl_wm.encoders.properties import few
from ssl_wm.errors import EncoderError

# Names that every state dict needs; torch's safe reader allows them.
_TENSOR_PARTS = re.compile(
    r"torch\._utils\._rebuild_\w+|torch\.\w*Storage|torch\.storage\.\w+|collections\.OrderedDict"
)
_PICKLE_BYTES = 1 << 26  # as much of a pickle as is disassembled for a message


def read_pickle(path: Path) -> object:
    """Return what a PyTorch checkpoint holds: tensors and plain containers, on the CPU.

    Raises:
        EncoderError: the file is truncated, a program (TorchScript, ``.pt2``), or needs
            anything beyond tensors (the blocked globals are named; nothing was executed).
    """
    _refuse_programs(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other pickle protocols: failure is told below
            value: object = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise _unreadable(path, error) from error
    return value


def _refuse_programs(path: Path) -> None:
    names = _zip_names(path)
    kind = ""
    if any(name.endswith("/constants.pkl") for name in names):
        kind = "TorchScript"
    if any(name.rpartition("/")[2] == "archive_format" for name in names):
        kind = "torch.export (.pt2)"
    if kind:
        raise EncoderError(
            f"{path} is a {kind} archive, a program that is not run here; save its state dict "
            "as safetensors and load that with arch="
        )


def _zip_names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError):
        return []


def _unreadable(path: Path, error: Exception) -> EncoderError:
    blocked = blocked_globals(path)
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named and named[1] not in blocked:
        blocked.append(named[1])
    if blocked:
        return EncoderError(
            f"{path} was refused, and nothing in it was run: it needs more than tensors "
            f"(blocked globals: {few(blocked, most=8)}); if you trust its author, load it where "
            "it was made and save the state dict alone with safetensors.torch.save_file"
        )
    if "legacy .tar" in str(error):
        return EncoderError(f"{path} is in PyTorch's old tar format; save it again as safetensors")
    cause = str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
    return EncoderError(
        f"{path} cannot be read as a PyTorch checkpoint: it is truncated or of another kind "
        f"({type(error).__name__}: {cause[:160]}); download it again, or save the state dict as "
        "safetensors"
    )


def blocked_globals(path: Path) -> list[str]:
    """Return the names in a pickle that ``weights_only=True`` blocks, sorted; runs nothing.

    Where torch's own list fails (old formats, newer pickle protocols), the opcodes are
    disassembled here and every name but those of tensors counts.
    """
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # torch reads only its zip format in pickle protocol 2
        return sorted(name for name in _disassemble(path) if not _TENSOR_PARTS.fullmatch(name))


def _disassemble(path: Path) -> set[str]:
    stream = io.BytesIO(_pickle_bytes(path))
    names: set[str] = set()
    for _ in range(5):  # PyTorch's old format is a row of pickles
        strings: list[str] = []
        memo: dict[int, str] = {}
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    names.add(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":
                    names.add(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
                elif opcode.name == "MEMOIZE":
                    memo[len(memo)] = strings[-1] if strings else ""
                elif isinstance(argument, int) and opcode.name.endswith("BINPUT"):
                    memo[argument] = strings[-1] if strings else ""
                elif isinstance(argument, int) and opcode.name.endswith("BINGET"):
                    strings.append(memo.get(argument, ""))
        except Exception:  # truncated, or no pickle at all: the names so far are what there is
            break
    return names


def _pickle_bytes(path: Path) -> bytes:
    inner = [name for name in _zip_names(path) if name.endswith("data.pkl")]
    try:
        if inner:
            with zipfile.ZipFile(path) as archive, archive.open(inner[0]) as member:
                return member.read(_PICKLE_BYTES)
        with path.open("rb") as file:
            return file.read(_PICKLE_BYTES)
    except Exception:  # a damaged or locked archive names nothing
        return b""
