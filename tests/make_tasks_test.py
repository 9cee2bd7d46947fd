#!/usr/bin/env python3
"""scripts/make_tasks.py: the same arguments give the same tasks, and every task can be solved from its context."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCRIPT = os.path.join(ROOT, "scripts", "make_tasks.py")
WORDS = "river copper garden engine winter letter planet number harbour violin".split()
TEXT = " ".join(f"Chapter {i} tells how the {WORDS[i % 10]} of town number {i} came to stand beside the {WORDS[i * 7 % 10]}."
                for i in range(400))


def make(*arguments, text=TEXT):
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(text)
        file.flush()
        return subprocess.run([sys.executable, SCRIPT, "--haystack", file.name, *arguments], capture_output=True, text=True)


def tasks(*arguments):
    done = make(*arguments)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


class MakeTasks(unittest.TestCase):
    def test_deterministic_and_different(self):
        first = make("--per", "2").stdout
        self.assertEqual(first, make("--per", "2").stdout)
        self.assertNotEqual(first, make("--per", "2", "--split", "other").stdout)
        ids = [json.loads(line)["id"] for line in first.splitlines()]
        self.assertEqual(len(ids), len(set(ids)))
        self.assertEqual(len(ids), 10 * 2 * 2)

    def test_answers_are_in_the_context(self):
        for task in tasks("--lengths", "512,1024", "--per", "3"):
            with self.subTest(task["id"]):
                context = task.get("pinned_text", "") + task["context_text"] + task.get("long_text", "")
                size = len(context) / 4.2
                self.assertLess(abs(size - task["length"]) / task["length"], 0.25)
                self.assertTrue(task["target"].startswith(" ") and task["target"].strip())
                if task["task"] not in ("continuation", "long_text"):
                    self.assertIn(task["target"].strip(), context)
                    self.assertNotIn(task["target"].strip(), task["question_text"])
                else:
                    self.assertNotIn(task["target"].strip(), context)

    def test_templates(self):
        for template, mark in (("chatml", "<|im_start|>user"), ("gemma", "<start_of_turn>user"), ("none", "")):
            for task in tasks("--template", template, "--per", "1", "--lengths", "512"):
                self.assertIn(mark, task.get("pinned_text", "") + task["context_text"])
                self.assertEqual("<|im_" in json.dumps(task), template == "chatml")

    def test_refusals(self):
        for arguments, says in ((("--tasks", "nonsense"), "nonsense"), (("--lengths", "10"), "200"), (("--lengths", "x"), "x")):
            done = make(*arguments)
            self.assertEqual(done.returncode, 2)
            self.assertIn(says, done.stderr)
        self.assertIn("usable sentences", make(text="Too short a text.").stderr)

    def test_own_tasks_are_what_the_script_makes(self):
        prose = os.path.join(ROOT, "eval", "prose.txt")
        done = subprocess.run([sys.executable, SCRIPT, "--haystack", prose, "--lengths", "512,1024", "--per", "2", "--split", "own"],
                              capture_output=True, text=True)
        with open(os.path.join(ROOT, "eval", "tasks.jsonl"), encoding="utf-8") as file:
            self.assertEqual(done.stdout, file.read())


if __name__ == "__main__":
    unittest.main()
