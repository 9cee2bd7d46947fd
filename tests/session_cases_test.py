#!/usr/bin/env python3
"""Faults that chat and generation once had, each by the command that showed it.

usage: PITH_BINARY=build/release/pith [PITH_TEST_MODEL=model.gguf] session_cases_test.py [-v] [Class[.test]]
"""
import errno
import json
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
import unittest

import cli_test
from cli_test import BINARY, TIMEOUT, Case, info, model_flags, pith

CHATML = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TRIMS = CHATML.replace("m.content", "m.content | trim")
# A default system message; answers change once they are not the last.
REWRITES = """{% if messages[0].role != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}""" + CHATML.replace("{{ m.content }}", "{% if m.role == 'assistant' and not loop.last %}"
                                "{{ m.content | upper }}{% else %}{{ m.content }}{% endif %}")


class ChatCase(cli_test.ModelCase):
    def setUp(self):
        super().setUp()
        if not info()["chat_template"]:
            self.skipTest("the model has no chat template")

    def path(self, name):
        return os.path.join(self.folder, name)

    def chat(self, text, *flags, n=6, c=512, code=0):
        done = pith("chat", *model_flags(), "--temp", "0", "-n", str(n), "-c", str(c), *flags, text=text)
        self.assertEqual(done.returncode, code, done.stderr.decode())
        return done

    def run_json(self, *flags, temp=0, c=512):
        return self.json_of(pith("run", *model_flags(), "--temp", str(temp), "-c", str(c), "--json", *flags))

    def reads(self, done):
        """Tokens that each turn has read."""
        return [int(n) for n in re.findall(rb"^\[(\d+) read", done.stderr, re.M)]


