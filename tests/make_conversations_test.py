#!/usr/bin/env python3
"""scripts/make_conversations.py: the same arguments give the same conversations, and each can be answered from itself."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

from make_tasks_test import ROOT, TEXT

SCRIPT = os.path.join(ROOT, "scripts", "make_conversations.py")


def make(*arguments):
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(TEXT)
        file.flush()
        return subprocess.run([sys.executable, SCRIPT, "--haystack", file.name, *arguments], capture_output=True, text=True)


class MakeConversations(unittest.TestCase):
    def test_deterministic_and_different(self):
        first = make("--per", "2").stdout
        self.assertEqual(first, make("--per", "2").stdout)
        self.assertNotEqual(first, make("--per", "2", "--split", "other").stdout)
        self.assertEqual(len(first.splitlines()), 5 * 2 * 2)

    def test_answers_are_in_the_early_turns(self):
        done = make("--turns", "8,16", "--per", "3")
        self.assertEqual(done.returncode, 0, done.stderr)
        for line in done.stdout.splitlines():
            item = json.loads(line)
            roles = [message["role"] for message in item["messages"]]
            self.assertEqual(roles, ["user", "assistant"] * (len(roles) // 2), item["id"])
            self.assertEqual(len(roles) // 2, int(item["id"].split("-")[2]))
            said = [message["content"] for message in item["messages"]]
            where = [i for i, text in enumerate(said) if item["target"].strip() in text]
            self.assertTrue(where, item["id"])
            if item["task"] == "recent":
                self.assertGreaterEqual(where[0], len(said) - 4)
            else:
                self.assertLess(where[0], 6)
                self.assertNotIn(item["target"].strip(), " ".join(said[-4:]), item["id"])

    def test_bad_arguments(self):
        for arguments in (("--kinds", "nosuch"), ("--turns", "x"), ("--turns", "2"), ("--haystack", "/nosuch")):
            done = make(*arguments)
            self.assertEqual(done.returncode, 2, done.stdout)
            self.assertIn("error:", done.stderr)


if __name__ == "__main__":
    unittest.main()
