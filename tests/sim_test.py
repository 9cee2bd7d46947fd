#!/usr/bin/env python3
"""`pith sim` and `pith sim train` on traces of scripts/make_traces.py.

PITH_BINARY: the program. PITH_TEST_PART=I/N: each N-th test alone, the I-th of them first.
"""
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

PITH = os.environ.get("PITH_BINARY", "build/release/pith")
PART, PARTS = (int(number) for number in os.environ.get("PITH_TEST_PART", "0/1").split("/"))
MAKE = pathlib.Path(__file__).parent.parent / "scripts" / "make_traces.py"


def make(kind, seed, requests, folder):
    path = os.path.join(folder, f"{kind}-{seed}.{'jsonl' if kind in ('prefix', 'chat') else 'csv'}")
    made = subprocess.run([sys.executable, str(MAKE), kind, str(seed), str(requests)], capture_output=True, check=True)
    pathlib.Path(path).write_bytes(made.stdout)
    return path


def sim(*arguments):
    return subprocess.run([PITH, "sim", *arguments], capture_output=True, text=True)


def ratios(trace, policies, capacity):
    run = sim("--trace", trace, "--policy", policies, "--capacity", capacity, "--json")
    assert run.returncode == 0, run.stderr
    return {row["policy"]: row["hit_ratio"] for row in json.loads(run.stdout)["rows"]}