class Conversations(ChatCase):
    def test_run_pins_the_system_message(self):
        pinned = self.run_json("--system", "Be brief.", "-p", "Hello", "-n", "1")
        self.assertGreater(pinned["pinned_tokens"], 5)
        self.assertLess(pinned["pinned_tokens"], pinned["prompt_tokens"])
        self.assertEqual(self.run_json("-p", "Hello", "-n", "1")["pinned_tokens"], 0)

    def test_sessions_in_fewer_bytes(self):
        """Coded entries: a file of less than half of the bytes, whose text need not be read again."""
        story = self.write("story.txt", "".join(f"On day {i} a ship with {i * 37 % 91} sailors came. " for i in range(60)))
        sizes = {}
        for form in ("exact", "comp", "comp:ek=0.25,ev=0.1"):
            path = self.path(form.replace(":", "_") + ".session")
            flags = ("--raw", "-f", story, "-n", "1", "--ignore-eos", "--prompt-cache", path, "--save-format", form)
            first = self.run_json(*flags, c=2048)
            sizes[form] = os.path.getsize(path)
            # The file says how it was written.
            again = self.run_json(*flags[:-2], c=2048)
            self.assertEqual(again["cached_tokens"], first["prompt_tokens"])
            self.assertEqual(again["token_ids"], first["token_ids"])
        self.assertLess(2 * sizes["comp"], sizes["exact"])
        self.assertLess(sizes["comp:ek=0.25,ev=0.1"], sizes["comp"])
        self.assert_sentence(pith("run", *model_flags(), "-p", "x", "--save-format", "comp:ek=2"), "is no form of saved")

    def test_a_compressed_prompt_is_compressed_once(self):
        """What a file holds of it is not cut again to a share of a share; another share is another text."""
        path = self.path("compressed")
        story = self.write("story.txt", "".join(f"On day {i} a ship with {i * 37 % 91} sailors came. " for i in range(60)))
        run = ("--raw", "-f", story, "-n", "8", "--ignore-eos", "--recipe", "keydiff", "--compress", "after")
        alone = {keep: self.run_json(*run, "--keep", keep, c=2048) for keep in ("0.5", "0.2")}
        for keep, is_cached in (("0.5", False), ("0.5", True), ("0.5", True), ("0.2", False), ("0.2", True)):
            done = self.run_json(*run, "--keep", keep, "--prompt-cache", path, c=2048)
            self.assertEqual(done["cached_tokens"], done["prompt_tokens"] if is_cached else 0)
            self.assertEqual((done["token_ids"], done["kv"]["entries"]),
                             (alone[keep]["token_ids"], alone[keep]["kv"]["entries"]))

    def test_a_format_is_that_of_what_stays(self):
        """With --compress after, too: the prompt is read in f16, and --keep is a share of its bytes."""
        story = self.write("story.txt", "".join(f"On day {i} a ship with {i * 37 % 91} sailors came. " for i in range(60)))
        for recipe, form, least in (("keydiff format=q4", "q4", 0.55), ("kvcomp", "comp:ek=1/20,ev=1/10", 1), ("keydiff", "f16", 0.2),
                                    ("keydiff format=auto", "q4", 0.9)):
            done = self.run_json("--raw", "-f", story, "-n", "1", "--recipe", recipe, "--compress", "after", "--keep",
                                 "0.2" if recipe != "keydiff format=auto" else "0.5", c=2048)["kv"]
            self.assertEqual(done["format"], form)
            self.assertGreaterEqual(done["kept_fraction"], least - 0.01, recipe)
        self.assert_sentence(pith("run", *model_flags(), "-p", "x", "--recipe", "keydiff format=q4", "--compress", "after",
                                  "-ctk", "q4_0", "-ctv", "q4_0"), "converts what stays of an f16 cache", codes=(1,))

    def test_blanks_that_a_template_trims_keep_the_pin(self):
        path = self.write("trims.jinja", TRIMS)
        counts = {self.run_json("--chat-template-file", path, "--system", "Be brief.", "-p", prompt, "-n", "1")["pinned_tokens"]
                  for prompt in ("Hello", "Hello ", " Hello", "\n")}
        self.assertEqual(len(counts), 1, counts)
        self.assertGreater(counts.pop(), 5)

    def test_a_template_that_rewrites_answers(self):
        """Later turns read what they read with a template that rewrites nothing."""
        text = b"Hello\nThanks\nBye\n"
        plain = self.chat(text, "--chat-template", CHATML, "--ignore-eos")
        rewritten = self.chat(text, "--chat-template", REWRITES, "--ignore-eos")
        self.assertEqual(self.reads(plain)[1:], self.reads(rewritten)[1:])
        self.assertLess(self.reads(plain)[0], self.reads(rewritten)[0])

    def test_a_message_beyond_the_context_is_answered(self):
        done = self.chat(b"Tell me about rivers in one long text.\nSay hello.\n", "--ignore-eos", n=60, c=100)
        error = done.stderr.decode()
        self.assertEqual(len(self.reads(done)), 2, error)
        self.assertEqual(error.count("starts anew"), 1)
        self.assertIn("cut after 60 tokens", error)
        alone = self.chat(b"Say hello.\n", "--ignore-eos", n=60, c=100)
        self.assertTrue(done.stdout.endswith(alone.stdout), (done.stdout, alone.stdout))
        self.assertEqual(self.reads(done)[1], self.reads(alone)[0])

    def test_an_answer_that_the_context_cuts_is_said_to_be_cut(self):
        done = self.chat(b"Tell me about rivers.\n", "--ignore-eos", n=-1, c=60)
        self.assertIn("cut, since the context is full", done.stderr.decode())
        self.assertTrue(done.stdout.strip())

    def test_a_message_that_fits_into_no_context_leaves_the_conversation(self):
        done = self.chat(b"Hello\n" + 300 * b"word " + b"\nBye\n", c=150)
        self.assertIn("does not fit", done.stderr.decode())
        plain = self.chat(b"Hello\nBye\n", c=150)
        self.assertEqual(done.stdout, plain.stdout)
        self.assertEqual(self.reads(done), self.reads(plain))

    def test_reset_reaches_the_file(self):
        path = self.path("talk")
        self.chat(b"My name is Bob.\n/reset\n", "--prompt-cache", path)
        fresh = self.chat(b"Hi\n")
        after = self.chat(b"Hi\n", "--prompt-cache", path)
        self.assertEqual((after.stdout, self.reads(after)), (fresh.stdout, self.reads(fresh)))
        self.chat(b"/reset\n", "--prompt-cache", path)
        other = self.chat(b"Hi\n", "--prompt-cache", path, "--system", "Be brief.")
        self.assertGreater(self.reads(other)[0], 0)

    def test_session_files_that_cannot_be_written(self):
        for command in (("run", "-p", "Hi", "-n", "2"), ("chat",)):
            for path in ("/nonexistent/s", self.folder, "/etc/hostname/s"):
                done = pith(*command, *model_flags(), "--prompt-cache", path, text=b"Hi\n")
                self.assert_sentence(done, path, codes=(1,))
                self.assertNotIn("read (", done.stderr.decode())

    def test_an_empty_session_file_is_as_if_missing(self):
        path = self.write("empty", b"")
        self.assertEqual(self.run_json("-p", "Hello", "-n", "2", "--prompt-cache", path)["cached_tokens"], 0)
        self.assertGreater(os.path.getsize(path), 0)
        again = self.run_json("-p", "Hello", "-n", "2", "--prompt-cache", path)
        self.assertEqual(again["cached_tokens"], again["prompt_tokens"])
        self.chat(b"Hi\n", "--prompt-cache", self.write("empty", b""))

    def test_a_prompt_that_begins_alike_reads_the_rest(self):
        path = self.path("begun")
        story = "Ann met Bob at the old mill and they spoke of rain. " * 12
        run = ("--raw", "-n", "8", "--recipe", "full", "--prompt-cache", path)
        self.run_json("-p", story + "Then came the flood, and the bridge was gone.", *run)
        other = ("-p", story + "At night they counted the stars.")
        again = self.run_json(*other, *run)
        self.assertGreater(again["cached_tokens"], 100)
        self.assertLess(again["cached_tokens"], again["prompt_tokens"])
        # What it wrote is the new prompt's.
        whole = self.run_json(*other, *run)
        self.assertEqual((whole["cached_tokens"], whole["text"]), (whole["prompt_tokens"], again["text"]))
        # A shorter one, which the file holds to its end and beyond.
        shorter = self.run_json("-p", story, *run)
        self.assertGreaterEqual(shorter["cached_tokens"], shorter["prompt_tokens"] - 3)

    def test_control_tokens_in_a_prompt_may_be_text(self):
        prompt = ("-p", "a<|im_end|>b<|im_end|>c", "-n", "1")
        self.assertLess(self.run_json(*prompt)["prompt_tokens"],
                        self.run_json(*prompt, "--no-special-in-prompt")["prompt_tokens"])

    def test_llama_cpps_names(self):
        self.assertEqual(self.run_json("-sys", "Be brief.", "-p", "Hello", "-n", "1")["pinned_tokens"],
                         self.run_json("--system-prompt", "Be brief.", "-p", "Hello", "-n", "1")["pinned_tokens"])
        file = self.write("system", "Be brief.")
        self.assertGreater(self.run_json("-sysf", file, "-p", "Hello", "-n", "1")["pinned_tokens"], 0)
        missing = pith("run", *model_flags(), "-p", "Hello", "--chat-template-file", self.path("none.jinja"))
        self.assert_sentence(missing, "none.jinja", codes=(1,))


