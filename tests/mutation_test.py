#!/usr/bin/env python3
"""500 damaged GGUF files: each gives one sentence and exit code 1, or loads and runs; none crashes, hangs or eats memory.

usage: PITH_BINARY=build/release/pith PITH_RANDOM_MODEL=build/release/tests/random_model mutation_test.py [MODEL.gguf ...]

Without files, small random models of several architectures with tokenizers of several kinds are made. Files given are
damaged in the same way, but for their weights: of the one copy on disk only what changes is written.

A run may take 10 s of processor time. Where it took longer by the clock, it is run once more: a busy machine is no
fault of the file, a wait that repeats itself is one.
PITH_MUTATIONS is the number in all, PITH_MUTATION_PART=K/N takes the part K of N of them, PITH_MUTATION_SEED begins
another series; a failure prints what repeats it, and PITH_MUTATION_KEEP names a folder for the files that failed.
"""
import concurrent.futures
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tests.support import gguf_mutations as gguf  # noqa: E402

BINARY = os.environ.get("PITH_BINARY", "build/release/pith")
MAKER = os.environ.get("PITH_RANDOM_MODEL", "build/release/tests/random_model")
MUTATIONS = int(os.environ.get("PITH_MUTATIONS", "500"))
SEED = int(os.environ.get("PITH_MUTATION_SEED", "1"))
PART, PARTS = (int(number) for number in os.environ.get("PITH_MUTATION_PART", "0/1").split("/"))
KEEP = os.environ.get("PITH_MUTATION_KEEP", "")
FILES = []

SECONDS = 10       # of processor time, and by the clock in one of two runs
WALL_SECONDS = 90  # then it is ended
NOISE_BYTES = 16 << 20  # what the same command's memory varies by

# Architecture and tokenizer: global attention, windows, recurrent state, latent attention with experts.
MODELS = [("llama", gguf.bpe_pairs), ("gemma3", gguf.spm_pairs), ("lfm2", gguf.bpe_pairs), ("deepseek2", gguf.spm_pairs),
          ("llama", None)]

COMMANDS = {"info": lambda path: ["info", path],
            "run": lambda path: ["run", "-m", path, "-p", "a tea is hot", "-n", "1", "-t", "1", "--temp", "0"]}


class Outcome:
    """How a command ended."""

    def __init__(self, arguments):
        start = time.monotonic()
        with tempfile.TemporaryFile() as error:
            process = subprocess.Popen([BINARY, *arguments], stdout=subprocess.DEVNULL, stderr=error,
                                       stdin=subprocess.DEVNULL, start_new_session=True)
            self.hung = not self.wait(process, start + WALL_SECONDS)
            self.seconds = time.monotonic() - start
            error.seek(0)
            self.error = error.read().decode(errors="replace")

    def wait(self, process, deadline):
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid != 0:
                break
            if time.monotonic() > deadline:
                os.killpg(process.pid, signal.SIGKILL)
                pid, status, usage = os.wait4(process.pid, 0)
                break
            time.sleep(0.002)
        process.returncode = self.code = os.waitstatus_to_exitcode(status)
        self.rss_bytes = usage.ru_maxrss * 1024
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
        return time.monotonic() <= deadline

    def fault(self, most_bytes):
        """What is wrong with it, or None."""
        if self.hung or self.cpu_seconds > SECONDS or self.seconds > SECONDS:
            return f"ran for {self.seconds:.1f} s, of which {self.cpu_seconds:.1f} s on the processor"
        if self.code not in (0, 1):
            return f"ended with {self.code}"
        if self.code == 1 and not re.fullmatch(r"pith: [^\n]+\.\n", self.error):
            return "did not say why in one sentence"
        if self.rss_bytes > most_bytes:
            return f"took {self.rss_bytes >> 20} MiB, where {most_bytes >> 20} MiB are allowed"
        return None


# Linux counts the memory of a process from that of the one that started it, and this one holds whole models: a process
# that was started before they were read starts the commands.
RUNNER = concurrent.futures.ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("fork"))


