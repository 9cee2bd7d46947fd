#!/usr/bin/env python3
"""Checks the direction of dependencies and that no test is left out of the build.

  scripts/check_layers.py [--compile-commands build/release/compile_commands.json]

- src/<layer>/ includes only itself and the layers to its left in LAYERS, beside
  include/pith/, which itself includes nothing of src/ (but may be used by all).
- llama.h, ggml*.h and gguf.h appear in src/host only.
- Every *_test.cc is compiled (with --compile-commands).
- Includes of pith's own headers name a file that exists.
"""
import argparse
import json
import pathlib
import re
import sys

LAYERS = ["base", "evict", "store", "kernels", "cache", "policy", "host", "engine", "session", "server", "lab", "cli"]
INCLUDE = re.compile(r'^\s*#\s*include\s+["<]([^">]+)[">]', re.M)
HOST_ONLY = re.compile(r"^(llama(-cpp)?|ggml[\w-]*|gguf)\.h$")
SUFFIXES = {".h", ".hpp", ".cc", ".inc"}


def files_below(folder):
    return sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES) if folder.is_dir() else []


def includes(path):
    return INCLUDE.findall(path.read_text(encoding="utf-8"))


def check_layer_file(root, path, errors):
    layer = path.relative_to(root / "src").parts[0]
    name = path.relative_to(root)
    if layer not in LAYERS:
        errors.append(f"{name}: src/{layer} is no layer; the layers are {' '.join(LAYERS)}")
        return
    for header in includes(path):
        first = header.split("/")[0]
        if HOST_ONLY.match(header) and layer != "host":
            errors.append(f"{name}: {header} belongs to src/host alone")
        elif "/" in header and first in LAYERS:
            if LAYERS.index(first) > LAYERS.index(layer):
                errors.append(f"{name}: {layer} must not include {header}, which lies above it")
            elif not (root / "src" / header).exists():
                errors.append(f"{name}: {header} does not exist")
        elif first == "pith" and not (root / "include" / header).exists():
            errors.append(f"{name}: {header} does not exist")


def check_public_header(root, path, errors):
    for header in includes(path):
        if header.split("/")[0] in LAYERS or HOST_ONLY.match(header):
            errors.append(f"{path.relative_to(root)}: a public header must not include {header}")


def check_tests_built(root, commands_file, errors):
    commands = json.loads(pathlib.Path(commands_file).read_text(encoding="utf-8"))
    compiled = {(pathlib.Path(entry["directory"]) / entry["file"]).resolve() for entry in commands}
    # Files that are compiled as one (cmake/PithUnity.cmake) are included by one that CMake writes.
    for path in [path for path in compiled if path.parent.name == "Unity" and path.exists()]:
        compiled |= {(path.parent / name).resolve() for name in includes(path)}
    for folder in ("src", "tests"):
        for path in files_below(root / folder):
            if path.name.endswith("_test.cc") and path.resolve() not in compiled:
                errors.append(f"{path.relative_to(root)}: a test that is not in the build")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent)
    parser.add_argument("--compile-commands", type=pathlib.Path)
    arguments = parser.parse_args()
    root, errors = arguments.root.resolve(), []
    for path in files_below(root / "src"):
        check_layer_file(root, path, errors)
    for path in files_below(root / "include"):
        check_public_header(root, path, errors)
    if arguments.compile_commands:
        check_tests_built(root, arguments.compile_commands, errors)
    for error in errors:
        print(error, file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
