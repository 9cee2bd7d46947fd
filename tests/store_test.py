#!/usr/bin/env python3
"""Prefixes that outlive their process, by the program: store_test.py CLASS...

PITH_BINARY names the program. Needs the default model.
"""
import glob
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
import unittest

import cli_test
from cli_test import pith, model_flags
from serve_test import Server, default_model

BOOK = " ".join(f"In chapter {i} the river met a garden and paid {i * 37 % 101} coins to the engine of letter {i * 7}." for i in range(24))


class StoreCase(cli_test.ModelCase):
    def setUp(self):
        super().setUp()
        self.store = os.path.join(self.folder, "store")

    def wait_until(self, holds, seconds=60):
        began = time.time()
        while not holds():
            self.assertLess(time.time() - began, seconds, "it never came to that")
            time.sleep(0.1)

    def run_json(self, prompt, *flags, store=None, n=12):
        path = self.write("prompt.txt", prompt.encode())
        given = ["--store", store or self.store] if store != "" else []
        return self.json_of(pith("run", *model_flags(), "--json", "--temp", "0", "-n", str(n), "-c", "2048", "--raw", "-f", path,
                                 *given, *flags))


class Kept(StoreCase):
    def test_the_second_process_starts_at_once(self):
        first = self.run_json(BOOK, "--recipe", "full")
        self.assertEqual(first["cached_tokens"], 0)
        second = self.run_json(BOOK, "--recipe", "full")
        self.assertEqual(second["cached_tokens"], second["prompt_tokens"])
        self.assertEqual(second["cached_in"], "ssd")
        self.assertEqual(second["text"], first["text"])
        self.assertLess(second["timings"]["ttft_ms"], first["timings"]["ttft_ms"] / 2)

    def test_another_question_reads_itself_alone(self):
        plain = self.run_json(BOOK + " What did it pay?", "--recipe", "full", store="")
        self.run_json(BOOK + " Who met the river?", "--recipe", "full")
        got = self.run_json(BOOK + " What did it pay?", "--recipe", "full")
        self.assertGreater(got["cached_tokens"], 0.9 * got["prompt_tokens"])
        self.assertEqual(got["text"], plain["text"])

    def test_evicted_caches_meet_where_texts_part(self):
        flags = ("--recipe", "keydiff", "--kv-budget", "10%", "-b", "64")
        hits = [self.run_json(BOOK + question, *flags)["cached_tokens"] for question in (" Who met the river and why did it?", " What did it pay for all of this?", " Where is it, and when will it end?")]
        self.assertEqual(hits[:2], [0, 0])
        self.assertGreater(hits[2], 200)

    def test_a_prompt_compressed_once(self):
        flags = ("--recipe", "keydiff", "--compress", "after", "--keep", "0.3")
        first, second = (self.run_json(BOOK, *flags) for _ in range(2))
        self.assertEqual(second["cached_tokens"], second["prompt_tokens"])
        self.assertEqual(second["text"], first["text"])
        self.assertEqual(second["kv"]["entries"], first["kv"]["entries"])
        other = self.run_json(BOOK, "--recipe", "keydiff", "--compress", "after", "--keep", "0.5")
        self.assertEqual(other["cached_tokens"], 0)

    def test_chat_takes_up_its_system_message(self):
        rules = self.write("rules.txt", BOOK.encode())
        flags = ("--system-prompt-file", rules, "--store", self.store, "-n", "4", "-c", "2048", "--temp", "0")
        first = pith("chat", *model_flags(), *flags, text=b"Hello!\n")
        self.assertEqual(first.returncode, 0, first.stderr.decode())
        self.assertNotIn(b"come from the store", first.stderr)
        second = pith("chat", *model_flags(), *flags, text=b"What is it?\n")
        self.assertIn(b"come from the store", second.stderr)

    def test_damage_is_a_miss(self):
        first = self.run_json(BOOK)
        (name,) = os.listdir(self.store)
        with open(os.path.join(self.store, name), "r+b") as file:
            file.seek(os.path.getsize(file.name) // 2)
            file.write(b"damage")
        second = self.run_json(BOOK)
        self.assertEqual(second["cached_tokens"], 0)
        self.assertEqual(second["text"], first["text"])

    def test_a_folder_that_cannot_be_made(self):
        done = pith("run", *model_flags(), "-p", "x", "--store", "/dev/null/store")
        self.assert_sentence(done, codes=(1,))
        for bad in ("redis-sentinel://localhost:6379", self.store + ",rum=1MiB", self.store + ",place=evicpress"):
            self.assert_sentence(pith("run", *model_flags(), "-p", "x", "--store", bad), codes=(2,))


class Placed(StoreCase):
    def test_contexts_are_compressed_and_placed(self):
        """The third question finds the text compressed, and starts from it."""
        store = self.store + ",place=evicpress,loss=50%,ram=8MiB"
        for question in (" Who met the river and why did it?", " What did it pay for all of this?"):
            self.run_json(BOOK + question, "--recipe", "full", store=store, n=4)
        listed = self.json_of(pith("store", "ls", self.store, "--json"))
        contexts = [one for one in listed if one["config"].startswith("context {")]
        self.assertEqual(len(contexts), 1, listed)
        config = json.loads(contexts[0]["config"][len("context "):])
        self.assertEqual(len(config["quality"]), len(config["methods"]) * len(config["ratios"]))
        self.assertTrue(all(0 < quality <= 1 for quality in config["quality"]), config)
        self.assertLess(contexts[0]["bytes"], config["bytes"])
        got = self.run_json(BOOK + " Where is it, and when will it end?", "--recipe", "full", store=store, n=4)
        self.assertGreater(got["cached_tokens"], 200)


class Tidied(StoreCase):
    def ls(self):
        return self.json_of(pith("store", "ls", self.store, "--json"))

    def test_commands(self):
        self.assert_sentence(pith("store", "ls", self.store), "no store", codes=(1,))
        first = self.run_json(BOOK)
        (one,) = self.ls()
        self.assertEqual(one["tokens"], first["prompt_tokens"])
        stat = self.json_of(pith("store", "stat", self.store, "--json"))
        self.assertEqual(stat["prefixes"], 1)
        self.assertGreaterEqual(stat["file_bytes"], one["bytes"])
        session = os.path.join(self.folder, "one.session")
        self.assertEqual(pith("store", "get", self.store, one["key"][:8], "-o", session).returncode, 0)
        taken = self.run_json(BOOK, "--prompt-cache", session, store="")
        self.assertEqual(taken["cached_tokens"], first["prompt_tokens"])
        self.assertEqual(taken["text"], first["text"])
        self.assertEqual(self.json_of(pith("store", "verify", self.store, "--json")), {"prefixes": 1, "damaged": []})
        self.assert_sentence(pith("store", "rm", self.store, "ffff0000"), codes=(1,))
        self.assertEqual(pith("store", "rm", self.store, one["key"]).returncode, 0)
        self.assertEqual(self.ls(), [])
        self.assertEqual(self.run_json(BOOK)["cached_tokens"], 0)
        self.assertEqual(pith("store", "gc", self.store).returncode, 0)
        self.assertEqual(len(self.ls()), 1)

    def test_usage(self):
        for arguments in (("store",), ("store", "fly", self.store), ("store", "rm", self.store), ("store", "ls", "ram:1MiB"),
                          ("store", "get", self.store, "00"), ("store", "ls", self.store, "00")):
            self.assert_sentence(pith(*arguments), codes=(2,))

    def test_bench(self):
        rows = []
        while not rows or (len(rows) < 3 and rows[-1]["ram_ms"] >= rows[-1]["prefill_ms"]):  # another process came between
            result = self.json_of(pith("store", "bench", self.folder, *model_flags(), "--ctx", "256", "-r", "1", "--json"))
            rows += result["rows"]
            self.assertEqual(rows[-1]["tokens"], 256)
            self.assertGreater(result["load_bytes_per_second"], 0)
        self.assertLess(rows[-1]["ram_ms"], rows[-1]["prefill_ms"])

    def test_compare(self):
        result = self.json_of(pith("store", "compare", self.folder, *model_flags(), "--ctx", "128,192", "--contexts", "4",
                                   "--requests", "8", "--json"))
        arms = {arm["name"]: arm for arm in result["arms"]}
        self.assertEqual(len(arms), 7)
        self.assertEqual(arms["prefill"]["quality"], 1)
        self.assertGreater(arms["lru"]["quality"], 0.999)
        for arm in arms.values():
            self.assertTrue(0 < arm["quality"] <= 1, arm)


@unittest.skipUnless(os.path.exists(default_model()), "no default model")
class Served(StoreCase):
    def ask(self, server, prompt):
        status, _, body = server.post("/v1/completions", {"prompt": prompt, "max_tokens": 6})
        self.assertEqual(status, 200, body)
        return body["choices"][0]["text"], body["usage"].get("prompt_tokens_details", {}).get("cached_tokens", 0)

    def metrics(self, server):
        text = server.request("GET", "/metrics")[2]
        return {name: float(value) for name, value in re.findall(r"^(pith_store\S+) (\S+)$", text, re.M)}

    def test_a_restarted_server_knows_its_prompts(self):
        for flags in (("--recipe", "full"), ("--recipe", "keydiff", "--kv-budget", "12MiB", "-np", "2")):
            store = os.path.join(self.folder, "of" + flags[1])
            server = Server("--store", store, *flags)
            first, cached = self.ask(server, BOOK)
            self.assertEqual(cached, 0)
            self.assertEqual(server.stop(), 0)
            server = Server("--store", store, *flags)
            second, cached = self.ask(server, BOOK + first + " And then")
            self.assertGreater(cached, 300, flags)
            metrics = self.metrics(server)
            self.assertEqual(metrics["pith_store_hit_tokens_total"], cached)
            self.assertEqual(metrics['pith_store_requests_total{result="hit"}'], 1)
            self.assertGreater(metrics["pith_store_ttft_saved_seconds_total"], 0)
            self.assertEqual(server.stop(), 0)

    def test_a_killed_server_has_kept_what_it_wrote(self):
        flags = ("--store", self.store, "--recipe", "full")
        server = Server(*flags)
        self.addCleanup(server.process.kill)
        first, _ = self.ask(server, BOOK)
        # Written behind the answer, when nobody waits.
        self.wait_until(lambda: self.metrics(server).get('pith_store_puts_total{tier="ssd"}', 0) > 0)
        server.process.kill()
        server.process.wait()
        server = Server(*flags)
        second, cached = self.ask(server, BOOK)
        self.assertEqual(second, first)
        self.assertGreater(cached, 300)
        self.assertEqual(server.stop(), 0)


def programs():
    """Server and client: Debian's, or those that scripts/fetch_valkey_server.sh has fetched."""
    if shutil.which("redis-server") and shutil.which("redis-cli"):
        return "redis-server", "redis-cli"
    cache = os.environ.get("PITH_CACHE_DIR") or os.path.expanduser("~/.cache/pith")
    found = sorted(glob.glob(f"{cache}/valkey-server/*/valkey-server"))
    return (found[-1], found[-1].replace("valkey-server", "valkey-cli")) if found else None


def free_port():
    """Below 55,536: servers of a cluster meet ten thousand higher."""
    while True:
        port = random.randrange(20000, 30000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


@unittest.skipUnless(programs() and os.path.exists(default_model()), "no server of Redis or Valkey, or no default model")
class Remote(StoreCase):
    def servers(self, count, *flags):
        started = []
        for _ in range(count):
            port = free_port()
            folder = os.path.join(self.folder, f"server{port}")
            os.mkdir(folder)
            process = subprocess.Popen([programs()[0], "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "",
                                        "--appendonly", "no", *flags], stdout=subprocess.DEVNULL)
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
            started.append((port, process))
            self.wait_until(lambda: self.ask_it(port, "ping") == "PONG")
        return started

    def ask_it(self, port, *words):
        return subprocess.run([programs()[1], "-p", str(port), *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              text=True).stdout.strip()

    def check(self, url, kill):
        # The first one computes and writes; the next process takes it up, whatever its memory held.
        first = self.run_json(BOOK, "--recipe", "full", store=url)
        self.assertEqual(first["cached_tokens"], 0)
        second = self.run_json(BOOK, "--recipe", "full", store=url)
        self.assertEqual((second["cached_in"], second["cached_tokens"]), ("remote", second["prompt_tokens"]))
        self.assertEqual(second["text"], first["text"])
        kill()
        third = self.run_json(BOOK, "--recipe", "full", store=url)
        self.assertEqual((third["cached_tokens"], third["text"]), (0, first["text"]))

    def test_one_server(self):
        (port, process), = self.servers(1)
        self.check(f"redis://127.0.0.1:{port}", process.kill)

    def test_a_cluster(self):
        servers = self.servers(3, "--cluster-enabled", "yes")
        ports = [f"127.0.0.1:{port}" for port, _ in servers]
        subprocess.run([programs()[1], "--cluster", "create", *ports, "--cluster-yes"], stdout=subprocess.DEVNULL, check=True)
        for port, _ in servers:
            self.wait_until(lambda: "cluster_state:ok" in self.ask_it(port, "cluster", "info"))
        self.check("valkey-cluster://" + ",".join(ports), lambda: [process.kill() for _, process in servers])


if __name__ == "__main__":
    sys.exit(unittest.main())
