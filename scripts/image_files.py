"""Makes the files of the image; runs inside the Dockerfile's stages, with nothing but Python's own library at hand.

packages: a virtual environment with what requirements.txt pins, without what Fleet Twin never loads, compiled. tools: what builds the
project's wheel. project: the project in that environment. What the image gets is put under /image, as the root that the last stage
copies. The wheels of a folder `wheels` in the build context lie beside this file; it then asks nothing of the network. Packages are
installed by hash and as wheels only: no code of a package runs here but the build backend's.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import py_compile
import shutil
import struct
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

HERE = Path(__file__).parent
HOME = Path("/opt/fleet-twin")
TOOLS = Path("/opt/tools")
IMAGE = Path("/image")

# Clients are made of these services alone, by the worker or by botocore on its way to credentials.
SERVICES = {"kinesis", "s3", "sts", "sso", "sso-oidc", "signin"}

# Of pyarrow, Parquet, CSV and IPC are used. Its other parts are optional to itself: it asks whether they are there.
NEVER_LOADED = [
    "pip",
    "pip-*.dist-info",
    "setuptools",
    "setuptools-*.dist-info",
    "pyarrow/include",
    "pyarrow/includes",
    "pyarrow/src",
    "pyarrow/tests",
    "pyarrow/**/*.pyx",
    "pyarrow/**/*.pxd",
    "pyarrow/**/*.pxi",
    "pyarrow/libarrow_flight.so.*",
    "pyarrow/_flight.*",
    "pyarrow/libarrow_s3.so.*",
    "pyarrow/_s3fs.*",
    "pyarrow/_pyarrow_cpp_tests.*",
    "pyarrow/libarrow_python_flight*",
    "pyarrow/libarrow_python.so",
    "pyarrow/libarrow_python.so.*.*",
    "pyarrow/libarrow_python_parquet_encryption.so",
    "pyarrow/libarrow_python_parquet_encryption.so.*.*",
    "numpy/**/tests",
    "numpy/f2py",
    "numpy/_core/include",
    "numpy/_core/lib",
    "numpy/random/lib",
    "uvloop/loop.c",
    "uvloop/**/*.pyx",
    "uvloop/**/*.pxd",
    "lmdb/tests",
    "numpy/distutils",
    "numpy/**/*.pyi",
    "aiohttp/**/*.pyx",
    "aiohttp/**/*.pxd",
    "kubernetes/aio",
    "kubernetes/client/api/*_api.py",
    "pygments/lexers/*.py",
]

# What the patterns above would take too much of.
LOADED = {
    "kubernetes/client/api/custom_objects_api.py",
    *(f"pygments/lexers/{name}.py" for name in ("__init__", "_mapping", "python", "special")),
}

# Of Python's own library, what a service never imports.
STDLIB_WITHOUT = {
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "turtledemo",
    "lib2to3",
    "ensurepip",
    "site-packages",
    "dist-packages",
}


def pip_command() -> list[str]:
    """pip, from a wheel beside this file where there is one: not every base image brings it."""
    wheels = sorted(HERE.glob("pip-*.whl"))
    if wheels:
        return [sys.executable, str(wheels[-1] / "pip")]
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    sys.exit("image_files: the base image has no pip, and the build context has no wheels/pip-*.whl")


def install(environment: Path, *arguments: str) -> None:
    source = ["--no-index", "--find-links", str(HERE)] if list(HERE.glob("*.whl")) else []
    subprocess.run(
        [
            *(*pip_command(), "--python", str(environment / "bin" / "python"), "install", "--quiet"),
            *("--disable-pip-version-check", "--no-cache-dir", "--no-compile", "--root-user-action", "ignore"),
            *(*source, *arguments),
        ],
        check=True,
    )


def install_pinned(environment: Path, requirements: str) -> None:
    venv.create(environment, with_pip=False, symlinks=True)
    install(environment, "--require-hashes", "--only-binary", ":all:", "--requirement", str(HERE / requirements))


def site_packages(home: Path) -> Path:
    (folder,) = (home / "lib").glob("python3.*/site-packages")
    return folder


def strip(folder: Path) -> None:
    for pattern in NEVER_LOADED:
        for found in glob.glob(pattern, root_dir=folder, recursive=True):
            path = folder / found
            if path.is_dir():
                shutil.rmtree(path)
            elif path.exists() and found not in LOADED:
                path.unlink()
    for service in (folder / "botocore" / "data").iterdir():
        if service.is_dir() and service.name not in SERVICES:
            shutil.rmtree(service)


def cut_symbols(folder: Path) -> None:
    """Off shared libraries, what lies behind the last byte that is ever loaded: symbol tables and debug information, tens of megabytes
    in some wheels. That is all that a loader reads; who wants to debug one takes the wheel's own file."""
    for path in sorted(folder.rglob("*.so*")):
        with path.open("r+b") as file:
            head = file.read(64)
            if head[:6] != b"\x7fELF\x02\x01":  # 64 bits, little-endian
                continue
            table, sections = struct.unpack_from("<QQ", head, 32)
            entry_size, entries = struct.unpack_from("<HH", head, 54)
            end = table + entry_size * entries
            for number in range(entries):
                file.seek(table + entry_size * number)
                _, _, offset, _, _, size = struct.unpack_from("<IIQQQQ", file.read(entry_size))
                end = max(end, offset + size)
            if sections < end:  # something that is loaded lies behind the table of sections: left as it is
                continue
            file.seek(40)
            file.write(bytes(8))  # where the table of sections is
            file.seek(58)
            file.write(struct.pack("<HHH", 64, 0, 0))  # how large, how many, and which of them names the others
            file.truncate(end)


