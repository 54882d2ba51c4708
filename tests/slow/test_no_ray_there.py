"""A program that answers at the address and is no Ray: after one try of Ray's, not twenty."""

import os
import socket
import subprocess
import sys

CONNECT = "from mbs_ray.cluster.connect import connected\nwith connected(None, 1): pass"


def test_what_listens_and_is_no_ray_is_named() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-c", CONNECT], capture_output=True, text=True, env=os.environ | {"RAY_ADDRESS": address}
        )
    said = f"InputError: RAY_ADDRESS={address} (a variable of the environment): no Ray cluster answers there"
    assert said in done.stderr
    # A line of Ray's for every try, and one in all.
    assert done.stderr.count("Failed to get cluster ID from GCS server") == 1
