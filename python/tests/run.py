#!/usr/bin/env python3
"""Installs the Python package into a virtual environment beside the build, once, and runs its tests:

    run.py --library build/release/libpith.so --binary build/release/pith --folder build/release/python [TEST...]

Packages come from PyPI; where the index cannot be reached the tests are skipped, and say so. Needs the default model.
"""

import argparse
import hashlib
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = ["scikit-build-core", "nanobind", "pytest", "numpy", "matplotlib", "pandas"]
# What real programs reach llama.cpp through.
FRAMEWORKS = ["langchain-community", "llama-index-core", "llama-index-llms-llama-cpp", "openai"]


def run(*command, **options):
    return subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def skip(why):
    print(f"[  SKIPPED ] {why}")
    sys.exit(0)


def stamp_of(*paths):
    total = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                total.update(str(file).encode())
                total.update(file.read_bytes())
    return total.hexdigest()


def install(folder, library):
    """The Python of an environment that holds pith and what its tests use."""
    python = folder / "venv" / "bin" / "python"
    done = folder / "venv" / ".tools"
    if not done.exists():
        made = run(sys.executable, "-m", "venv", folder / "venv")
        if made.returncode != 0:
            skip("there is no venv module: " + made.stdout.strip().splitlines()[-1])
        got = run(
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "llama-index-llms-llama-cpp",
        )
        if got.returncode == 0:
            wanted = [name for name in FRAMEWORKS if name != "llama-index-llms-llama-cpp"]
            got = run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *TOOLS, *wanted)
        if got.returncode != 0:
            skip("the packages cannot be installed: " + (got.stdout.strip().splitlines() or ["?"])[-1])
        done.touch()
    stamp = stamp_of(
        ROOT / "python" / "pith",
        ROOT / "python" / "src",
        ROOT / "python" / "CMakeLists.txt",
        ROOT / "pyproject.toml",
        ROOT / "include",
        library,
    )
    record = folder / "venv" / ".pith"
    if not record.exists() or record.read_text() != stamp:
        # By the environment, as older pips have other options for it.
        settings = {"SKBUILD_CMAKE_DEFINE": f"PITH_LIBRARY={library}", "SKBUILD_BUILD_DIR": str(folder / "build")}
        options = ["--quiet", "--disable-pip-version-check", "--no-build-isolation", "--no-deps", "--force-reinstall"]
        got = run(python, "-m", "pip", "install", *options, ROOT, env={**os.environ, **settings})
        if got.returncode != 0:
            print(got.stdout)
            sys.exit("the package could not be installed; what pip said is above")
        record.write_text(stamp)
    return python


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", required=True, type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("--binary", default="")
    parser.add_argument("--folder", required=True, type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("tests", nargs="*")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    python = install(given.folder, given.library)
    tests = given.tests or [str(ROOT / "python" / "tests")]
    # From another folder: the package must not be found in the source tree.
    done = subprocess.run(
        [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5", *tests],
        cwd=given.folder,
        env={**os.environ, "PITH_BINARY": given.binary and os.path.abspath(given.binary), "PYTHONFAULTHANDLER": "1"},
    )
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