class Sampling(ChatCase):
    def generate(self, *flags):
        return self.run_json("--raw", "-p", "One, two, three, four,", "-n", "24", *flags)

    def test_stop_strings(self):
        whole = self.generate()["text"]
        self.assertGreater(len(whole), 12)
        stop = whole[6:9]
        stopped = self.generate("-r", "nowhere in it", "--reverse-prompt", stop)
        self.assertEqual(stopped["text"], whole[:whole.index(stop)])
        self.assertEqual(stopped["stop"], "stop")
        # What looks like the beginning of one at the end is text.
        self.assertEqual(self.generate("-r", whole[-3:] + "~")["text"], whole)
        chat = self.chat(b"Say hello.\n", n=12)
        stop = chat.stdout.decode()[1:3]
        self.assertEqual(self.chat(b"Say hello.\n", "-r", stop, n=12).stdout.decode(),
                         chat.stdout.decode().split(stop)[0] + "\n")

    def test_grammar(self):
        digits = self.generate("--grammar", 'root ::= " " [0-9]+ "!"')
        self.assertRegex(digits["text"], r"\A [0-9]+!?\Z")
        file = self.write("yes.gbnf", 'root ::= "yes" | "no"')
        self.assertIn(self.generate("--grammar-file", file)["text"], ("yes", "no"))
        broken = pith("run", *model_flags(), "-p", "x", "--grammar", "root ::= (", "-n", "1")
        self.assertEqual(broken.returncode, 1)
        self.assertIn(b"pith: the grammar is not valid GBNF", broken.stderr)

    def test_logprobs(self):
        answer = self.generate("--logprobs", "3")
        self.assertEqual([one["token"] for one in answer["logprobs"]], answer["token_ids"])
        for one in answer["logprobs"]:
            self.assertEqual(len(one["top"]), 3)
            self.assertLessEqual(sum(2.718281828 ** other["logprob"] for other in one["top"]), 1.001)
            self.assertGreaterEqual(one["top"][0]["logprob"], one["logprob"])
        self.assertNotIn("logprobs", self.generate())

    def test_json_schema(self):
        schema = '{"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}'
        done = pith("run", *model_flags(), "-p", "How old is Ann?", "-n", "60", "--temp", "0", "-c", "512", "--json",
                    "--json-schema", schema)
        if b"without the converter" in done.stderr:
            self.skipTest("this libllama lacks the converter")
        answer = self.json_of(done)
        if answer["stop"] == "end":
            self.assertIsInstance(json.loads(answer["text"])["age"], int)
        else:
            self.assertRegex(answer["text"], r'\A\{\s*"age"')
        self.assert_sentence(pith("run", *model_flags(), "-p", "x", "-j", "{"), "JSON schema", codes=(1,))

    def test_logit_bias_and_penalties(self):
        plain = self.generate()["token_ids"]
        self.assertNotIn(plain[0], self.generate("--logit-bias", f"{plain[0]}-inf")["token_ids"])
        self.assertEqual(self.generate("-l", "17+1000", "--ignore-eos")["token_ids"], 24 * [17])
        for flags in (("--repeat-penalty", "5"), ("--presence-penalty", "30"), ("--frequency-penalty", "30"),
                      ("--dry-multiplier", "100", "--dry-allowed-length", "0", "--dry-sequence-breaker", "~")):
            with self.subTest(flags=flags):
                self.assertNotEqual(self.generate(*flags)["token_ids"], plain)

    def test_every_sampler_changes_something(self):
        def ids(*flags):
            return self.run_json("--raw", "-p", "The", "-n", "24", "--top-p", "1", "--min-p", "0", "--ignore-eos", *flags,
                                 temp=1.5)["token_ids"]
        plain = ids()
        self.assertEqual(ids(), plain)
        for flags in (("-s", "7"), ("--typical", "0.3"), ("--top-n-sigma", "0.5"), ("--xtc-probability", "1"),
                      ("--mirostat", "1"), ("--mirostat", "2"), ("--dynatemp-range", "1.4"), ("--top-k", "2"), ("--samplers", "top-k;temp")):
            with self.subTest(flags=flags):
                self.assertNotEqual(ids(*flags), plain)
                self.assertEqual(ids(*flags), ids(*flags))
        self.assertNotEqual(ids("-s", "-1"), ids("-s", "-1"))

    @cli_test.of_the_default_model
    def test_defaults_are_the_makers(self):
        """SmolLM2's temperature of 0.2 and top-p of 0.9, unless a flag says otherwise."""
        if "smollm2" not in os.path.basename(info()["path"]).lower():
            self.skipTest("another model")

        def ids(*flags):
            return self.json_of(pith("run", *model_flags(), "--json", "--raw", "-p", "The", "-n", "24", "-c", "512",
                                     "--ignore-eos", *flags))["token_ids"]
        self.assertEqual(ids(), ids("--temp", "0.2", "--top-p", "0.9", "--top-k", "40", "--min-p", "0.05",
                                    "--repeat-penalty", "1.1", "--repeat-last-n", "256"))
        self.assertNotEqual(ids("--temp", "0.8"), ids())
        self.assertIn(b"0.2", pith("run", "--help").stdout)

    def test_bad_values(self):
        for flags in (("--logit-bias", "12"), ("--logit-bias", "x+1"), ("--mirostat", "3"), ("--typical", "2"),
                      ("--repeat-penalty", "0"), ("--grammar", "a", "--grammar-file", "b"), ("--xtc-probability", "-1"), ("--samplers", "top_k;nosuch")):
            with self.subTest(flags=flags):
                self.assert_sentence(pith("run", "-p", "x", *flags), codes=(2,))
        self.assert_sentence(pith("run", *model_flags(), "-p", "x", "-l", "99999999+1"), "vocabulary", codes=(1,))

    def test_logits_that_are_no_numbers(self):
        path = self.write("nan.gguf", with_nan(info()["path"]))
        for command in (("run", "-p", "the man", "-n", "4", "--json"), ("run", "--raw", "-p", "x", "-n", "2")):
            self.assert_sentence(pith(*command, "-m", path, "-t", "1"), "not numbers", codes=(1,))


