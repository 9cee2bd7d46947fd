#!/usr/bin/env python3
r"""Installs the Python package into a virtual environment beside the build, once, and runs its tests:

    run.py --library build/release/libpith.so --binary build/release/pith --folder build/release/python [--tests ...]
    run.py ... --packages @python/tests/frameworks/packages.txt --tests python/tests/frameworks
    run.py --prepare --folder build/release/python --packages @...    only fetches and installs what the tests need
    CXXFLAGS=-fsanitize=address,undefined LDFLAGS=-fsanitize=address,undefined run.py --library build/asan/libpith.so \
        --folder build/asan/python --preload "$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libubsan.so)"

The library with sanitizers is built when asked for (ninja -C build/asan libpith). Where PITH_TEST_TURN is set, commits
take turns: with --small MODEL a quarter of the tests has the default model and the others that one, with --half every
second test is run.

Without tests it runs those of this folder, which need NumPy alone. It takes what a plain Debian has: no ensurepip, and
Python.h, where it is missing, from its package without installing that. Packages come from PyPI; where the index cannot
be reached the tests are skipped, and say so. Needs the default model.
"""

import argparse
import hashlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = ["scikit-build-core", "nanobind", "pytest", "numpy"]
# These want, by their metadata, what the drop-in stands for: it would be built from source.
WITHOUT_DEPENDENCIES = ["llama-index-llms-llama-cpp"]


def run(*command, **options):
    return subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def skip(why):
    print(f"[  SKIPPED ] {why}")
    sys.exit(0)


def last_line(text):
    return (text.strip().splitlines() or ["it said nothing"])[-1].strip()


def stamp_of(*paths):
    total = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                total.update(str(file).encode())
                total.update(file.read_bytes())
    return total.hexdigest()


class Environment:
    """A virtual environment, and a pip for it."""

    def __init__(self, folder):
        self.folder = folder / "venv"
        self.python = self.folder / "bin" / "python"
        self.variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        said = run(sys.executable, "-m", "pip", "--version").stdout
        found = re.match(r"pip (\d+)\.(\d+)", said)
        # Since 22.3 a pip from outside can install into an environment that has none.
        from_outside = found is not None and (int(found[1]), int(found[2])) >= (22, 3)
        self.pip = [sys.executable, "-m", "pip", "--python", self.python] if from_outside else [self.python, "-m", "pip"]
        if not (self.folder / "pyvenv.cfg").exists():
            made = run(sys.executable, "-m", "venv", *["--without-pip"] * from_outside, self.folder)
            if made.returncode != 0:
                skip(f"there is no virtual environment, as {last_line(made.stdout)} and {last_line(said)}")

    def install(self, *what, **variables):
        return run(*self.pip, "install", "--quiet", "--disable-pip-version-check", "--no-compile", *what,
                   env={**self.variables, **variables})  # fmt: skip

    def once(self, name, stamp, action):
        record = self.folder / f".{name}"
        if not record.exists() or record.read_text() != stamp:
            action()
            record.write_text(stamp)

    def install_from_index(self, name, packages):
        """Packages that are skipped for where they cannot be had."""

        def action():
            alone = [one for one in packages if one in WITHOUT_DEPENDENCIES]
            got = self.install(*[one for one in packages if one not in alone])
            if got.returncode == 0 and alone:
                got = self.install("--no-deps", *alone)
            if got.returncode != 0:
                skip("the packages cannot be installed: " + last_line(got.stdout))

        self.once(name, " ".join(packages), action)


