#!/usr/bin/env python3
"""Runs llama-cpp-python's own tests on the drop-in, or with --itself on llama-cpp-python:

    upstream.py --sdist llama_cpp_python-0.3.36 --random build/release/tests/random_model [--itself] [pytest's arguments]

in an environment that holds pith, pytest and jinja2. --sdist is its source package, unpacked; python/tests/run.py makes
it, with a libllama.so for --itself. The tests fetch models from a hub. Here others stand for them: the default model for
those that write text, and random weights, which --random makes, of the architectures that the names say. What Qwen says
in two of the tests is replaced by what llama-cpp-python says with the default model, and a look at a class around llama.h
is left out.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import types

import numpy as np
import pytest

import pith
import pith.llama_cpp

# Of the hub's names, the architecture; None: the default model.
MODELS = {
    "Qwen3.5-0.8B-GGUF": None,
    "models": None,
    "mamba-130m-hf-GGUF": "mamba",
    "Falcon-H1-Tiny-90M-Instruct-GGUF": "falcon-h1",
    "bge-small-en-v1.5-gguf": "bert",
}
WORDS = {
    "assert llama._ctx.ctx is not None": "",  # the classes around llama.h are not there
    '" jumps over the lazy dog."': '" is a classic example of a"',
    "[9419, 11, 1814, 0]": "[19556, 28, 905, 17]",
}


def hub(random, folder):
    """In place of the package huggingface_hub."""

    def hf_hub_download(repo_id, filename):
        architecture = MODELS[repo_id.split("/")[1]]
        if architecture is None:
            return str(pith.default_model())
        path = folder / f"{architecture}.gguf"
        if not path.exists():
            subprocess.run([random, architecture, path], check=True, stdout=subprocess.DEVNULL)
        return str(path)

    module = types.ModuleType("huggingface_hub")
    module.hf_hub_download = hf_hub_download
    return module


def special_functions():
    """In place of SciPy, of which the tests want one function."""

    def log_softmax(x, axis=None):
        shifted = x - np.max(x, axis=axis, keepdims=True)
        return shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))

    module = types.ModuleType("scipy.special")
    module.log_softmax = log_softmax
    return module


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sdist", required=True, type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("--random", required=True, type=os.path.abspath)
    parser.add_argument("--itself", action="store_true")
    given, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for test in (given.sdist / "tests").glob("*.py"):
            text = test.read_text()
            for old, new in WORDS.items():
                text = text.replace(old, new)
            (folder / test.name).write_text(text)
        (folder / "vendor").symlink_to(given.sdist / "vendor")  # they name files in it
        sys.modules["huggingface_hub"] = hub(given.random, folder)
        sys.modules["scipy"] = types.ModuleType("scipy")
        sys.modules["scipy.special"] = special_functions()
        if given.itself:
            sys.path.insert(0, str(given.sdist))
        else:
            pith.llama_cpp.install()
        os.chdir(folder)
        sys.exit(pytest.main([".", "--import-mode=importlib", "-q", "-p", "no:cacheprovider", *options]))


if __name__ == "__main__":
    main()
