#!/usr/bin/env python3
"""pith chat: its commands from a pipe, and what a terminal gets, by a pseudo-terminal.

usage: PITH_BINARY=build/release/pith [PITH_TEST_MODEL=model.gguf] chat_test.py [-v] [Class[.test]]
"""
import json
import os
import pty
import random
import re
import select
import subprocess
import termios
import time
import unittest

import cli_test
from cli_test import BINARY, info, model_flags, pith


class ChatCase(cli_test.ModelCase):
    def setUp(self):
        super().setUp()
        if not info()["chat_template"]:
            self.skipTest("the model has no chat template")

    def path(self, name):
        return os.path.join(self.folder, name)

    def chat(self, *lines, flags=(), n=6, c=1024, code=0):
        text = "".join(line + "\n" for line in lines).encode()
        done = pith("chat", *model_flags(), "--temp", "0", "-n", str(n), "-c", str(c), *flags, text=text)
        self.assertEqual(done.returncode, code, done.stderr.decode())
        return done

    @staticmethod
    def reads(done):
        """Tokens that each turn has read."""
        return [int(n) for n in re.findall(rb"^\[(\d+) read", done.stderr, re.M)]


class Commands(ChatCase):
    def test_help_lists_what_there_is(self):
        error = self.chat("/help").stderr.decode()
        for name in ("/budget", "/recipe", "/cache", "/pin", "/undo", "/edit", "/save", "/load", "/reset", "/exit"):
            self.assertIn(name, error)
        self.assertIn("/nosuch is no command", self.chat("/nosuch").stderr.decode())
        self.assertEqual(len(self.reads(self.chat("/usr/bin is a path, 1/2 a number"))), 1)

    def test_a_first_message_and_no_other(self):
        typed = self.chat("My name is Ann.", "What is my name?")
        given = self.chat("What is my name?", flags=("-p", "My name is Ann."))
        self.assertEqual(typed.stdout, given.stdout)
        one = self.chat("What is my name?", flags=("-st", "-p", "My name is Ann."))
        self.assertEqual(len(self.reads(one)), 1)
        self.assertTrue(typed.stdout.startswith(one.stdout.rstrip()) and one.stdout != typed.stdout)

    def test_undo_is_as_if_it_was_never_said(self):
        plain = self.chat("My name is Ann.", "What is my name?")
        undone = self.chat("My name is Ann.", "I like tea.", "/undo", "What is my name?")
        self.assertEqual(plain.stdout.splitlines()[-1], undone.stdout.splitlines()[-1])
        self.assertEqual(self.reads(plain)[-1], self.reads(undone)[-1])
        first = self.chat("Hello", "/undo", "My name is Ann.", "What is my name?")
        self.assertTrue(first.stdout.endswith(plain.stdout))
        self.assertIn(b"no message to take back", self.chat("/undo").stderr)
        twice = self.chat("My name is Ann.", "I like tea.", "I like rain.", "/undo", "/undo", "What is my name?")
        self.assertEqual(plain.stdout.splitlines()[-1], twice.stdout.splitlines()[-1])

    @cli_test.of_the_default_model
    def test_undo_of_a_recipe_that_cannot_go_back(self):
        """h2o counts what every query paid: what is left is read again."""
        flags = ("--recipe", "h2o", "--kv-budget", "100%")
        plain = self.chat("My name is Ann.", "What is my name?", flags=flags)
        undone = self.chat("My name is Ann.", "I like tea.", "/undo", "What is my name?", flags=flags)
        self.assertEqual(plain.stdout.splitlines()[-1], undone.stdout.splitlines()[-1])

    def test_edit_says_it_anew(self):
        plain = self.chat("My name is Ann.", "What is my name?")
        edited = self.chat("My name is Ann.", "What is it?", "/edit What is my name?")
        self.assertEqual(plain.stdout.splitlines()[-1], edited.stdout.splitlines()[-1])
        shown = self.chat("My name is Ann.", "/edit")
        self.assertIn(b"taken back: My name is Ann.", shown.stderr)

    def test_save_and_load(self):
        path = self.path("talk")
        whole = self.chat("My name is Ann.", "What is my name?")
        self.chat("My name is Ann.", f"/save {path}")
        loaded = self.chat("Something else.", f"/load {path}", "What is my name?")
        self.assertEqual(whole.stdout.splitlines()[-1], loaded.stdout.splitlines()[-1])
        # What was loaded can be taken back, too.
        undone = self.chat(f"/load {path}", "/undo", "My name is Ann.", "What is my name?")
        self.assertEqual(undone.stdout, whole.stdout)
        for line in ("/save", "/load", "/save /nosuch/file", "/load /nosuch/file", f"/load {self.write('x', b'damaged')}"):
            with self.subTest(line=line):
                done = self.chat("My name is Ann.", line, "What is my name?")
                self.assertRegex(done.stderr.decode(), r"(?m)^pith: [^\n]+\.$")
                self.assertEqual(len(self.reads(done)), 2)

    def test_a_file_that_cannot_be_loaded_leaves_the_conversation(self):
        whole = self.chat("My name is Ann.", "What is my name?")
        path = self.path("talk")
        self.chat("My name is Ann.", f"/save {path}")
        with open(path, "rb") as talk:
            short = self.write("short", talk.read()[:-100])
        for file in (self.write("x", b"damaged"), self.write("none", b""), short):
            with self.subTest(file=file):
                done = self.chat("My name is Ann.", f"/load {file}", "What is my name?")
                self.assertRegex(done.stderr.decode(), r"(?m)^pith: [^\n]+\.$")
                self.assertEqual(done.stdout, whole.stdout)
                self.assertEqual(self.reads(done), self.reads(whole))
        undone = self.chat("My name is Ann.", "I like tea.", f"/load {short}", "/undo", "What is my name?")
        self.assertEqual(undone.stdout.splitlines()[-1], whole.stdout.splitlines()[-1])

    @cli_test.of_the_default_model
    def test_budget_and_recipe_change_in_place(self):
        plain = self.chat("My name is Ann.", "What is my name?", flags=("--recipe", "full"))
        for line in ("/budget 64MiB", "/recipe keydiff", "/recipe flowkv", "/recipe pith turns=flowkv:drop=0.1"):
            with self.subTest(line=line):
                done = self.chat("My name is Ann.", line, "What is my name?", flags=("--recipe", "full"))
                self.assertEqual(len(self.reads(done)), 2)
                # Nothing is dropped yet, or hardly anything.
                if "flowkv" not in line:
                    self.assertEqual(plain.stdout.splitlines()[-1], done.stdout.splitlines()[-1])
        error = self.chat("/budget", "/recipe", "/budget 2x", "/recipe nosuch", "/recipe kvzip", "/budget 1KiB",
                          "Hello").stderr.decode()
        self.assertIn("in use", error)
        self.assertIn("\npith\n", "\n" + error)
        self.assertIn("nosuch", error)
        self.assertIn("turns=flowkv", error)
        self.assertEqual(len(re.findall(r"(?m)^pith: ", error)), 4, error)
        self.assertRegex(error, r"\[\d+ read")

    def test_pinned_messages_stay(self):
        talk = [f"Tell me about number {i}, and about the river, the bridge and the old mill beside it." for i in range(12)]
        flags = ("--recipe", "streamingllm", "--kv-budget", "9MiB")
        done = self.chat("/pin The code of the safe is 7312.", *talk, "/cache", flags=flags, n=24, c=4096)
        rows = [line for line in done.stderr.decode().splitlines() if re.match(r"\s*\d+ .*%$", line)]
        self.assertEqual(len(rows), 13, done.stderr.decode())
        shares = [float(re.search(r"([\d.]+)%$", row).group(1)) for row in rows]
        self.assertGreater(shares[0], 55)   # but for the answer
        self.assertEqual(shares[2], 0)
        self.assertGreater(shares[-1], 90)
        self.assertIn(b"/pin takes", self.chat("/pin").stderr)

    @cli_test.of_the_default_model
    def test_the_map_names_messages_that_were_read_again(self):
        file = self.write("talk", b"")
        done = self.chat("My name is Ann.", "I like tea.", "/cache", "/recipe keydiff", "/cache", "And you?", "/cache",
                         f"/save {file}", f"/load {file}", "/cache", n=12)
        rows = re.findall(r"(?m)^\s*(\d+) (My name|I like|And you).*%$", done.stderr.decode())
        self.assertEqual([name for _, name in rows], ["My name", "I like"] * 2 + ["My name", "I like", "And you"] * 2, done.stderr.decode())
        self.assertTrue(all(int(at) == 0 for at, name in rows if name == "My name"))
        for message in ("I like", "And you"):
            places = [int(at) for at, name in rows if name == message]
            self.assertGreater(min(places), 10)
            self.assertLess(max(places) - min(places), 4, "answers may have other tokens when they are read")

    def test_the_map_of_an_empty_cache(self):
        self.assertIn(b"nothing was read yet", self.chat("/cache").stderr)

    def test_messages_of_a_file_are_turns(self):
        messages = [dict(role="system", content="Be brief."), dict(role="user", content="My name is Ann."),
                    dict(role="assistant", content="Hello Ann!"), dict(role="user", content="What is my name?")]
        path = self.write("talk.json", json.dumps(messages))
        run = ("run", *model_flags(), "--temp", "0", "-n", "6", "-c", "1024", "--json")
        whole = self.json_of(pith(*run, "--messages", path, "--recipe", "full"))
        self.assertGreater(whole["prompt_tokens"], whole["pinned_tokens"] + 20)
        turns = self.json_of(pith(*run, "--messages", path, "--recipe", "keydiff turns=flowkv:drop=0.6"))
        self.assertEqual(turns["prompt_tokens"], whole["prompt_tokens"])
        self.assertLess(turns["kv"]["kept_fraction"], 0.9)
        for text in ("[]", "{}", "[1]", '[{"role": "user"}]', json.dumps(messages[:3]), json.dumps(messages[::-1])):
            with self.subTest(text=text):
                self.assert_sentence(pith(*run, "--messages", self.write("bad.json", text)), codes=(1,))
        self.assert_sentence(pith("run", "-p", "x", "--messages", path), codes=(2,))

    def test_turns_under_a_small_budget(self):
        talk = [f"Tell me about number {i}, and about the river, the bridge and the old mill beside it." for i in range(8)]
        for recipe in ("flowkv", "pith turns=flowkv:drop=0.8", "epicache:block=64,episodes=2"):
            with self.subTest(recipe=recipe):
                done = self.chat(*talk, "/stats", flags=("--recipe", recipe, "--kv-budget", "12MiB"), n=40, c=8192)
                self.assertEqual(len(self.reads(done)), len(talk), done.stderr.decode())


