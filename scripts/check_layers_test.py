#!/usr/bin/env python3
"""check_layers.py names each kind of violation and passes a clean tree."""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).with_name("check_layers.py")


def run(files, compiled=None):
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        command = [sys.executable, SCRIPT, "--root", root]
        if compiled is not None:
            commands = root / "compile_commands.json"
            commands.write_text(json.dumps([{"directory": str(root), "file": name} for name in compiled]))
            command += ["--compile-commands", commands]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr


class CheckLayersTest(unittest.TestCase):
    CLEAN = {
        "include/pith/types.h": "#include <string>\n",
        "src/base/check.h": "#include <cstdio>\n",
        "src/host/model.cc": '#include "base/check.h"\n#include <llama.h>\n#include "pith/types.h"\n',
    }

    def check_error(self, files, expected, compiled=None):
        code, errors = run(self.CLEAN | files, compiled)
        self.assertEqual(code, 1)
        self.assertEqual(len(errors.splitlines()), 1, errors)
        self.assertIn(expected, errors)

    def test_clean(self):
        self.assertEqual(run(self.CLEAN), (0, ""))

    def test_upward_include(self):
        self.check_error({"src/base/x.cc": '#include "host/model.cc"\n'}, "lies above it")

    def test_llama_outside_host(self):
        self.check_error({"src/engine/x.cc": '#include "ggml-cpu.h"\n'}, "belongs to src/host alone")

    def test_unknown_layer(self):
        self.check_error({"src/misc/x.cc": ""}, "is no layer")

    def test_missing_header(self):
        self.check_error({"src/base/x.cc": '#include "base/none.h"\n'}, "does not exist")

    def test_public_header_looks_inside(self):
        self.check_error({"include/pith/x.h": '#include "base/check.h"\n'}, "public header")

    def test_test_outside_the_build(self):
        files = {"src/base/a_test.cc": "", "src/base/b_test.cc": ""}
        self.check_error(files, "src/base/b_test.cc", compiled=["src/base/a_test.cc"])
        files["build/Unity/unity_0_cxx.cxx"] = '#include "../../src/base/a_test.cc"\n'
        self.check_error(files, "src/base/b_test.cc", compiled=["build/Unity/unity_0_cxx.cxx"])


if __name__ == "__main__":
    unittest.main()
