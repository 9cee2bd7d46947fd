#!/usr/bin/env python3
"""The programs of examples/ do what they say:  examples_test.py FOLDER"""
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

FOLDER = pathlib.Path(sys.argv.pop(1))
CACHE = pathlib.Path(os.environ.get("PITH_CACHE_DIR") or
                     pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "pith")
MODEL = pathlib.Path(os.environ.get("PITH_DEFAULT_MODEL") or CACHE / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf")


@unittest.skipUnless(MODEL.exists(), "the default model is not here; scripts/fetch_model.sh fetches it")
class Examples(unittest.TestCase):
    def run_example(self, name, *arguments, text=None):
        command = [FOLDER / name, *arguments]
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=600)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def test_generate_in_both_languages(self):
        texts = [self.run_example(name, MODEL, "Name three rivers of Europe.") for name in ("generate", "generate_c")]
        first = [text.split("\n[")[0] for text in texts]
        self.assertTrue(first[0].strip())
        self.assertEqual(first[0], first[1])

    def test_chat_goes_on_where_it_ended(self):
        with tempfile.TemporaryDirectory() as folder:
            session = os.path.join(folder, "talk")
            self.assertTrue(self.run_example("chat", MODEL, session, text="My name is Ann.\n\nHello!\n").strip())
            size = os.path.getsize(session)
            self.assertTrue(self.run_example("chat", MODEL, session, text="What is my name?\n").strip())
            self.assertGreater(os.path.getsize(session), size)

    def test_batch_of_eight_recipes(self):
        lines = self.run_example("batch", MODEL).splitlines()
        self.assertGreaterEqual(len(lines), 8)
        self.assertTrue(lines[0].startswith("full "))

    def test_policies_from_outside(self):
        self.assertIn("score=vatp:window=16 agg=max alloc=ada: ", self.run_example("policy", MODEL))
        self.assertIn("25% of the entries stay", self.run_example("policy_c", MODEL))

    def test_bad_usage_is_said(self):
        for name in ("generate", "generate_c", "chat", "batch", "policy", "policy_c"):
            done = subprocess.run([FOLDER / name], capture_output=True, text=True, timeout=60)
            self.assertEqual(done.returncode, 2)
            self.assertIn("usage: ", done.stderr)
        done = subprocess.run([FOLDER / "generate_c", "missing.gguf", "x"], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 1)
        self.assertTrue(done.stderr.startswith("not_found: "), done.stderr)


if __name__ == "__main__":
    unittest.main()