class KilledSaves(ChatCase):
    """kill -9 in the middle of /save, PITH_KILLS times (200): the file is always one that was saved whole."""

    KILLS = int(os.environ.get("PITH_KILLS", "200"))

    def test_there_is_always_a_valid_file(self):
        draw, paths, during = random.Random(7), [], 0
        for i in range(self.KILLS):
            path = self.path(f"talk{i}")
            process = subprocess.Popen([BINARY, "chat", *model_flags(), "-n", "1", "-c", "512", "--temp", "0"], stdin=subprocess.PIPE,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            saves = b"/save " + path.encode() + b"\n"
            # Old and new differ in length: one message, then two.
            process.stdin.write(b"Hi\n" + saves + b"My name is Ann.\n" + 400 * saves)
            process.stdin.flush()
            for _ in range(draw.randint(1, 3)):
                self.assertTrue(any(b"saved in" in line for line in process.stderr))
            time.sleep(draw.random() * 0.03)
            during += process.poll() is None
            process.kill()
            process.wait()
            process.stdin.close()
            process.stderr.close()
            paths.append(path)
        self.assertGreater(during, 0.8 * self.KILLS, "control: most were still saving")
        loaded = self.chat(*[f"/load {path}" for path in paths], c=512)
        self.assertEqual(len(re.findall(rb"^[24] messages, \d+ tokens", loaded.stderr, re.M)), self.KILLS, loaded.stderr.decode()[-2000:])
        # Control: a file that ends early is refused.
        os.truncate(paths[0], os.path.getsize(paths[0]) - 1)
        self.assertNotRegex(self.chat(f"/load {paths[0]}", c=512).stderr, rb"[24] messages")


class Terminal(ChatCase):
    """What libedit and colours make of it, at a terminal of its own."""

    def start(self, *flags, term="xterm-256color", n=4):
        main, side = pty.openpty()
        env = {**os.environ, "TERM": term, "PITH_CACHE_DIR": self.folder}
        env.pop("NO_COLOR", None)
        if "PITH_DEFAULT_MODEL" not in env:
            env["PITH_DEFAULT_MODEL"] = info()["path"]
        process = subprocess.Popen([BINARY, "chat", *model_flags(), "--temp", "0", "-n", str(n), "-c", "4096", *flags],
                                   stdin=side, stdout=side, stderr=side, start_new_session=True, env=env)
        self.addCleanup(os.close, main)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.addCleanup(os.close, side)
        self.main, self.side, self.process = main, side, process
        self.until(rb"> ")

    def until(self, pattern, seconds=120):
        seen, end = b"", time.time() + seconds
        while time.time() < end:
            if select.select([self.main], [], [], 0.5)[0]:
                try:
                    seen += os.read(self.main, 65536)
                except OSError:
                    break  # the program has ended
            if re.search(pattern, seen):
                return seen
        self.fail(f"{pattern} did not come: {seen[-2000:]}")

    def keys(self, keys):
        """As fast as a person types, so that nothing counts as pasted."""
        for key in re.findall(rb"\x1b\[[0-9;]*[A-Za-z~]|.|\n", keys):
            if key == b"\n":
                time.sleep(0.1)
            os.write(self.main, key)
            time.sleep(0.003)

    def say(self, keys):
        self.keys(keys + b"\n")
        return self.until(rb"\[\d+ read[^\n]*\n(.*\n)*.*> ")

    def leave(self):
        self.keys(b"\x04")
        self.ends()

    def ends(self, seconds=60):
        """What is shown until the program has ended."""
        end, seen = time.time() + seconds, b""
        while self.process.poll() is None and time.time() < end:
            if select.select([self.main], [], [], 0.1)[0]:
                try:
                    seen += os.read(self.main, 65536)
                except OSError:
                    time.sleep(0.05)
        self.assertEqual(self.process.poll(), 0)
        self.assertTrue(termios.tcgetattr(self.side)[3] & termios.ICANON, "the terminal is as it was")
        return seen

    def tokens(self, seen):
        return int(re.search(rb"\[(\d+) read", seen).group(1))

    def first_turn(self, text):
        done = pith("run", *model_flags(), "--temp", "0", "-n", "1", "-c", "4096", "--json", "-p", text)
        return json.loads(done.stdout)["prompt_tokens"]

    def test_editing_and_history(self):
        self.start()
        expected = self.first_turn("hello there world")
        self.assertEqual(self.tokens(self.say(b"helo there worldX\x7f\x1b[H" + 3 * b"\x1b[C" + b"l")), expected)
        self.keys(b"/reset\n")
        self.until(rb"> ")
        # Two lines back in the history, sent again.
        self.assertEqual(self.tokens(self.say(b"\x1b[A\x1b[A")), expected)
        self.leave()
        history = os.path.join(self.folder, "chat_history")
        with open(history, encoding="utf-8") as file:
            self.assertIn("hello", file.read())
        self.assertEqual(os.stat(history).st_mode & 0o077, 0, "for its owner alone")
        # The next time it is there again.
        self.start()
        self.assertEqual(self.tokens(self.say(b"\x1b[A")), expected)
        self.leave()

    def test_what_is_typed_during_an_answer_waits_for_its_end(self):
        grammar = ("--grammar", 'root ::= "0 1 2 3 4 5 6 7 8 9\\n"', "-s", "1")
        self.start(*grammar, n=40)
        self.keys(b"hello\n")
        seen = self.until(rb"0 1")
        self.keys(b"what then?\n\x04")
        seen += self.ends()
        self.assertEqual(len(re.findall(rb"\[\d+ read", seen)), 2, seen)
        self.assertEqual(len(re.findall(rb"8 9", seen)), 2, seen)
        self.assertNotRegex(seen.split(b"8 9")[0], rb"what")

    def test_no_history(self):
        self.start("--no-history")
        self.say(b"a secret")
        self.leave()
        self.assertFalse(os.path.exists(os.path.join(self.folder, "chat_history")))

    def test_many_lines(self):
        expected = self.first_turn("one\ntwo\nthree")
        for keys in (b"one\\\ntwo\\\nthree", b"\x1b[200~one\ntwo\nthree\x1b[201~", b"one\x1b\ntwo\x1b\nthree"):
            with self.subTest(keys=keys):
                self.start()
                os.write(self.main, keys)
                time.sleep(0.3)
                os.write(self.main, b"\n")
                self.assertEqual(self.tokens(self.until(rb"\[\d+ read[^\n]*\n(.*\n)*.*> ")), expected)
                self.leave()

    def test_edit_gives_the_message_back(self):
        self.start()
        expected = self.tokens(self.say(b"hello there world"))
        self.keys(b"/edit\n")
        self.until(rb"hello there world")
        self.assertEqual(self.tokens(self.say(b"")), expected)
        self.leave()

    def test_colours_are_for_terminals(self):
        grammar = ("--grammar", 'root ::= "# Title\\n**bold** `code`\\n"', "-s", "1")
        self.start(*grammar, n=40)
        seen = self.say(b"hello")
        self.assertIn(b"\x1b[1;34m# Title\x1b[0m", seen)
        self.assertIn(b"\x1b[1m**bold**", seen)
        self.assertRegex(seen, rb"\x1b\[2m\[\d+ read.*%.*KV")
        self.leave()
        self.start(*grammar, term="dumb", n=40)
        self.assertNotIn(b"\x1b[1m", self.say(b"hello"))
        self.leave()
        piped = self.chat("hello", flags=grammar, n=40)
        self.assertIn(b"# Title\n**bold** `code`", piped.stdout)
        self.assertNotIn(b"\x1b", piped.stdout + piped.stderr)

    def test_interrupts(self):
        self.start(n=400)
        self.keys(b"Write a very long story about a river.\n")
        time.sleep(1.5)
        os.kill(self.process.pid, 2)
        seen = self.until(rb"interrupted.*\n(.*\n)*.*> ")
        self.assertIn(b"written", seen)
        self.assertIsNone(self.process.poll(), "the answer ends, not the program")
        os.kill(self.process.pid, 2)
        self.assertEqual(self.process.wait(20), 130)
        self.assertTrue(termios.tcgetattr(self.side)[3] & termios.ICANON, "the terminal is as it was")


if __name__ == "__main__":
    unittest.main()
