"""Files of cpp/ as libraries for this CPU: compiled once, and kept for the processes to come."""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

from mbs_ray.errors import one_line
from mbs_ray.files import appearing

_log = logging.getLogger(__name__)

_SOURCES = Path(__file__).with_name("cpp")
_TYPES = {torch.float32: "float", torch.bfloat16: "c10::BFloat16", torch.float16: "c10::Half"}
#: Products and sums are not fused: they round where torch rounds.
_FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fopenmp",
    "-shared", "-fPIC", "-Wl,--as-needed",
)  # fmt: skip
#: Said once in a process, with the reason.
WITHOUT_KERNEL = "columns are solved without a kernel of their own, several times slower: %s"
_WITHOUT = {
    "kernels.cpp": WITHOUT_KERNEL,
    "moments.cpp": "second moments are summed without this CPU's matrix units, at half the speed: %s",
}
#: What -march=native looks at, of the first processor.
_OF_CPU = ("model name", "flags", "Features", "CPU implementer", "CPU part")
_DIGEST = hashlib.sha256().digest_size


@functools.cache
def cpu_library(source: str, dtype: torch.dtype) -> ctypes.CDLL | None:
    """Load a file of cpp/ as compiled for numbers of a dtype, which takes 2 s the first time that this CPU needs it.

    None where nothing compiles, with a warning of one line.
    """
    try:
        command, openmp = compiler(), _loaded_openmp()
        folder = _kept_folder()
        kept = None if folder is None else folder / f"{Path(source).stem}-{_key(command, dtype, openmp)}.so"
        if kept is not None and _is_whole(kept):
            with suppress(OSError):  # of a file system from which nothing may be executed
                return ctypes.CDLL(str(kept))
        include = Path(torch.__file__).parent / "include"
        given = (f"-DSTORED={_TYPES[dtype]}", f"-I{include}", str(_SOURCES / source), *openmp)
        with tempfile.TemporaryDirectory() as place:
            built = Path(place, "library.so")
            subprocess.run(
                [*command, *_FLAGS, *given, "-o", str(built)],
                capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=300,
            )  # fmt: skip
            library = ctypes.CDLL(str(built))
            if kept is not None:
                _keep(built.read_bytes(), kept)
            return library
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = OSError(error.stderr) if isinstance(error, subprocess.CalledProcessError) else error
        _log.warning(_WITHOUT[source], one_line(said))
        return None


def compiler() -> list[str]:
    """Return the command of the C++ compiler: the environment's ``CXX``, or the first there is.

    Raises OSError or ValueError where that is no command.
    """
    command = shlex.split(os.environ.get("CXX") or next(filter(shutil.which, ("g++", "c++")), "g++"))
    if not command or shutil.which(command[0]) is None:
        raise FileNotFoundError(f"there is no {command[0] if command else 'CXX'}; install g++, or set CXX")
    return command


def _kept_folder() -> Path | None:
    """Return the folder of what was compiled, ``mbs_ray`` in the user's cache; None where others may write into it."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        folder = (given if given.is_absolute() else Path.home() / ".cache") / "mbs_ray"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder if _is_own(folder) else None
    except (OSError, RuntimeError):  # no home
        return None


def _key(command: list[str], dtype: torch.dtype, openmp: list[str]) -> str:
    """Digest all that the library depends on: one home may be that of many CPUs, and of several versions."""
    found = Path(shutil.which(command[0]) or command[0]).resolve()
    of_compiler = (str(found), found.stat().st_size, found.stat().st_mtime_ns)
    file = Path("/proc/cpuinfo")
    cpu = file.read_text(errors="replace").split("\n\n")[0].splitlines() if file.exists() else [platform.processor()]
    of_cpu = [line for line in cpu if line.startswith(_OF_CPU)] or cpu
    said = [command, of_compiler, _FLAGS, str(dtype), torch.__version__, [Path(one).name for one in openmp], of_cpu]
    digest = hashlib.sha256(repr(said).encode())
    for source in sorted(_SOURCES.iterdir()):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:32]


def _keep(content: bytes, kept: Path) -> None:
    """Write a library for later processes, its digest behind it; nothing where that fails."""
    with suppress(OSError), appearing(kept) as unfinished:
        unfinished.write_bytes(content + hashlib.sha256(content).digest())
        unfinished.chmod(0o700)


def _is_whole(kept: Path) -> bool:
    """Check the digest of a library, and that nobody else may have written it: what is cut off ends a process."""
    try:
        content = kept.read_bytes()
        return _is_own(kept) and hashlib.sha256(content[:-_DIGEST]).digest() == content[-_DIGEST:]
    except OSError:
        return False


def _is_own(path: Path) -> bool:
    """Check that a file or folder is this user's, and that nobody else may write to it."""
    status = path.stat()
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def _loaded_openmp() -> list[str]:
    """Return the file of the OpenMP that torch has loaded: threads of another one would wait for those, which spin."""
    maps, own = Path("/proc/self/maps"), str(Path(torch.__file__).parent)
    lines = maps.read_text(errors="replace").splitlines() if maps.exists() else []
    files = {line.split(maxsplit=5)[5] for line in lines if "/" in line}
    found = [file for file in files if re.match(r"lib(gomp|iomp5|omp)\b", Path(file).name)]
    return sorted(found, key=lambda file: (not file.startswith(own), file))[:1]
