"""Writes the Python stubs of proto/ into the package `tandemserve`. Run by `make proto`.

The generator is pinned (`constraints.txt`), because its output refuses an older protobuf runtime.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
GENERATED_SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")
_TIMEOUT_S = 120.0


class StubsNotGenerated(RuntimeError):
    """The compiler refused the .proto files, or is not installed."""

    def __init__(self, said: str) -> None:
        super().__init__(f"protoc failed; correct proto/, or run `make install`:\n{said}")


def generate_stubs(destination: Path) -> list[Path]:
    """Compile every .proto file into `destination`; return what was written, sorted.

    Raises: StubsNotGenerated.
    """
    sources = sorted(path.relative_to(PROTO).as_posix() for path in PROTO.rglob("*.proto"))
    # The plugin lies beside the interpreter, whether or not the environment is activated.
    plugin = Path(sys.executable).parent / "protoc-gen-mypy_grpc"
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTO}"),
        *(f"--plugin=protoc-gen-mypy_grpc={plugin}",),
        *(f"--{kind}_out={destination}" for kind in ("python", "pyi", "grpc_python", "mypy_grpc")),
        *sources,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise StubsNotGenerated(done.stderr.strip())
    return generated_files(destination)


def generated_files(root: Path) -> list[Path]:
    """Every generated file below `root`, relative to it, sorted."""
    package = root / "tandemserve"
    return sorted(
        path.relative_to(root)
        for path in package.rglob("*_pb2*")
        if path.name.endswith(GENERATED_SUFFIXES)
    )


def main() -> int:
    """Replace the stubs of this checkout."""
    for path in generated_files(ROOT):
        (ROOT / path).unlink()
    try:
        written = generate_stubs(ROOT)
    except StubsNotGenerated as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write("".join(f"{path}\n" for path in written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
