"""How the replicas of a stage find each other, and nobody else: a store on their own network, and a shared secret."""

import hashlib
import hmac
import os
import secrets
import socket
from datetime import timedelta
from typing import NamedTuple

import psutil
import torch.distributed as dist

START_SECONDS = 60
_STORE = "store"


class StoreAddress(NamedTuple):
    """Where the replicas of a stage find each other; ``secret`` reaches them through Ray alone."""

    host: str
    port: int
    secret: str


def hosted_store(node_ip: str) -> tuple[StoreAddress, dist.Store]:
    """Serve a store on a free port of this node, on no other address than this one."""
    family = socket.AF_INET6 if ":" in node_ip else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.bind((node_ip, 0))
    address = StoreAddress(node_ip, listening.getsockname()[1], secrets.token_hex(32))
    store = dist.TCPStore(
        node_ip,
        address.port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=START_SECONDS),
        master_listen_fd=listening.detach(),
    )
    return address, _own_keys(store, address)


def joined_store(address: StoreAddress) -> dist.Store:
    """Join the store that another process serves."""
    timeout = timedelta(seconds=START_SECONDS)
    return _own_keys(dist.TCPStore(address.host, address.port, is_master=False, timeout=timeout), address)


def proof(secret: str, who: str) -> bytes:
    """Return 32 bytes that only a holder of the secret can make, and that do not give it away."""
    return hmac.new(secret.encode(), who.encode(), hashlib.sha256).digest()


def talk_through(node_ip: str) -> None:
    """Have gloo and nccl use the interface of this address; by default they use the host name's, maybe the loopback."""
    for interface, addresses in psutil.net_if_addrs().items():
        if any(one.family in (socket.AF_INET, socket.AF_INET6) and one.address == node_ip for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)


def _own_keys(store: dist.Store, address: StoreAddress) -> dist.Store:
    # Whoever reaches the port may write, but not by accident what another group or an earlier one reads.
    return dist.PrefixStore(proof(address.secret, _STORE).hex(), store)
