"""DeepSpeed's async_io: whether it is built, and building it once.

``python -m mbs_ray.cluster.activations.aio_op`` builds it.
"""

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch.utils import cpp_extension

from mbs_ray.errors import InputError

#: async_io needs both; the second keeps the page-locked buffers.
OPS = ("async_io", "pin_memory")
BUILD_SECONDS = 1800.0
_PACKAGES = "libaio-dev, ninja-build and g++ (their names in Debian and Ubuntu)"
_OTHERS_SECONDS = 30.0


def is_built() -> bool:
    """Return whether async_io loads without compiling. Does not import DeepSpeed, which takes seconds."""
    return _is_installed() or all((_build_root() / op / f"{op}.so").is_file() for op in OPS)


def load_aio() -> Any:
    """Load the module async_io; DeepSpeed builds it if this machine has not built it yet: about five minutes, once.

    Raises :class:`InputError` saying what to install where it cannot be built.
    """
    from deepspeed.ops.op_builder import AsyncIOBuilder

    builder = AsyncIOBuilder()
    # Asked before load(), which would first compile the part that needs no libaio.
    if not _is_installed() and not builder.is_compatible(verbose=False):
        raise InputError(_cannot("libaio or a C++ compiler is missing"))
    with _sole_builder(_build_root()), _own_ninja():
        try:
            return builder.load(verbose=False)
        except Exception as error:  # compilers, linkers and loaders fail in many ways, and all of them end here
            raise InputError(_cannot((str(error).splitlines() or [type(error).__name__])[0])) from error


def _cannot(reason: str) -> str:
    return f"offload: nvme needs DeepSpeed's async_io, which cannot be built here ({reason}); install {_PACKAGES}"


def _is_installed() -> bool:
    """Return whether DeepSpeed itself was installed with the op (DS_BUILD_AIO=1)."""
    spec = find_spec("deepspeed")
    return spec is not None and any(
        any(Path(place).glob("ops/aio/async_io_op*.so")) for place in spec.submodule_search_locations or []
    )


def _build_root() -> Path:
    # torch has no public name for it, and it depends on the interpreter, the device and the environment.
    return Path(cpp_extension._get_build_directory(OPS[0], verbose=False)).parent


@contextmanager
def _sole_builder(root: Path) -> Iterator[None]:
    """Hold the right to build in this folder, one at a time; what a killed build left does not stop the next."""
    with os.fdopen(os.open(root / "mbs-build", os.O_RDWR | os.O_CREAT, 0o600), "r+") as marker:
        fcntl.flock(marker, fcntl.LOCK_EX)
        clear_locks(root, killed=bool(marker.read()), wait_seconds=_OTHERS_SECONDS)
        marker.write("building")
        marker.flush()
        try:
            yield
        finally:
            marker.truncate(0)


@contextmanager
def _own_ninja() -> Iterator[None]:
    """Put the ninja of this environment first: another version would not know what this one built, and rebuild it."""
    path = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join(filter(None, (str(Path(sys.executable).parent), path)))
    try:
        yield
    finally:
        os.environ["PATH"] = path


def clear_locks(root: Path, killed: bool, wait_seconds: float) -> None:
    """Clear the locks of torch below ``root``, for which a build would wait silently and without end.

    ``killed``: our own build was killed and left the lock, which is removed. Otherwise it may be another program's:
    raises :class:`InputError` where it stays for ``wait_seconds``.
    """
    for lock in (root / op / "lock" for op in OPS):
        if killed:
            lock.unlink(missing_ok=True)
        patience = time.monotonic() + wait_seconds
        while lock.exists():
            if time.monotonic() > patience:
                raise InputError(f"{lock}: another program builds this, or was killed; wait for it, or remove the file")
            time.sleep(0.1)


if __name__ == "__main__":
    if not is_built():
        print("building async_io: about five minutes", flush=True)
    try:
        print(load_aio().__file__)
    except InputError as failure:
        sys.exit(f"error: {failure}")