def compile_files(root: Path, folder: Path, mode: py_compile.PycInvalidationMode) -> None:
    """Bytecode for every module of the folder; it names them as they will be called once `root` is the root."""
    for source in sorted(folder.rglob("*.py")):
        name = "/" / source.relative_to(root)
        try:
            py_compile.compile(str(source), dfile=str(name), doraise=True, invalidation_mode=mode, quiet=1)
        except py_compile.PyCompileError as error:  # a template, or a test's broken file: nobody imports those
            print(f"image_files: no bytecode for {name}: {error.exc_type_name}", file=sys.stderr)


def compile_standard_library() -> None:
    """Official Python images come without its bytecode, and a read-only root would have every start compile it anew."""
    library = Path(sysconfig.get_path("stdlib"))
    for folder, folders, files in os.walk(library):
        folders[:] = sorted(set(folders) - STDLIB_WITHOUT - {"__pycache__"})
        for name in files:
            source = Path(folder) / name
            if source.suffix != ".py":
                continue
            cached = Path(importlib.util.cache_from_source(str(source)))
            if not cached.exists():
                target = IMAGE / cached.relative_to("/")
                # By time, as Python does itself: whoever mends a file of the base gets what it says.
                py_compile.compile(str(source), str(target), doraise=True)


def packages() -> None:
    install_pinned(HOME, "requirements.txt")
    strip(site_packages(HOME))
    cut_symbols(site_packages(HOME))
    compile_files(Path("/"), HOME, py_compile.PycInvalidationMode.UNCHECKED_HASH)
    shutil.copytree(HOME, IMAGE / HOME.relative_to("/"), symlinks=True)
    compile_standard_library()


def tools() -> None:
    install_pinned(TOOLS, "requirements-build.txt")


def project() -> None:
    """Only what the project adds goes under /image: its packages are a layer that an edit of the code leaves alone."""
    shutil.rmtree(IMAGE)
    subprocess.run(
        [str(TOOLS / "bin" / "hatchling"), "build", "--target", "wheel", "--directory", str(HERE / "made")],
        cwd=HERE / "project",
        check=True,
    )
    # By its name: given as a file, pip would note down where it was.
    found = ["--no-index", "--find-links", str(HERE / "made")]
    install(HOME, "--no-deps", *found, "--root", str(IMAGE), "--prefix", str(HOME), "fleet-twin")
    compile_files(IMAGE, site_packages(IMAGE / HOME.relative_to("/")), py_compile.PycInvalidationMode.UNCHECKED_HASH)


if __name__ == "__main__":
    {"packages": packages, "tools": tools, "project": project}[sys.argv[1]]()