def outcome_of(arguments):
    return RUNNER.submit(run, arguments).result()


def run(arguments):
    first = Outcome(arguments)
    waited = first.seconds > SECONDS and first.cpu_seconds <= SECONDS and not first.hung
    return Outcome(arguments) if waited else first


class OneFile:
    """A file that holds one content after the other; only blocks that differ are written."""
    BLOCK = 1 << 20

    def __init__(self, path):
        self.path = path
        self.content = b""

    def hold(self, data):
        with open(self.path, "r+b" if self.content else "wb") as file:
            old, new = memoryview(self.content), memoryview(data)
            for at in range(0, len(data), self.BLOCK):
                if old[at:at + self.BLOCK] != new[at:at + self.BLOCK]:
                    file.seek(at)
                    file.write(new[at:at + self.BLOCK])
            file.truncate(len(data))
        self.content = bytes(data)
        return self.path


class Mutations(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        os.environ["PITH_CACHE_DIR"] = self.folder  # notes of files that were tried
        RUNNER.submit(int).result()
        self.mutated = OneFile(os.path.join(self.folder, "mutated.gguf"))

    def bases(self):
        for path in FILES:
            with open(path, "rb") as file:
                yield os.path.basename(path), bytearray(file.read())
        if FILES:
            return
        for architecture, pairs in MODELS:
            path = os.path.join(self.folder, "base.gguf")
            subprocess.run([MAKER, architecture, path, "3"], check=True)
            with open(path, "rb") as file:
                data = bytearray(file.read())
            yield architecture, gguf.with_tokenizer(data, pairs) if pairs else data

    def test_all(self):
        bases = list(self.bases())
        refused = ran = 0
        slowest = slowest_wall = 0
        for base_idx, (name, data) in enumerate(bases):
            layout = gguf.Layout(data)
            path = self.mutated.hold(data)
            most_bytes = {}
            for command, arguments in COMMANDS.items():
                valid = outcome_of(arguments(path))
                self.assertEqual(valid.code, 0, f"{name}, undamaged: {valid.error}")
                most_bytes[command] = valid.rss_bytes + 2 * len(data) + NOISE_BYTES
            for i in range(base_idx + PART * len(bases), MUTATIONS, PARTS * len(bases)):
                mutated, what = gguf.mutate(data, layout, random.Random(SEED * 1000003 + i),
                                              weights=not FILES)
                path = self.mutated.hold(mutated)
                for command, arguments in COMMANDS.items():
                    outcome = outcome_of(arguments(path))
                    refused += outcome.code == 1
                    ran += outcome.code == 0
                    slowest = max(slowest, outcome.cpu_seconds)
                    slowest_wall = max(slowest_wall, outcome.seconds)
                    fault = outcome.fault(most_bytes[command])
                    if fault is not None and KEEP:
                        shutil.copy(path, os.path.join(KEEP, f"{name}-{SEED}-{i}.gguf"))
                    with self.subTest(model=name, mutation=i, seed=SEED, what=what, command=command):
                        self.assertIsNone(fault, outcome.error[-2000:])
        num_mutations = (refused + ran) // len(COMMANDS)
        print(f"{num_mutations} mutations, {len(COMMANDS)} commands each: {refused} refused, {ran} loaded and ran; "
              f"slowest {slowest:.2f} s of processor time, {slowest_wall:.2f} s by the clock")
        # The mutator must neither miss nor leave nothing to load.
        self.assertGreaterEqual(num_mutations, MUTATIONS // (PARTS * len(bases)) * len(bases))
        self.assertGreater(refused, num_mutations * len(COMMANDS) // 4)
        self.assertGreater(ran, num_mutations * len(COMMANDS) // 20)


if __name__ == "__main__":
    FILES = [argument for argument in sys.argv[1:] if argument.endswith(".gguf")]
    unittest.main(argv=sys.argv[:1] + [argument for argument in sys.argv[1:] if argument not in FILES])