def headers(folder):
    """Where Python.h is unpacked, with variables for compilers; nothing where it is installed."""
    if (pathlib.Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return None, {}
    version = "python{}.{}".format(*sys.version_info)
    include = folder / "headers" / "usr" / "include"
    if not (include / version / "Python.h").exists():
        (folder / "headers").mkdir(exist_ok=True)
        try:
            got = run("apt-get", "-qq", "download", f"lib{version}-dev", cwd=folder / "headers")
            for package in (folder / "headers").glob("*.deb"):
                got = run("dpkg", "-x", package, folder / "headers")
        except FileNotFoundError:
            skip("Python.h is not installed (python3-dev)")
        if not (include / version / "Python.h").exists():
            skip("Python.h is not installed (python3-dev) and cannot be fetched: " + last_line(got.stdout))
    return include / version, {"CPATH": str(include)}


def install_pith(environment, folder, library):
    sources = ("python/pith", "python/src", "python/CMakeLists.txt", "pyproject.toml", "include")
    stamp = stamp_of(*(ROOT / name for name in sources), library)

    def action():
        include, variables = headers(folder)
        defines = [f"PITH_LIBRARY={library}"] + [f"Python_INCLUDE_DIR={include}"] * bool(include)
        # By the environment, as older pips have other options for it.
        variables.update(SKBUILD_CMAKE_DEFINE=";".join(defines), SKBUILD_BUILD_DIR=str(folder / "build"))
        got = environment.install("--no-build-isolation", "--no-deps", "--force-reinstall", ROOT, **variables)
        if got.returncode != 0:
            errors = re.findall(r"^.*(?:\berror:|CMake Error|ERROR|Error:).*$", got.stdout, re.MULTILINE)
            print("the package could not be installed:", *(errors[:3] or [last_line(got.stdout)]), sep="\n  ")
            print(f"what pip said:\n{got.stdout}")
            sys.exit(1)

    environment.once("pith", stamp, action)


def llama_cpp_sdist(folder):
    """llama-cpp-python's source package, of the version that pith's libllama is of."""
    script = (ROOT / "scripts" / "build_llama.sh").read_text()
    version = re.search(r"kVersion=([0-9.]+)", script)[1]
    sdist = folder / f"llama_cpp_python-{version}.tar.gz"
    if not sdist.exists():
        wanted = f"--no-binary llama-cpp-python llama-cpp-python=={version}"
        fetch = f'source scripts/common.sh; pip_download "{folder}" "llama-cpp-python" 77 {wanted}'
        got = run("bash", "-c", fetch, cwd=ROOT)
        if got.returncode != 0:
            skip("llama-cpp-python cannot be fetched: " + last_line(got.stdout))
    return sdist


def llama_cpp_python(folder, prefix):
    """It, unpacked, over a libllama.so of the archives that pith is built with."""
    sdist = llama_cpp_sdist(folder)
    target = folder / sdist.name.removesuffix(".tar.gz")
    library = target / "llama_cpp" / "lib" / "libllama.so"
    if library.exists() and library.stat().st_mtime > (prefix / "lib" / "libllama.a").stat().st_mtime:
        return target
    with tarfile.open(sdist) as package:
        parts = ("llama_cpp", "tests", "vendor/llama.cpp/models/ggml-vocab-llama-spm.gguf")
        whole = [one for one in package if one.name.partition("/")[2].startswith(parts)]
        package.extractall(folder, whole)
    library.parent.mkdir(exist_ok=True)
    archives = [prefix / "lib" / f"lib{name}.a" for name in ("llama", "ggml", "ggml-cpu", "ggml-base")]
    got = run("c++", "-shared", "-o", library, "-Wl,--whole-archive", *archives, "-Wl,--no-whole-archive",
              "-lgomp", "-lpthread", "-ldl", "-lm")  # fmt: skip
    if got.returncode != 0:
        sys.exit(f"libllama.so could not be linked: {last_line(got.stdout)}")
    for name in ("ggml", "ggml-base", "mtmd"):
        link = library.parent / f"lib{name}.so"
        link.unlink(missing_ok=True)
        link.symlink_to(library.name)
    return target


def run_tests(environment, given, tests, turn=""):
    """turn: what of them, as conftest.py has it; all if empty."""
    log = given.folder / f"{given.name}{turn and '_' + turn}.log"
    command = [environment.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5", "-rfE"]
    command += ["--confcutdir", ROOT / "python" / "tests", *tests]
    variables = {
        **environment.variables,
        "PITH_BINARY": given.binary and os.path.abspath(given.binary),
        "PYTHONFAULTHANDLER": "1",
        "MPLBACKEND": "Agg",
        "PITH_RANDOM_MODEL": given.random and os.path.abspath(given.random),
        "PITH_TEST_PASS": turn,
    }
    if turn == "small":
        variables["PITH_DEFAULT_MODEL"] = os.path.abspath(given.small)
    if given.preload:
        variables["LD_PRELOAD"] = given.preload
        # Leaks would be Python's own; freed memory that is kept for reports would look like some.
        variables.setdefault("ASAN_OPTIONS", "detect_leaks=0:quarantine_size_mb=1")
    if given.llama is not None:
        variables["PITH_LLAMA_CPP"] = str(llama_cpp_python(given.folder, given.llama))
    with open(log, "w") as out:
        try:
            # From another folder: the package must not be found in the source tree.
            done = subprocess.run(
                [str(part) for part in command], cwd=given.folder, env=variables, stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT, timeout=given.seconds,
            )  # fmt: skip
            code = done.returncode
        except subprocess.TimeoutExpired:
            code = None
    said = log.read_text(errors="replace")
    if code is None:
        print(f"the tests did not end within {given.seconds} seconds; what they had said:")
    elif code != 0:
        failed = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR", "Fatal Python error"))]
        print(f"pytest ended with {code}:", *(failed or [last_line(said)]), sep="\n  ")
    print(said)
    return 1 if code is None else code


def main():
    parser = argparse.ArgumentParser(fromfile_prefix_chars="@")
    parser.add_argument("--library", type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("--binary", default="")
    parser.add_argument("--folder", required=True, type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("--packages", nargs="*", default=[], help="what these tests need beside NumPy")
    parser.add_argument("--llama", type=pathlib.Path, help="pith's libllama, for tests beside llama-cpp-python")
    parser.add_argument("--random", default="", help="the tool random_model, for the same")
    parser.add_argument("--preload", default="", help="libraries that the tests' Python needs, such as libasan")
    parser.add_argument("--tests", nargs="*", default=[])
    parser.add_argument("--small", default="", help="a model like the default one whose products are small")
    parser.add_argument("--half", action="store_true", help="every second test, in turns")
    parser.add_argument("--name", default="package", help="of these tests' log")
    parser.add_argument("--prepare", action="store_true", help="run nothing: fetch and install what tests need")
    parser.add_argument("--seconds", type=int, default=900)
    given = parser.parse_args()
    # Where Ctrl-C is ignored, as in what a shell started in the background, every program below would ignore it, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    given.folder.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    environment = Environment(given.folder)
    environment.install_from_index("tools", TOOLS)
    if given.packages:
        environment.install_from_index(given.name, given.packages)
    if given.prepare:
        headers(given.folder)
        llama_cpp_sdist(given.folder)
        return
    install_pith(environment, given.folder, given.library)
    print(f"installed in {time.monotonic() - begin:.0f} s", flush=True)
    tests = given.tests or sorted((ROOT / "python" / "tests").glob("test_*.py"))
    passes = [""]
    if os.environ.get("PITH_TEST_TURN"):
        passes = ["default", "small"] if given.small else ["half"] if given.half else [""]
    codes = [run_tests(environment, given, [os.path.abspath(test) for test in tests], turn) for turn in passes]
    sys.exit(next((code for code in codes if code != 0), 0))


if __name__ == "__main__":
    main()
