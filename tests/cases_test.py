#!/usr/bin/env python3
"""End-to-end test of inputs that people and machines give by mistake: each gets tokens, or one sentence and an exit code.

usage: PITH_BINARY=build/release/pith cases_test.py [-v] [Class[.test]]

The models are tiny ones of random weights that the test writes itself.
"""
import functools
import json
import os
import random
import stat
import struct
import subprocess
import tempfile
import unittest

BINARY = os.path.abspath(os.environ.get("PITH_BINARY", "build/release/pith"))
TIMEOUT = 300

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
EMBD, HEADS, LAYERS, FF = 32, 2, 2, 32


def packed(text):
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def value(kind, what):
    if kind == STRING:
        return packed(what)
    if kind == ARRAY:
        element, items = what
        return struct.pack("<IQ", element, len(items)) + b"".join(value(element, item) for item in items)
    return struct.pack({U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}[kind], what)


def gguf(pairs, tensors):
    """pairs: (key, kind, value); tensors: (name, dimensions with the fastest first, float32 numbers)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs))
    for key, kind, what in pairs:
        head += packed(key) + struct.pack("<I", kind) + value(kind, what)
    body = b""
    for name, dimensions, numbers in tensors:
        head += packed(name) + struct.pack("<I", len(dimensions))
        head += b"".join(struct.pack("<Q", n) for n in dimensions) + struct.pack("<IQ", 0, len(body))
        body += struct.pack(f"<{len(numbers)}f", *numbers)
        body += bytes(-len(body) % 32)
    return head + bytes(-len(head) % 32) + body


def byte_tokens():
    """The characters that stand for bytes in byte-level vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (chr(256 + i) for i in range(256))
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]


BOS, EOS, NUM_TOKENS = 258, 259, 262


