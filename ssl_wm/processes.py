"""Which of a run's processes this is, and how the others are started and ended.

A run has one process, or several that train together: those that torchrun or SLURM started, or,
where neither did, those that the first process starts by running its own command again.
"""

from __future__ import annotations

import atexit
import os
import site
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

from ssl_wm.errors import ConfigError

FOLLOWER = "SSL_WM_FOLLOWER"
"""Set for a process that another one started; its standard input closes when that one ends."""
GRACE = 5.0  # seconds in which the first process should notice by itself that another failed
PATIENCE = 60.0  # seconds that the others get to end after the first one

_command: ContextVar[tuple[str, ...] | None] = ContextVar("command", default=None)
_shared: ContextVar[bool] = ContextVar("shared", default=False)
_others: list[subprocess.Popen[bytes]] = []
together = threading.Event()
"""Set while this process trains with others, and so may wait for them."""


@dataclass(frozen=True)
class Place:
    """Where a process stands among those of its run.

    Attributes:
        rank: its number; 0 writes, prints and asks.
        world: how many there are.
        local: how many there are on this machine.
    """

    rank: int
    world: int
    local: int

    @property
    def nodes(self) -> int:
        """Machines that take part."""
        return self.world // self.local


def place(environment: Mapping[str, str] | None = None) -> Place:
    """Return what the environment (default: the process's) says; alone if it says nothing.

    Raises:
        ConfigError: torchrun's or SLURM's variables contradict each other.

    >>> place({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"})
    Place(rank=3, world=4, local=2)
    >>> place({"SLURM_NTASKS": "8", "SLURM_PROCID": "5", "SLURM_NTASKS_PER_NODE": "4"})
    Place(rank=5, world=8, local=4)
    >>> place({})
    Place(rank=0, world=1, local=1)
    """
    given = os.environ if environment is None else environment
    slurm = given.get("SLURM_JOB_NAME") not in ("bash", "interactive")
    try:
        if "WORLD_SIZE" in given and "RANK" in given:
            world = int(given["WORLD_SIZE"])
            found = Place(int(given["RANK"]), world, int(given.get("LOCAL_WORLD_SIZE", world)))
        elif slurm and int(given.get("SLURM_NTASKS", "1")) > 1:
            world = int(given["SLURM_NTASKS"])
            local = int(given.get("SLURM_NTASKS_PER_NODE", world))
            found = Place(int(given.get("SLURM_PROCID", "0")), world, local)
        else:
            found = Place(int(given.get("LOCAL_RANK", "0")), 1, 1)
    except ValueError as error:
        raise ConfigError(f"the environment's process numbers cannot be read: {error}") from error
    if found.local < 1 or found.world % found.local:
        raise ConfigError(
            f"{found.world} processes cannot be {found.local} on every machine; start the same "
            "number on each (torchrun --nproc-per-node, srun --ntasks-per-node)"
        )
    return found


def first_process() -> bool:
    """Return whether this process is the one that writes, prints and asks."""
    return place().rank == 0


@contextmanager
def running_command(arguments: Sequence[str]) -> Iterator[None]:
    """Note while the block runs that it is ``ssl-wm`` with ``arguments``, not a user's program."""
    command, shared = _command.set(tuple(arguments)), _shared.set(False)
    try:
        yield
    finally:
        _command.reset(command)
        _shared.reset(shared)


def share_command() -> None:
    """Note that the command that runs can be shared by several processes."""
    _shared.set(True)


def check_alone(*, starting: bool = False) -> None:
    """Refuse several processes for a command that only one can run.

    Args:
        starting: whether others are about to be started; else those that are there count.

    Raises:
        ConfigError: it is such a command, and there are several.
    """
    several = starting or place().world > 1
    if several and _command.get() is not None and not _shared.get():
        raise ConfigError(
            "this command trains in one process; set devices to 1 and start it without torchrun "
            "or srun. pretrain, watermark and steal can be run by several"
        )


def start_others(world: int) -> None:
    """Start ``world - 1`` processes on this machine that run the same command.

    From here on the environment says which process this one is. A process that ends with an
    error ends all; when this one ends, so do the others.

    Raises:
        ConfigError: there is no command that could be run again.
    """
    check_alone(starting=True)
    command = own_command()
    os.environ.update({
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": os.environ.get("MASTER_PORT", _free_port()),
        "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "NODE_RANK": "0",
        "RANK": "0", "LOCAL_RANK": "0",
    })  # fmt: skip
    for rank in range(1, world):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), FOLLOWER: "1"}
        _others.append(
            subprocess.Popen(  # noqa: S603 - the program that runs already
                command, env={**os.environ, **_findable(), **own}, stdin=subprocess.PIPE,
                start_new_session=True,
            )
        )  # fmt: skip
    atexit.register(stop_others, patience=PATIENCE)
    threading.Thread(target=_watch_others, daemon=True, name="watch-others").start()


def _findable() -> dict[str, str]:
    """Return the environment in which a package that is not installed is found all the same."""
    root = str(Path(__file__).parents[1])
    if any(root == str(Path(path)) for path in site.getsitepackages()):
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), root]))}


def own_command() -> Sequence[str]:
    """Return the command that does again what this process does.

    Raises:
        ConfigError: the process runs no file, as in a notebook.
    """
    told = _command.get()
    if told is not None:
        return [sys.executable, "-m", "ssl_wm", *told]
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        return [sys.executable, "-m", spec.name, *sys.argv[1:]]
    if not Path(sys.argv[0]).is_file():
        raise ConfigError(
            "several processes run the same program again, and this one is no file (a notebook?); "
            "put it into a file, start that with torchrun, or set devices to 1"
        )
    return [sys.executable, str(Path(sys.argv[0]).resolve()), *sys.argv[1:]]


def follow() -> None:
    """End this process as soon as the one that started it has ended; without one do nothing."""
    if os.environ.pop(FOLLOWER, None):
        threading.Thread(target=_wait_for_end, daemon=True, name="follow").start()


def stop_others(*, patience: float = 0.0) -> None:
    """End the processes that this one started; they get ``patience`` seconds to end well."""
    until = time.monotonic() + patience
    for other in _others:
        try:
            other.wait(timeout=max(until - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            other.kill()
            other.wait()


def failed_process(*, wait: float = 0.0) -> str:
    """Return which process that this one started has failed, and how; "" if none has.

    Args:
        wait: seconds to wait for one to end.
    """
    until = time.monotonic() + wait
    while True:
        for rank, other in enumerate(_others, start=1):
            code = other.poll()
            if code:
                how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
                return f"process {rank} of {len(_others) + 1} {how}"
        if time.monotonic() >= until or not _others:
            return ""
        time.sleep(0.05)


def _watch_others() -> None:
    """End this process when another failed and it waits for it all the same (a collective)."""
    told = ""
    while not told:
        if all(other.poll() == 0 for other in _others):
            return
        time.sleep(0.5)
        told = failed_process()
    time.sleep(GRACE)
    if together.is_set():
        getLogger(__name__).error("%s; all processes end", told)
        for other in _others:
            other.kill()
        os._exit(2)


def _wait_for_end() -> None:
    os.read(0, 1)
    os._exit(2)


def _free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])
