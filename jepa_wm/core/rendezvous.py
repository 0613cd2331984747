"""What a launcher tells a process of its place, and how ranks find each other without a port
agreed beforehand: rank 0 takes a free one and writes it into a file.

An empty environment variable counts as not set. Ranks of one machine meet at its loopback
address, whatever its host name; others need one that resolves."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from jepa_wm.core.errors import UserError
from jepa_wm.core.files import write_atomic

START = "start with `jepa-wm launch` or torchrun"


def variable(name: str) -> str | None:
    """An environment variable, None where it is not set, empty or blank."""
    return os.environ.get(name, "").strip() or None


def number(name: str, default: int | None = None, *, least: int = 0) -> int:
    """A whole number of at least `least` from the environment.

    Raises UserError naming the variable where it holds something else, or nothing and there is no
    default."""
    text = variable(name)
    if text is None:
        if default is None:
            raise UserError(f"WORLD_SIZE is set but {name!r} is not: {START}")
        return default
    try:
        value = int(text)
    except ValueError:
        raise UserError(f"{name}={text}: is no whole number; unset it, or {START}") from None
    if value < least:
        raise UserError(f"{name}={value}: must be at least {least}; unset it, or {START}")
    return value


def rank() -> int:
    """This process's rank, 0 where no launcher told one."""
    return number("RANK", 0)


def ranks() -> int:
    """How many processes work on the job, 1 where no launcher told of others."""
    return number("WORLD_SIZE", 1, least=1)


if TYPE_CHECKING:
    import torch.distributed as dist

# a file on a disk that all ranks see, where rank 0 says how it is reached
STORE = "JEPA_WM_RENDEZVOUS"
# the latter names the network interface that gloo takes
LOOPBACK, INTERFACE = "127.0.0.1", "GLOO_SOCKET_IFNAME"
# seconds waited before it is said for what; given a name server that does not answer
SILENCE, NAMING = 5.0, 5.0


def meet(file: Path, rank: int, size: int, timeout: timedelta) -> dist.Store:
    """A store that all ranks are connected to; `file` must not exist before and lies where all of
    them see it.

    Raises TimeoutError if rank 0 does not write the file in time, UserError if its host name does
    not resolve, and what torch raises if it cannot be reached."""
    import torch.distributed as dist

    if rank == 0:  # its store listens on all interfaces, whatever host is given
        store = dist.TCPStore(
            LOOPBACK, 0, size, is_master=True, timeout=timeout, wait_for_workers=False
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(
            file,
            json.dumps({"host": socket.gethostname(), "machine": machine(), "port": store.port}),
        )
        return store

    def written() -> bool:
        if file.parent.is_dir():
            os.listdir(file.parent)  # a network disk shows new files only to those who look
        return file.exists()

    _wait(written, timeout, lambda: f"rank {rank} waits for rank 0 to say in {file} where it is")
    place = json.loads(file.read_text(encoding="utf-8"))
    host = (
        LOOPBACK
        if place["machine"] == machine()
        else reachable(place["host"], "the host name of rank 0")
    )
    return dist.TCPStore(
        host, place["port"], size, is_master=False, timeout=timeout, wait_for_workers=False
    )


def gather(store: dist.Store, rank: int, size: int, timeout: timedelta) -> bool:
    """Wait for all ranks to have come to the store; returns whether all are on one machine.

    Raises TimeoutError naming those that did not come.
    """
    if rank == 0:
        store.set("machine", machine())
    _wait(
        lambda: store.check(["machine"]),
        timeout,
        lambda: f"rank {rank} of {size} waits for rank 0",
    )
    store.add("elsewhere", int(store.get("machine").decode() != machine()))
    store.set(f"came/{rank}", "1")
    store.add("came", 1)

    def missing() -> str:
        ranks = [str(other) for other in range(size) if not store.check([f"came/{other}"])]
        named = ", ".join(ranks[:8]) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
        return f"rank {rank} of {size} waits for rank {named}"

    _wait(lambda: store.add("came", 0) == size, timeout, missing)
    return store.add("elsewhere", 0) == 0


def machine() -> str:
    """Names this machine, or the container with a network of its own, to processes that share its
    loopback address."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/net')}"
    except OSError:  # no Linux
        return f"{socket.gethostname()} {uuid.getnode()}"


def loopback_interface() -> str | None:
    """What the loopback interface is called here, None where it has no usual name."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in ("lo", "lo0") if name in names), None)


def reachable(host: str, what: str) -> str:
    """`host`, if it resolves to an address by which other machines can reach it; raises UserError
    if it does not."""
    address = resolve(host, what)
    if ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        raise UserError(
            f"{what}, {host}, resolves to {address} on {socket.gethostname()}, which other "
            "machines cannot reach: give "
            f"it its network address in /etc/hosts there, or set {INTERFACE} to the network "
            "interface"
        )
    return host


def resolve(host: str, what: str) -> str:
    """The first address of a host. Raises UserError, within seconds, if it has none."""
    until = time.monotonic() + NAMING
    while True:
        try:
            return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
        except (socket.gaierror, UnicodeError) as error:
            again = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
            if not again or time.monotonic() > until:
                raise UserError(
                    f"{what}, {host}, does not resolve on {socket.gethostname()} ({error}): give "
                    "it an address in "
                    "/etc/hosts there, or in the name server"
                ) from None
            time.sleep(0.5)


@contextmanager
def said_if_long(text: str) -> Iterator[None]:
    """Within the block, once it has taken SILENCE seconds, `text` is printed on stderr."""
    timer = threading.Timer(SILENCE, lambda: print(text, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _wait(over: Callable[[], bool], timeout: timedelta, waiting: Callable[[], str]) -> None:
    """Until `over`; says on stderr what is waited for. Raises TimeoutError."""
    began, warned = time.monotonic(), False
    while not over():
        waited = time.monotonic() - began
        if waited > timeout.total_seconds():
            raise TimeoutError(
                f"{waiting()}: not within {timeout.total_seconds():.0f} s; look into its log"
            )
        if waited > SILENCE and not warned:
            warned = True
            print(
                f"{waiting()}, {timeout.total_seconds():.0f} s at most",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(0.05)