@functools.lru_cache(None)
def tiny(pre="gpt-2", seed=1, ctx=4096, add_eos=False, nan=False):
    """A llama of two layers with a vocabulary of bytes."""
    draw = random.Random(seed)
    tokens = byte_tokens() + ["th", "an", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]
    pairs = [("general.architecture", STRING, "llama"), ("general.name", STRING, "tiny")]
    for key, number in (("context_length", ctx), ("embedding_length", EMBD), ("block_count", LAYERS),
                        ("feed_forward_length", FF), ("attention.head_count", HEADS), ("attention.head_count_kv", HEADS),
                        ("rope.dimension_count", EMBD // HEADS), ("vocab_size", NUM_TOKENS)):
        pairs.append((f"llama.{key}", U32, number))
    pairs += [("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
              ("tokenizer.ggml.model", STRING, "gpt2"), ("tokenizer.ggml.pre", STRING, pre),
              ("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
              ("tokenizer.ggml.token_type", ARRAY, (I32, [1] * 258 + [3] * 4)),
              ("tokenizer.ggml.merges", ARRAY, (STRING, ["t h", "a n"])),
              ("tokenizer.ggml.bos_token_id", U32, BOS), ("tokenizer.ggml.eos_token_id", U32, EOS),
              ("tokenizer.ggml.add_bos_token", BOOL, False), ("tokenizer.ggml.add_eos_token", BOOL, add_eos)]

    def matrix(columns, rows, scale=0.3):
        return ((columns, rows), [draw.gauss(0, scale) for _ in range(columns * rows)])

    ones = ((EMBD,), [1.0] * EMBD)
    tensors = [("token_embd.weight", *matrix(EMBD, NUM_TOKENS, 1.0)),
               ("output_norm.weight", (EMBD,), [float("nan") if nan else 1.0] * EMBD)]
    for i in range(LAYERS):
        tensors += [(f"blk.{i}.{name}_norm.weight", *ones) for name in ("attn", "ffn")]
        tensors += [(f"blk.{i}.attn_{name}.weight", *matrix(EMBD, EMBD)) for name in ("q", "k", "v", "output")]
        tensors += [(f"blk.{i}.ffn_{name}.weight", *matrix(EMBD, FF)) for name in ("gate", "up", "down")]
    return gguf(pairs, tensors)


@functools.lru_cache(None)
def lora(seed):
    draw = random.Random(seed)
    pairs = [("general.architecture", STRING, "llama"), ("general.type", STRING, "adapter"),
             ("adapter.type", STRING, "lora"), ("adapter.lora.alpha", F32, 4.0)]
    tensors = []
    for i in range(LAYERS):
        for side, dimensions in (("a", (EMBD, 2)), ("b", (2, EMBD))):
            numbers = [draw.gauss(0, 0.5) for _ in range(2 * EMBD)]
            tensors.append((f"blk.{i}.attn_q.weight.lora_{side}", dimensions, numbers))
    return gguf(pairs, tensors)


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def at(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, data):
        with open(self.at(name), "wb") as file:
            file.write(data if isinstance(data, bytes) else data.encode())
        return self.at(name)

    def pith(self, *arguments, env=None, stdout=subprocess.PIPE, text=b""):
        return subprocess.run([BINARY, *arguments], input=text, stdout=stdout, stderr=subprocess.PIPE, timeout=TIMEOUT,
                              cwd=self.folder, env={**os.environ, "PITH_CACHE_DIR": self.folder, **(env or {})})

    def run_json(self, *arguments, **model):
        path = self.write("t.gguf", tiny(**model))
        done = self.pith("run", "-t", "1", "-m", path, "--json", *arguments)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        return json.loads(done.stdout)

    def assert_sentence(self, done, *parts, code=1):
        error = done.stderr.decode()
        self.assertEqual(done.returncode, code, error)
        self.assertRegex(error, r"\A(pith: [^\n]+\.\n)*pith: [^\n]+\.\n\Z")
        for part in parts:
            self.assertIn(part, error)


class Prompts(Case):
    def test_long_runs(self):
        """Pre-tokenizers recurse for every character of a run."""
        for pre, part in (("tekken", "A"), ("gpt-4o", "ACGT"), ("deepseek-v3", "-"), ("seed-coder", " "),
                          ("minimax-m2", "\u4e2d"), ("poro-chat", "x.")):
            text = self.write("x", (part * 60_000)[:60_000])
            with self.subTest(pre=pre, part=part):
                path = self.write("t.gguf", tiny(pre=pre))
                done = self.pith("run", "-t", "1", "-m", path, "--raw", "-f", text, "-n", "0", "-c", "64")
                self.assert_sentence(done, "-c")
                self.assertGreater(int(done.stderr.decode().split("the prompt has ")[1].split()[0]), 10_000)

    def test_a_long_run_is_read(self):
        result = self.run_json("--raw", "-p", "A" * 3000, "-n", "1", pre="tekken")
        self.assertEqual(result["prompt_tokens"], 3000)

    def test_nul_bytes_reach_the_model(self):
        prompt = self.write("nul.txt", b"one\0two\0")
        plain = self.write("plain.txt", b"onetwo")
        for template in ("chatml", "gemma", "llama3"):
            flags = ["--chat-template", template, "-n", "1"]
            counts = [self.run_json("-f", file, *flags)["prompt_tokens"] for file in (prompt, plain)]
            self.assertEqual(counts[0], counts[1] + 2, template)

    def test_no_end_of_text_behind_a_prompt(self):
        for text, tokens in (("the man", 5), ("x", 1)):
            self.assertEqual(self.run_json("--raw", "-p", text, "-n", "1", add_eos=True)["prompt_tokens"], tokens)

    def test_logits_that_are_no_numbers(self):
        path = self.write("t.gguf", tiny(nan=True))
        text = self.write("text", "the man and the van " * 4)
        self.assert_sentence(self.pith("parity", "-t", "1", "-m", path, "-f", text, "-n", "32"), "not numbers")
        task = {"id": "a", "task": "x", "length": 8, "context_text": "the man ", "question_text": "the ", "target": "van"}
        tasks = self.write("tasks", json.dumps(task))
        self.assert_sentence(self.pith("bench", "-t", "1", "-m", path, "--ctx", "64", "-n", "2", "-r", "1", "--keep", "1.0"),
                             "not numbers")
        for more in ([], ["--perturbation"], ["--reference"]):
            done = self.pith("eval", "-t", "1", "-m", path, "--tasks", tasks, "--recipes", "keydiff", "--keep", "0.5", *more)
            self.assert_sentence(done, "not numbers")


class Arguments(Case):
    def test_empty_values(self):
        path = self.write("t.gguf", tiny())
        for flags in (["-n", ""], ["-c", ""], ["--temp", ""], ["--kv-budget", ""], ["-s", ""], ["-m", ""], ["-f", ""],
                      ["--temp="], ["--recipe", ""]):
            given = ["-m", path] if flags[0] != "-m" else []
            prompt = ["-p", "ab"] if flags[0] != "-f" else []
            self.assert_sentence(self.pith("run", *given, "--raw", *prompt, *flags), "empty value", code=2)

    def test_numbers_are_decimal(self):
        result = self.run_json("--raw", "-p", "ab", "-n", "010", "-s", "0123", "--ignore-eos")
        self.assertEqual((result["tokens"], result["seed"]), (10, 123))
        path = self.write("t.gguf", tiny())
        for number in ("0x10", "1_0", "ten"):
            self.assert_sentence(self.pith("run", "-m", path, "-p", "ab", "-n", number), "decimal", code=2)

    def test_values_are_not_names(self):
        for prompt in ("-ub", "-ngl", "-fa", "--json", "-", "--"):
            self.assertEqual(self.run_json("--raw", "-p", prompt, "-n", "1")["prompt_tokens"], len(prompt), prompt)

    def test_names_of_llama_cpp(self):
        result = self.run_json("-no-cnv", "-p", "a\\nb", "-e", "-n", "1", "-fa", "on", "-tb", "1", "-np", "1", "-c", "0")
        self.assertEqual(result["prompt_tokens"], 3)
        path = self.write("t.gguf", tiny())
        self.assert_sentence(self.pith("run", "-m", path, "-p", "x", "-xyz", "1"), "no option -xyz", code=2)

    def test_what_llama_cpp_asks_of_memory(self):
        plain = self.run_json("--raw", "-p", "ab", "-n", "4")
        self.assertEqual(plain["text"], self.run_json("--raw", "-p", "ab", "-n", "4", "--no-mmap", "--mlock")["text"])
        good, bad = (self.write(f"{nan}.gguf", tiny(nan=nan)) for nan in (False, True))
        checked = ("--check-tensors", "--raw", "-p", "ab", "-n", "1")
        self.assertEqual(self.pith("run", "-m", good, *checked).returncode, 0)
        self.assert_sentence(self.pith("run", "-m", bad, *checked), "invalid data")

    def test_what_changes_nothing_is_said_once(self):
        path = self.write("t.gguf", tiny())
        done = self.pith("run", "-m", path, "-p", "ab", "--raw", "-n", "1", "--jinja", "--numa", "distribute")
        self.assertEqual(done.returncode, 0)
        self.assertEqual(done.stderr.decode().count("changes nothing"), 1)
        self.assertIn("--numa changes nothing", done.stderr.decode())

    def test_what_may_have_been_meant(self):
        self.assert_sentence(self.pith("run", "--kv-buget", "1"), "--kv-budget may be what is meant", code=2)
        self.assert_sentence(self.pith("rnu"), "run may be what is meant", code=2)
        self.assert_sentence(self.pith("recipes", "snapkw"), "snapkv may be what is meant", code=2)

    def test_what_to_type(self):
        done = self.pith("help")
        self.assertEqual(done.returncode, 0)
        self.assertIn("pith run", done.stdout.decode())
        self.assert_sentence(self.pith("-p", "hi"), "pith run -p hi", code=2)
        self.assert_sentence(self.pith("some.gguf"), "pith chat -m some.gguf", code=2)
        short, every = (self.pith("recipes", *flags).stdout.decode() for flags in ([], ["--long"]))
        self.assertLess(len(short.splitlines()), 60)
        self.assertIn("--long", short)
        self.assertGreater(len(every), 3 * len(short))
        self.assertIn("score=snapkv", self.pith("recipes", "snapkv").stdout.decode())
        self.assert_sentence(self.pith("recipes", "no_such"), "no_such", code=2)


class Files(Case):
    def session(self, *flags, model="t.gguf"):
        return self.pith("run", "-t", "1", "-m", self.at(model), "--raw", "-p", "the man and the van", "-n", "2",
                         "--prompt-cache", self.at("s"), *flags)

    def test_a_session_is_of_its_weights_and_adapters(self):
        self.write("t.gguf", tiny(seed=1))
        self.write("other.gguf", tiny(seed=2))
        for name, seed in (("1.lora", 1), ("2.lora", 2)):
            self.write(name, lora(seed))
        self.assertEqual(self.session("--lora", self.at("1.lora")).returncode, 0)
        again = self.session("--lora", self.at("1.lora"))
        self.assertIn("come from", again.stderr.decode())
        for flags in (["--lora", self.at("2.lora")], [], ["--lora-scaled", self.at("1.lora"), "0.5"]):
            self.assert_sentence(self.session(*flags), "other adapters")
        os.remove(self.at("s"))
        self.assertEqual(self.session().returncode, 0)
        self.assert_sentence(self.session(model="other.gguf"), "other weights")

    def test_an_empty_session_file_is_none_yet(self):
        self.write("t.gguf", tiny())
        self.write("s", b"")
        self.assertEqual(self.session().returncode, 0)
        self.assertGreater(os.path.getsize(self.at("s")), 1000)

    def test_numbers_that_are_none_in_a_session(self):
        self.write("t.gguf", tiny())
        self.assertEqual(self.session().returncode, 0)
        with open(self.at("s"), "rb") as file:
            data = bytearray(file.read())
        logits = data.index(struct.pack("<Q", NUM_TOKENS)) + 8
        data[logits:logits + 4] = struct.pack("<f", float("nan"))
        table = range(256)
        for _ in range(8):  # CRC-32C
            table = [value >> 1 ^ (0x82f63b78 if value & 1 else 0) for value in table]
        sum_ = 0xffffffff
        for byte in data[32:]:
            sum_ = sum_ >> 8 ^ table[(sum_ ^ byte) & 255]
        data[24:32] = struct.pack("<Q", sum_ ^ 0xffffffff)
        self.write("s", bytes(data))
        self.assert_sentence(self.session(), "not numbers")

    def test_links_are_followed_and_devices_stay(self):
        self.write("t.gguf", tiny())
        self.write("old", b"")
        os.symlink("old", self.at("s"))
        self.assertEqual(self.session().returncode, 0)
        self.assertTrue(os.path.islink(self.at("s")))
        self.assertGreater(os.path.getsize(self.at("old")), 1000)
        task = {"id": "a", "task": "x", "length": 8, "context_text": "the man ", "question_text": "the ", "target": "van"}
        tasks = self.write("tasks", json.dumps(task))
        flags = ["eval", "-t", "1", "-m", self.at("t.gguf"), "--tasks", tasks, "--recipes", "keydiff", "--keep", "0.5"]
        os.symlink("/dev/null", self.at("null"))
        os.symlink("there", self.at("link"))
        done = self.pith(*flags, "--html", self.at("null"), "--output", self.at("link"), "--resume", "/dev/null")
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        self.assertTrue(os.path.islink(self.at("null")) and os.path.islink(self.at("link")))
        self.assertTrue(stat.S_ISCHR(os.stat("/dev/null").st_mode))
        self.assertGreater(os.path.getsize(self.at("there")), 100)
        self.assert_sentence(self.pith(*flags, "--output", "/dev/full"), "/dev/full")
        for option in ("--html", "--output"):  # before the work, of which nothing is printed
            done = self.pith(*flags, option, self.at("none/x"))
            self.assert_sentence(done, "none/x")
            self.assertEqual(done.stdout, b"")
        self.assertEqual([name for name in os.listdir(self.folder) if name.startswith(".")], [])

    def test_a_full_disk_behind_standard_output(self):
        path = self.write("t.gguf", tiny())
        for arguments in (["run", "-t", "1", "-m", path, "--raw", "-p", "ab", "-n", "3"],
                          ["run", "-t", "1", "-m", path, "--raw", "-p", "ab", "-n", "3", "--json"], ["recipes"], ["--help"],
                          ["--version"], ["info", path], ["recipes", "--markdown"]):
            with self.subTest(arguments=arguments), open("/dev/full", "wb") as full:
                done = self.pith(*arguments, stdout=full)
                self.assertEqual(done.returncode, 1)
                self.assertIn("pith: not all of the output could be written", done.stderr.decode())

    def test_standard_error_that_takes_nothing(self):
        """What was asked for is there all the same."""
        path = self.write("t.gguf", tiny())
        run = ["run", "-t", "1", "-m", path, "--raw", "-p", "ab", "-n", "3"]
        plain = self.pith(*run)
        for redirection in ("2>/dev/full", "2>&-"):
            for arguments, code, output in ((run, 0, plain.stdout), (["run", "-m", "none", "-p", "x"], 1, b""),
                                            (["nosuch"], 2, b""), (["recipes", "nosuch"], 2, b"")):
                with self.subTest(redirection=redirection, arguments=arguments):
                    command = f'exec "$0" "$@" {redirection}'
                    done = subprocess.run(["bash", "-c", command, BINARY, *arguments], stdin=subprocess.DEVNULL,
                                          stdout=subprocess.PIPE, timeout=TIMEOUT, cwd=self.folder)
                    self.assertEqual((done.returncode, done.stdout), (code, output))

    def test_closed_streams_do_not_become_files(self):
        """A file that is opened takes the lowest free number, which must not be that of standard error or output."""
        path = self.write("t.gguf", tiny())
        for closed, code in (("2>&-", 0), (">&-", 1), (">&- 2>&-", 1), ("<&- >&- 2>&-", 1)):
            with self.subTest(closed=closed):
                command = f'exec "$0" run -t 1 -m "$1" --raw -p "the man" -n 2 --prompt-cache "$2" {closed}'
                done = subprocess.run(["bash", "-c", command, BINARY, path, self.at("s")], stderr=subprocess.DEVNULL,
                                      stdout=subprocess.DEVNULL, timeout=TIMEOUT, cwd=self.folder)
                self.assertEqual(done.returncode, code)
                again = self.pith("run", "-t", "1", "-m", path, "--raw", "-p", "the man", "-n", "2", "--prompt-cache",
                                  self.at("s"))
                self.assertIn("come from", again.stderr.decode())
                os.remove(self.at("s"))

    def test_devices_that_do_not_end(self):
        done = self.pith("run", "-t", "1", "-m", self.write("t.gguf", tiny()), "--raw", "-f", "/dev/zero", "-n", "1")
        self.assert_sentence(done, "does not end")

    def test_the_file_that_is_missing_is_named(self):
        path = self.write("t.gguf", tiny())
        adapter = self.write("a.lora", lora(1))
        done = self.pith("run", "--lora", "nosuch.gguf", "-p", "hi", "-n", "2", env={"PITH_DEFAULT_MODEL": path})
        self.assert_sentence(done, "nosuch.gguf")
        self.assert_sentence(self.pith("run", "-p", "hi", env={"PITH_DEFAULT_MODEL": self.at("none")}), "default model")
        done = self.pith("info", "--lora", adapter, path)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        self.assertEqual(json.loads(self.pith("info", "--json", "--lora", adapter, path).stdout)["path"], path)


if __name__ == "__main__":
    unittest.main()