class SimTrain(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.trap = make("trap", 7, 12000, cls.folder.name)
        cls.web = make("web-hard", 7, 4000, cls.folder.name)
        cls.chat = make("chat", 7, 400, cls.folder.name)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def setUp(self):
        if unittest.defaultTestLoader.getTestCaseNames(type(self)).index(self._testMethodName) % PARTS != PART:
            self.skipTest("of another part")

    def path(self, name):
        return os.path.join(self.folder.name, name)

    def train(self, *arguments):
        run = sim("train", *arguments)
        self.assertEqual(run.returncode, 0, run.stderr)
        return run

    def test_traces_are_the_same_bytes_everywhere(self):
        for kind, seed, requests, start in (("trap", 3, 4000, "e864612deedfb5a6"),
                                            ("trap-fixed", 3, 4000, "45cd6b2e8122934f"),
                                            ("web-hard", 3, 4000, "c9c8f908122296cb"),
                                            ("zipf-scan", 3, 4000, "e9644ba6f22dea31"),
                                            ("zipf-drift", 3, 4000, "757a5bee0e465be1"),
                                            ("prefix", 3, 500, "aaa46e24f1f5d1b7")):
            trace = pathlib.Path(make(kind, seed, requests, self.folder.name)).read_bytes()
            self.assertEqual(hashlib.sha256(trace).hexdigest()[:16], start, kind)

    def test_built_in_models_lead(self):
        hits = ratios(self.trap, "lru,gdsf,gdsf-admit,coldrl,learned,belady-size", "25MB")
        self.assertGreater(hits["learned"], max(hits["gdsf"], hits["gdsf-admit"]) + 0.02)
        self.assertGreater(hits["coldrl"], hits["lru"])
        self.assertLess(hits["learned"], hits["belady-size"])

    def test_each_is_trained_and_used(self):
        for policy, use in (("coldrl", "coldrl:model={}"), ("mark0", "mark0:bits=learned,model={}"),
                            ("mnp", "mnp:bits=learned,model={}"), ("learned", "learned:model={}")):
            out = self.path(f"{policy}.pithnet")
            sized = [] if policy == "learned" else ["--capacity", "25MB"]
            run = self.train("--policy", policy, "--trace", self.trap, "--steps", "1000", "--out", out, "--json", *sized)
            self.assertEqual(json.loads(run.stdout)["bytes"], os.path.getsize(out))
            self.assertFalse(os.path.exists(out + ".state"))
            hits = ratios(self.trap, "lru," + use.format(out), "25MB")
            self.assertGreater(list(hits.values())[1], 0.5 * hits["lru"], policy)

    def test_the_seed_fixes_the_file(self):
        files = []
        for seed in ("1", "1", "2"):
            out = self.path("seeded.pithnet")
            self.train("--policy", "learned", "--trace", f"{self.trap},{self.web}", "--steps", "600", "--seed", seed,
                       "--out", out)
            files.append(pathlib.Path(out).read_bytes())
        self.assertEqual(files[0], files[1])
        self.assertNotEqual(files[0], files[2])

    def test_a_stopped_training_goes_on(self):
        whole, out = self.path("whole.pithnet"), self.path("stopped.pithnet")
        arguments = ["--policy", "learned", "--trace", self.trap, "--steps", "20000", "--hidden", "48"]
        self.train(*arguments, "--out", whole)
        child = subprocess.Popen([PITH, "sim", "train", *arguments, "--out", out], stderr=subprocess.PIPE, text=True)
        time.sleep(0.5)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate()
        if child.returncode == 0:
            self.skipTest("the training was over before it could be stopped")
        self.assertEqual(child.returncode, 130, errors)
        self.assertFalse(os.path.exists(out))
        self.train(*arguments, "--out", out, "--resume")
        self.assertEqual(pathlib.Path(out).read_bytes(), pathlib.Path(whole).read_bytes())

    def test_a_sidecar_decides_and_takes_new_models(self):
        socket, model = self.path("evict.sock"), self.path("side.pithnet")
        self.train("--policy", "coldrl", "--trace", self.trap, "--capacity", "25MB", "--steps", "1000", "--out", model)
        asked = f"coldrl:sidecar={socket},deadline=1000000"
        child = subprocess.Popen([PITH, "sim", "sidecar", "--socket", socket, "--model", model],
                                 stderr=subprocess.PIPE, text=True)
        try:
            self.assertIn("answering on", child.stderr.readline())
            hits = ratios(self.trap, f"coldrl,coldrl:model={model},{asked}", "25MB")
            own = hits.pop("coldrl")
            first, *others = hits.values()
            self.assertEqual(others, [first])
            self.assertNotEqual(own, first)
            pathlib.Path(model).write_bytes(b"PITHNET1 but no more")
            self.assertIn("the old model goes on", child.stderr.readline())
            self.assertEqual(ratios(self.trap, asked, "25MB")[asked], first)
            self.train("--policy", "coldrl", "--trace", self.trap, "--capacity", "25MB", "--steps", "1000", "--seed", "2", "--out",
                       model)
            self.assertIn("a new model answers", child.stderr.readline())
            hits = ratios(self.trap, f"{asked},coldrl:model={model}", "25MB")
            self.assertEqual(len(set(hits.values())), 1)
            self.assertNotEqual(hits[asked], first)
            child.terminate()
            self.assertEqual(child.wait(), 0)
            self.assertIn("questions answered", child.stderr.read())
        finally:
            child.kill()
            child.wait()
            child.stderr.close()
        # Nobody answers: that is said.
        run = sim("--trace", self.trap, "--policy", f"coldrl:sidecar={socket}", "--capacity", "25MB")
        self.assertEqual((run.returncode, run.stderr.count("\n")), (0, 1), run.stderr)
        self.assertRegex(run.stderr, r"([\d,]+) of \1 questions had no answer, and the least recently used went")
        run = sim("sidecar", "--socket", "x" * 200)
        self.assertEqual((run.returncode, run.stderr.count("\n")), (2, 1))
        self.assertIn("--socket: a socket's path has 1 to 107 bytes", run.stderr)

    def test_mistakes_are_one_sentence(self):
        out = self.path("none.pithnet")
        for arguments, code, sentence in (
                (["--policy", "coldrl", "--trace", self.trap, "--out", out], 2,
                 "coldrl is trained for sizes of the cache: give --capacity"),
                (["--policy", "learned", "--trace", self.trap, "--capacity", "5", "--out", out], 2,
                 "learned knows no --capacity: it fits all sizes"),
                (["--policy", "learned", "--trace", self.trap, "--ttl", "--out", out], 2, "--ttl is for coldrl"),
                (["--policy", "learned", "--trace", self.chat, "--out", out], 1,
                 "learned needs no training for prompts: of them it learns as they pass"),
                (["--policy", "learned", "--trace", self.trap, "--out", "-"], 2,
                 "--out takes a file, not standard output"),
                (["--policy", "learned", "--trace", self.trap, "--out", out, "--resume"], 1, "none.pithnet.state"),
                (["--policy", "coldrl", "--trace", self.trap, "--capacity", "900GiB", "--out", out], 1,
                 "no cache of these sizes evicts anything from these traces"),
                (["--tracee", "x"], 2, "pith sim train has no option --tracee")):
            run = sim("train", *arguments)
            self.assertEqual(run.returncode, code, run.stderr)
            self.assertIn(sentence, run.stderr)
            self.assertEqual(run.stderr.count("\n"), 1, run.stderr)
        for policies in (",", ";"):
            run = sim("--trace", self.trap, "--policy", policies, "--capacity", "25MB")
            self.assertEqual((run.returncode, run.stderr.count("\n")), (2, 1), run.stderr)
            self.assertIn("--policy names no evictor", run.stderr)
        # What is wrong with the command is told before a trace is read.
        for policy, sentence in (("lru:k=3", 'lru has no parameter "k"'),
                                 ("lru,coldrl:k=99", "k=99 is no number between 2 and 32"),
                                 ("coldrl:rank=size", "rank=size is none of byte, object"),
                                 ("learned:rate", '"rate" is no parameter of the form name=value'),
                                 ("learned:guard=off,guard=on", "the parameter guard is given twice"),
                                 ("mark0:bits=some", "bits=some is none of perfect, learned, zero, one")):
            run = sim("--trace", self.path("absent.csv"), "--policy", policy, "--capacity", "25MB")
            self.assertEqual((run.returncode, run.stderr.count("\n")), (2, 1), run.stderr)
            self.assertIn(f"--policy: {sentence}", run.stderr)
        # "share" is a parameter of objects alone; what a trace or a file is unfit for is no mistake of the command.
        for trace, policy, code in ((self.trap, "learned:share=0.5", 0), (self.chat, "learned:share=0.5", 2),
                                    (self.trap, "arc", 1)):
            run = sim("--trace", trace, "--policy", policy, "--capacity", "1000")
            self.assertEqual(run.returncode, code, run.stderr)
        wrong = self.path("wrong.pithnet")
        pathlib.Path(wrong).write_bytes(b"PITHNET1 but no more")
        run = sim("--trace", self.trap, "--policy", f"coldrl:model={wrong}", "--capacity", "25MB")
        self.assertEqual(run.returncode, 1)
        self.assertIn("its checksum does not fit", run.stderr)


if __name__ == "__main__":
    unittest.main(argv=sys.argv)