def with_nan(path):
    """A model's bytes with an output norm that is no number."""
    with open(path, "rb") as file:
        data = bytearray(file.read())
    at = 24

    def number(form):
        nonlocal at
        values = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return values[0]

    def text():
        nonlocal at
        size = number("Q")
        at += size
        return bytes(data[at - size:at])

    def skip(kind):
        nonlocal at
        if kind == 8:
            text()
        elif kind == 9:
            inner, count = number("I"), number("Q")
            for _ in range(count):
                skip(inner)
        else:
            at += {0: 1, 1: 1, 2: 2, 3: 2, 7: 1, 10: 8, 11: 8, 12: 8}.get(kind, 4)

    num_tensors, num_pairs = struct.unpack_from("<QQ", data, 8)
    for _ in range(num_pairs):
        text()
        skip(number("I"))
    offsets = {}
    for _ in range(num_tensors):
        name = text()
        num_elements = 1
        for _ in range(number("I")):
            num_elements *= number("Q")
        offsets[name] = (number("I"), number("Q"), num_elements)
    kind, offset, num_elements = offsets[b"output_norm.weight"]
    assert kind == 0, "F32"
    start = (at + 31) // 32 * 32 + offset
    data[start:start + 4 * num_elements] = num_elements * struct.pack("<f", float("nan"))
    return bytes(data)


class Terminal(ChatCase):
    """pith chat at a terminal of its own."""

    def start(self, *flags):
        main, side = pty.openpty()
        # What is typed goes into a history of the test's own.
        env = {"PITH_DEFAULT_MODEL": info()["path"], **os.environ, "PITH_CACHE_DIR": self.folder}
        process = subprocess.Popen([BINARY, "chat", *model_flags(), "--temp", "0", "-n", "4", "-c", "8192", *flags],
                                   stdin=side, stdout=side, stderr=side, start_new_session=True, env=env)
        self.addCleanup(os.close, main)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.addCleanup(os.close, side)
        return process, main, side

    def read_until(self, main, pattern):
        seen = b""
        end = time.time() + 120
        while time.time() < end:
            if select.select([main], [], [], 1)[0]:
                try:
                    seen += os.read(main, 65536)
                except OSError as error:
                    if error.errno == errno.EIO:
                        break
                    raise
            if re.search(pattern, seen):
                return seen
        self.fail(f"{pattern} did not come: {seen[-2000:]}")

    def say(self, keys, *flags):
        """Keys at the first prompt; returns how many tokens the first message was."""
        process, main, side = self.start(*flags)
        self.read_until(main, rb"> ")
        while keys:
            keys = keys[os.write(main, keys[:1024]):]
            while select.select([main], [], [], 0.01)[0]:
                os.read(main, 65536)
        read = int(re.search(rb"\[(\d+) read", self.read_until(main, rb"\[\d+ read.*\n(.*\n)*.*> ")).group(1))
        os.write(main, b"\x04")
        self.assertEqual(process.wait(60), 0)
        self.assertTrue(termios.tcgetattr(side)[3] & termios.ICANON, "the terminal is as it was")
        self.assertEqual([name for name in os.listdir(self.folder) if "history" in name], ["chat_history"])
        return read

    def test_long_lines_are_whole(self):
        words = 3000 * b"word "
        expected = self.run_json("-p", words.decode().strip(), "-n", "1", c=8192)["prompt_tokens"]
        self.assertEqual(self.say(words.strip() + b"\n"), expected)

    def test_pasted_lines_are_one_message(self):
        expected = self.run_json("-p", "one\ntwo\nthree", "-n", "1")["prompt_tokens"]
        self.assertEqual(self.say(b"one\ntwo\nthree\n"), expected)
        self.assertEqual(self.say(b"\x1b[200~one\ntwo\nthree\x1b[201~\n"), expected)
        self.assertEqual(self.say(b"one\\\ntwo\\\nthree\n"), expected)


if __name__ == "__main__":
    unittest.main()
