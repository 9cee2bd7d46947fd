#!/usr/bin/env python3
"""pith serve against real clients and raw sockets: serve_test.py CLASS...

PITH_BINARY names the program. Clients of OpenAI, Anthropic and Ollama come from PyPI into a folder beside the build,
once; where the index cannot be reached, their tests are skipped. Needs the default model.
"""

import glob
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

BINARY = os.environ.get("PITH_BINARY", "build/release/pith")
CLIENTS = ["openai", "anthropic", "ollama", "langchain-openai"]
KEY = "sk-test-key"
WEATHER = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Bonn"]}}, "required": ["city"]}


def default_model():
    cache = os.environ.get("PITH_CACHE_DIR") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pith")
    return os.environ.get("PITH_DEFAULT_MODEL") or next(iter(glob.glob(cache + "/models/SmolLM2-135M-Instruct*.gguf")), "")


def use_clients():
    """Makes the clients importable; None, or why they are not."""
    try:
        import anthropic, langchain_openai, ollama, openai  # noqa: F401, E401
        return None
    except ImportError:
        pass
    folder = os.path.join(os.path.dirname(os.path.abspath(BINARY)), "serve-clients")
    if not os.path.exists(folder + "/done"):
        done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", "--target", folder] +
                              CLIENTS, capture_output=True, text=True)
        if done.returncode != 0:
            return "the clients cannot be installed: " + (done.stderr.strip().splitlines() or ["?"])[-1]
        open(folder + "/done", "w").close()
    sys.path.insert(0, folder)
    return None


class Server:
    """One program on a free port."""

    def __init__(self, *flags, env=None):
        for name, value in (("-np", "4"), ("-c", "2048")):
            if name not in flags:
                flags = (name, value, *flags)
        self.process = subprocess.Popen([BINARY, "serve", "--port", "0", "--temp", "0", *flags],
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})})
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        if not found:
            said = self.process.stderr.read()
            self.process.communicate()
            raise RuntimeError(f"the server said {line!r} {said!r}")
        self.port = int(found.group(1))
        self.url = f"http://127.0.0.1:{self.port}"

    def request(self, method, path, body=None, headers=None):
        """(status, headers, body); a body that is no bytes is sent as JSON, JSON answers are parsed."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, headers or {})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        is_json = "json" in (answer.getheader("Content-Type") or "") and "ndjson" not in answer.getheader("Content-Type")
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, json.loads(text) if is_json and text else text.decode()

    def post(self, path, body, headers=None):
        return self.request("POST", path, body, headers)

    def raw(self, data, timeout=10):
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(data)
            out = b""
            try:
                while True:
                    part = connection.recv(65536)
                    if not part:
                        return out
                    out += part
            except (socket.timeout, ConnectionResetError):
                return out

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.stdout.close()
        self.process.stderr.close()
        return self.process.returncode


def events(text):
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ") and line != "data: [DONE]"]


@unittest.skipUnless(os.path.exists(default_model()), "no default model")
class Served(unittest.TestCase):
    flags = ()

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.flags)

    @classmethod
    def tearDownClass(cls):
        code = cls.server.stop()
        assert code == 0, f"the server ended with {code}"


class Manners(Served):
    """Raw sockets and wrong requests."""

    def test_errors_have_the_shape_of_their_path(self):
        for path in ("/v1/chat/completions", "/v1/messages", "/api/chat"):
            for body in (b"{", b"", b"[]", b"\xff\xfe", b'"a"', b'{"messages": 5}', b'{"model": 5}', b"[" * 100000,
                         b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1e999}',
                         b'{"messages": [{"role": "user", "content": "\xff"}]}'):
                status, _, answer = self.server.post(path, body)
                self.assertEqual(status, 400, (path, body[:80], answer))
                if path == "/api/chat":
                    self.assertIsInstance(answer["error"], str)
                else:
                    self.assertIsInstance(answer["error"]["message"], str)
                    self.assertEqual(answer["error"]["type"], "invalid_request_error")
                if path == "/v1/messages":
                    self.assertEqual(answer["type"], "error")

    def test_members_of_the_wrong_type(self):
        messages = [{"role": "user", "content": "a"}]
        wrong = {"temperature": "hot", "top_p": 2, "n": 0, "max_tokens": "5", "stop": 3, "stream": "yes", "seed": 1.5, "logprobs": 1,
                 "top_logprobs": 5, "logit_bias": {"a": 1}, "tools": {}, "tool_choice": "maybe", "response_format": "json",
                 "kv_budget": -1, "recipe": "nonsense", "session": 1, "pin": 3, "stream_options": []}
        for name, value in wrong.items():
            status, _, answer = self.server.post("/v1/chat/completions", {"messages": messages, name: value})
            self.assertEqual(status, 400, (name, answer))
            self.assertIn(name, answer["error"]["message"])
        for messages in ([], "a", [5], [{}], [{"role": "king", "content": "a"}], [{"role": "user"}],
                         [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}]):
            self.assertEqual(self.server.post("/v1/chat/completions", {"messages": messages})[0], 400, messages)
        for bias in ({"999999": 1}, {"-1": 1}, [[999999, 1]]):
            self.assertEqual(self.server.post("/v1/chat/completions",
                                              {"messages": [{"role": "user", "content": "a"}], "logit_bias": bias})[0], 400)

    def test_null_is_nothing_and_unknown_members_are_ignored(self):
        body = {"messages": [{"role": "user", "content": "Hi", "name": None}], "max_tokens": 2, "who": 1}
        for name in ("temperature", "top_p", "n", "stop", "stream", "seed", "logprobs", "top_logprobs", "logit_bias", "tools",
                     "tool_choice", "response_format", "kv_budget", "recipe", "session", "pin", "stream_options", "user", "model"):
            body[name] = None
        status, _, answer = self.server.post("/v1/chat/completions", body)
        self.assertEqual(status, 200, answer)

    def test_methods_and_paths(self):
        status, headers, _ = self.server.request("GET", "/v1/chat/completions")
        self.assertEqual(status, 405)
        self.assertIn("POST", headers["allow"])
        status, headers, _ = self.server.request("DELETE", "/v1/models")
        self.assertEqual((status, "GET" in headers["allow"]), (405, True))
        self.assertEqual(self.server.request("GET", "/nowhere")[0], 404)
        self.assertEqual(self.server.request("GET", "/v1/models/none")[0], 404)
        self.assertEqual(self.server.request("GET", "/%zz")[0], 400)
        status, headers, page = self.server.request("GET", "/")
        self.assertEqual((status, headers["content-type"]), (200, "text/html; charset=utf-8"))
        self.assertFalse(re.findall(r"(?:src|href)=.?(?:https?:|//)", page), "the page loads nothing from elsewhere")
        status, headers, _ = self.server.request("OPTIONS", "/v1/chat/completions", headers={"Origin": "http://evil.example"})
        self.assertEqual(status, 204)
        self.assertFalse([name for name in headers if name.startswith("access-control")])
        status, _, body = self.server.request("HEAD", "/health")
        self.assertEqual((status, body), (200, ""))

    def test_a_large_body_is_refused_at_once(self):
        start = time.time()
        answer = self.server.raw(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 50000000000\r\n\r\n")
        self.assertIn(b" 413 ", answer.split(b"\r\n")[0])
        self.assertLess(time.time() - start, 5)

    def test_broken_http(self):
        for data in (b"GET /health HTTP/1.1\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: a/b\r\n\r\n", b"NONSENSE\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /health HTTP/1.1\r\nContent-Length: x\r\n\r\n",
                     b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
                     b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"POST /tokenize HTTP/1.1\r\nContent-Length: 2,2\r\n\r\n{}"):
            self.assertIn(b" 400 ", self.server.raw(data).split(b"\r\n")[0], data)
        self.assertIn(b" 431 ", self.server.raw(b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"a" * 100000 + b"\r\n\r\n").split(b"\r\n")[0])

    def test_connections_stay_open_and_requests_may_come_together(self):
        one = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
        last = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        self.assertEqual(self.server.raw(one + one + last).count(b"HTTP/1.1 200 OK"), 3)
        body = b'{"content": "a"}'
        head = b"POST /tokenize HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.assertIn(b" 200 ", self.server.raw(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)).split(b"\r\n")[0])
        expects = b"POST /tokenize HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
        self.assertTrue(self.server.raw(expects + body).startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK"))
        self.assertIn(b"Connection: close", self.server.raw(b"GET /health HTTP/1.0\r\n\r\n"))

    def test_a_client_that_leaves_is_noticed_while_its_prompt_is_read(self):
        body = json.dumps({"prompt": "word " * 1900, "n_predict": 100, "cache_prompt": False}).encode()
        with socket.create_connection(("127.0.0.1", self.server.port)) as connection:
            connection.sendall(b"POST /completion HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            for _ in range(200):
                if any(slot["is_processing"] for slot in self.server.request("GET", "/slots")[2]):
                    break
                time.sleep(0.05)
        start = time.time()
        while any(slot["is_processing"] for slot in self.server.request("GET", "/slots")[2]):
            self.assertLess(time.time() - start, 5)
            time.sleep(0.05)

    def test_schemas_and_grammars_that_are_bombs(self):
        messages = [{"role": "user", "content": "a"}]
        nested = {"type": "string"}
        for _ in range(60):
            nested = {"type": "array", "items": nested, "minItems": 50, "maxItems": 100}
        levels = {"type": "object"}
        for _ in range(30):
            levels = {"type": "array", "items": levels, "minItems": 50, "maxItems": 50}
        for schema in ({"type": "array", "items": {"type": "string"}, "minItems": 5, "maxItems": 2}, nested,
                       {"type": "object", "properties": {"a": {"type": "nothing"}}}, {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, levels,
                       {"type": "string", "pattern": "^(a{1,2000}){1,2000}$"}, {"type": "string", "pattern": "("},
                       {"type": "object", "properties": {"a": {"type": "string", "pattern": "^[a-z$"}}}):
            start = time.time()
            status, _, answer = self.server.post("/v1/chat/completions", {"messages": messages, "response_format": {
                "type": "json_schema", "json_schema": {"name": "a", "schema": schema}}})
            self.assertEqual(status, 400, answer)
            self.assertLess(time.time() - start, 5)
        start = time.time()
        status, _, answer = self.server.post("/completion", {"prompt": "a", "n_predict": 60,
                                                             "grammar": 'root ::= [a-z ] x x x | [a-z ]\nx ::= root | ""'})
        self.assertIn(status, (200, 400), answer)
        self.assertLess(time.time() - start, 10)
        for grammar in ("root ::= ((\"a\"{1000}){1000}){1000}", "root ::= \"a\"{9,1}", "nonsense", "root ::= root"):
            self.assertEqual(self.server.post("/completion", {"prompt": "a", "grammar": grammar})[0], 400, grammar)


    def test_what_would_take_much_memory(self):
        with open(f"/proc/{self.server.process.pid}/status") as status:
            before = int(re.search(r"VmHWM:\s+(\d+)", status.read()).group(1))
        body = {"prompt": "One two", "n_predict": 4, "repeat_last_n": 2**31 - 1, "repeat_penalty": 1.1, "dry_multiplier": 0.5,
                "dry_penalty_last_n": 2**31 - 1}
        self.assertEqual(self.server.post("/completion", body)[2]["tokens_predicted"], 4)
        self.assertEqual(self.server.post("/completion", {"prompt": "One", "n_probs": 1000})[0], 400)
        with open(f"/proc/{self.server.process.pid}/status") as status:
            after = int(re.search(r"VmHWM:\s+(\d+)", status.read()).group(1))
        self.assertLess(after - before, 100000, "KiB")

    def test_results_of_tools_name_their_calls(self):
        call = {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
        for result, status in (({"tool_call_id": "call_1"}, 200), ({}, 400), ({"tool_call_id": 1}, 400)):
            talk = [{"role": "user", "content": "When?"}, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "noon", **result}]
            self.assertEqual(self.server.post("/v1/chat/completions", {"messages": talk, "max_tokens": 2})[0], status, result)
        for tokens, status in ((0, 400), (-1, 400), (2, 200)):
            self.assertEqual(self.server.post("/v1/responses", {"input": "Hi", "max_output_tokens": tokens})[0], status, tokens)

    def test_samplers_that_are_unknown_are_left_out(self):
        for samplers, known in ((["top_k", "none such", "temperature"], ["top_k", "temperature"]), ("kt!", ["top_k", "temperature"])):
            settings = self.server.post("/completion", {"prompt": "One", "n_predict": 1, "samplers": samplers})[2]["generation_settings"]
            self.assertEqual(settings["samplers"], known)
        self.assertEqual(self.server.post("/completion", {"prompt": "One", "samplers": 5})[0], 400)


class Llama(Served):
    """llama-server's endpoints."""

    def test_health_props_slots_metrics(self):
        self.assertEqual(self.server.request("GET", "/health")[2], {"status": "ok"})
        props = self.server.request("GET", "/props")[2]
        self.assertEqual((props["total_slots"], props["default_generation_settings"]["n_ctx"]), (4, 2048))
        self.assertIn("im_start", props["chat_template"])
        self.assertEqual([slot["id"] for slot in self.server.request("GET", "/slots")[2]], [0, 1, 2, 3])
        for _ in range(5):  # who asks after an answer finds nothing that runs
            self.server.post("/completion", {"prompt": "One two", "n_predict": 3})
            self.assertIn("\npith:kv_live_sequences 0\n", self.server.request("GET", "/metrics")[2])
        text = self.server.request("GET", "/metrics")[2]
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        for name in ("llamacpp:prompt_tokens_total", "llamacpp:tokens_predicted_total", "vllm:kv_cache_usage_perc", "pith:kv_budget_bytes"):
            self.assertGreater(float(values[name]), 0, name)
        self.assertEqual(float(values["pith:kv_live_sequences"]), 0)
        self.assertIn('pith:time_to_first_token_seconds_bucket{le="+Inf"}', values)

    def test_what_the_prompts_metrics_count(self):
        def metrics():
            text = self.server.request("GET", "/metrics")[2]
            return {name: float(re.search(r"^llamacpp:%s (\S+)$" % name, text, re.MULTILINE).group(1))
                    for name in ("prompt_tokens_total", "prompt_tokens_cached_total", "tokens_predicted_total", "n_tokens_max")}
        body = {"prompt": "The river ran by the old town. " * 40, "n_predict": 4, "ignore_eos": True}
        before = metrics()
        read = cached = 0
        for _ in range(3):  # the second and third find it there
            timings = self.server.post("/completion", body)[2]["timings"]
            read, cached = read + timings["prompt_n"], cached + timings["cache_n"]
        after = metrics()
        self.assertGreater(cached, read, "control")
        self.assertEqual(after["prompt_tokens_total"] - before["prompt_tokens_total"], read)
        self.assertEqual(after["prompt_tokens_cached_total"] - before["prompt_tokens_cached_total"], cached)
        self.assertEqual(after["tokens_predicted_total"] - before["tokens_predicted_total"], 12)
        self.assertGreaterEqual(after["n_tokens_max"], (read + cached) / 3)

    def test_tokens_and_back(self):
        text = "Grüße, 世界! \u0000 <|im_end|>"
        tokens = self.server.post("/tokenize", {"content": text})[2]["tokens"]
        self.assertEqual(self.server.post("/detokenize", {"tokens": tokens})[2]["content"], text)
        pieces = self.server.post("/tokenize", {"content": "a b", "with_pieces": True})[2]["tokens"]
        self.assertEqual("".join(one["piece"] for one in pieces), "a b")
        for tokens in ([10**9], [-1], ["a"], 5, [1.5]):
            self.assertEqual(self.server.post("/detokenize", {"tokens": tokens})[0], 400, tokens)
        prompt = self.server.post("/apply-template", {"messages": [{"role": "user", "content": "Hi"}]})[2]["prompt"]
        self.assertTrue(prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"), prompt)

    def test_completion(self):
        body = {"prompt": "The capital of France is", "n_predict": 8, "temperature": 0, "return_tokens": True, "n_probs": 3}
        status, _, whole = self.server.post("/completion", body)
        self.assertEqual(status, 200, whole)
        self.assertIn("Paris", whole["content"])
        self.assertEqual((whole["tokens_predicted"], len(whole["tokens"]), whole["stop_type"], whole["truncated"]), (8, 8, "limit", False))
        self.assertEqual(len(whole["completion_probabilities"]), 8)
        self.assertEqual(whole["timings"]["predicted_n"], 8)
        self.assertEqual(whole["kv"]["kept_fraction"], 1)
        parts = events(self.server.post("/completion", {**body, "stream": True})[2])
        self.assertEqual("".join(part["content"] for part in parts), whole["content"])
        self.assertTrue(parts[-1]["stop"])
        long = {**body, "prompt": "A river runs through the town. " * 20}
        self.assertEqual(self.server.post("/completion", long)[0], 200)
        self.assertGreater(self.server.post("/completion", long)[2]["timings"]["cache_n"], 100)
        stopped = self.server.post("/completion", {**body, "stop": ["Paris"]})[2]
        self.assertEqual((stopped["stop_type"], stopped["stopping_word"]), ("word", "Paris"))
        self.assertEqual(self.server.post("/completion", {**body, "n_predict": 0})[2]["tokens_predicted"], 0)

    def test_what_tokens_were_drawn_from(self):
        body = {"prompt": "Today I would finally become a", "n_predict": 5, "n_probs": 10, "post_sampling_probs": True, "repeat_penalty": 1,
                "min_p": 0, "top_p": 1, "ignore_eos": True}
        drawn = lambda **more: self.server.post("/completion", {**body, **more})[2]["completion_probabilities"]
        for token in drawn(temperature=1, top_k=4):
            top = [one["prob"] for one in token["top_probs"]]
            self.assertEqual((len(top), top), (4, sorted(top, reverse=True)))
            self.assertAlmostEqual(sum(top), 1, places=5)
            self.assertIn(token["id"], [one["id"] for one in token["top_probs"]])
        many = drawn(temperature=1, top_k=0)[0]
        self.assertEqual(len(many["top_probs"]), 10)
        self.assertLess(sum(one["prob"] for one in many["top_probs"]), 1)
        self.assertTrue(all(token["prob"] == 1 and len(token["top_probs"]) == 1 for token in drawn(temperature=0)))
        hotter = drawn(temperature=5, top_k=4)[0]["top_probs"][0]["prob"]  # what samplers did shows
        self.assertLess(hotter, drawn(temperature=1, top_k=4)[0]["top_probs"][0]["prob"])

    def test_every_seed_is_one(self):
        # The second choice's is the number by which libllama means "any".
        body = {"prompt": "Once upon a time", "max_tokens": 12, "n": 2, "temperature": 1.8, "seed": 2**32 - 2}
        said = [[choice["text"] for choice in self.server.post("/v1/completions", body)[2]["choices"]] for _ in range(2)]
        self.assertEqual(said[0], said[1])
        self.assertNotEqual(said[0][0], said[0][1])

    def test_a_prompt_that_is_too_long(self):
        status, _, answer = self.server.post("/completion", {"prompt": "word " * 3000})
        self.assertEqual((status, answer["error"]["type"], answer["error"]["n_ctx"]), (400, "exceed_context_size_error", 2048))
        self.assertGreater(answer["error"]["n_prompt_tokens"], 2048)

    def test_unknown_slots(self):
        self.assertEqual(self.server.post("/slots/99?action=erase", {})[0], 404)
        self.assertEqual(self.server.post("/slots/x?action=erase", {})[0], 400)
        self.assertEqual(self.server.post("/slots/0?action=dance", {})[0], 400)
        self.assertEqual(self.server.post("/slots/0?action=save", {"filename": "a"})[0], 501)
        self.assertEqual(self.server.post("/completion", {"prompt": "a", "id_slot": 99})[0], 400)


class Infill(unittest.TestCase):
    """What editors ask for: of a model whose tokenizer has tokens for it, and of one whose has none."""

    def setUp(self):
        self.tool = os.environ.get("PITH_NARROW_MODEL", "")
        if not self.tool or not os.path.exists(default_model()):
            self.skipTest("no default model, or no narrow_model")

    def test_requests_of_editors(self):
        with tempfile.TemporaryDirectory() as folder:
            path = folder + "/fim.gguf"
            tokens = {"fim_pre": 7, "fim_suf": 8, "fim_mid": 9, "fim_rep": 4, "fim_sep": 5}
            subprocess.run([self.tool, "default", path, "1"] + [f"tokenizer.ggml.{name}_token_id={token}" for name, token in tokens.items()], check=True)
            server = Server("-m", path)
            try:
                pre, suf, mid, rep, sep = [server.post("/detokenize", {"tokens": [token]})[2]["content"] for token in tokens.values()]
                # llama.vim's and llama.vscode's
                body = {"id_slot": 0, "input_prefix": "int a(", "input_suffix": ")\n", "prompt": "  x", "n_predict": 12, "n_indent": 2, "top_k": 40,
                        "input_extra": [{"filename": f"{i}.c", "text": "int b;\n" * 20, "time": [1, 2]} for i in range(3)], "top_p": 0.9,
                        "samplers": ["top_k", "top_p", "infill"], "stream": False, "cache_prompt": True, "t_max_prompt_ms": 500, "t_max_predict_ms": 1000,
                        "stop": []}
                ahead = server.post("/infill", {**body, "input_prefix": "", "input_suffix": "", "prompt": "", "n_predict": 0, "samplers": [],
                                                "t_max_predict_ms": 1, "response_fields": [""]})
                self.assertEqual((ahead[0], ahead[2]), (200, {}))
                status, _, answer = server.post("/infill", body)
                self.assertEqual(status, 200, answer)
                files = "".join(f"{sep}{i}.c\n" + "int b;\n" * 20 for i in range(3))
                self.assertEqual(answer["prompt"], f"{rep}myproject\n{files}{sep}filename\n{pre}int a(  x{suf})\n{mid}")
                self.assertIn("infill", answer["generation_settings"]["samplers"])
                self.assertGreater(answer["timings"]["cache_n"], 100, "the files had been read ahead")
                parts = events(server.post("/infill", {**body, "stream": True})[2])
                self.assertTrue(parts[-1]["stop"])
                long = server.post("/infill", {**body, "input_prefix": "a b c d\n" * 3000})[2]
                self.assertLess(long["tokens_evaluated"], 2048)
                self.assertTrue(long["prompt"].endswith(f"a b c d\n  x{suf})\n{mid}"))
                given = {"prompt": "int a(", "suffix": ")\n"}
                self.assertEqual(server.post("/v1/completions", {**given, "max_tokens": 3})[2]["usage"]["prompt_tokens"],
                                 server.post("/api/generate", {**given, "model": "m", "stream": False, "options": {"num_predict": 3}})[2]["prompt_eval_count"])
            finally:
                server.stop()

    def test_a_model_without_tokens_for_it(self):
        server = Server()
        try:
            status, _, answer = server.post("/infill", {"input_prefix": "a", "input_suffix": "b"})
            self.assertEqual((status, answer["error"]["type"]), (501, "not_supported_error"))
            self.assertIn("lacks the tokens for prefix, suffix, middle", answer["error"]["message"])
            self.assertEqual(server.post("/v1/completions", {"prompt": "a", "suffix": "b"})[0], 400)
            self.assertEqual(server.post("/api/generate", {"model": "m", "prompt": "a", "suffix": "b"})[0], 400)
            self.assertEqual(server.post("/v1/rerank", {"query": "a", "documents": ["b"]})[0], 501)
        finally:
            server.stop()


class Slots(unittest.TestCase):
    """Saved slots, the key, and the end."""

    def setUp(self):
        if not os.path.exists(default_model()):
            self.skipTest("no default model")

    def test_a_slot_goes_to_a_file_and_comes_back(self):
        with tempfile.TemporaryDirectory() as folder:
            server = Server("--slot-save-path", folder)
            try:
                prompt = "A long story about a river and a town. " * 10
                first = server.post("/completion", {"prompt": prompt, "n_predict": 4, "id_slot": 1, "temperature": 0})[2]
                slot = first["id_slot"]
                status, _, saved = server.post(f"/slots/{slot}?action=save", {"filename": "one.slot"})
                self.assertEqual(status, 200, saved)
                self.assertGreater(saved["n_saved"], 90)
                self.assertEqual(saved["n_written"], os.path.getsize(folder + "/one.slot"))
                erased = server.post(f"/slots/{slot}?action=erase", {})[2]
                self.assertGreater(erased["n_erased"], 90)
                status, _, restored = server.post(f"/slots/{slot}?action=restore", {"filename": "one.slot"})
                self.assertEqual((status, restored["n_restored"], restored["n_read"]), (200, saved["n_saved"], saved["n_written"]))
                again = server.post("/completion", {"prompt": prompt, "n_predict": 4, "temperature": 0})[2]
                self.assertEqual(again["content"], first["content"])
                self.assertGreater(again["timings"]["cache_n"], 90)
                for name in ("../one.slot", "/etc/passwd", "a/b", "", ".x", "a\u0000b", 5):
                    self.assertEqual(server.post("/slots/0?action=save", {"filename": name})[0], 400, name)
                self.assertEqual(server.post("/slots/0?action=restore", {"filename": "none"})[0], 404)
                self.assertEqual(os.listdir(folder), ["one.slot"])
            finally:
                server.stop()

    def test_slots_in_fewer_bytes(self):
        prompt = "A long story about a river and a town. " * 20
        sizes = []
        for flags in ((), ("--save-format", "comp")):
            with tempfile.TemporaryDirectory() as folder:
                server = Server("--slot-save-path", folder, *flags)
                try:
                    first = server.post("/completion", {"prompt": prompt, "n_predict": 4, "temperature": 0})[2]
                    saved = server.post(f"/slots/{first['id_slot']}?action=save", {"filename": "one"})[2]
                    sizes.append(saved["n_written"])
                    server.post(f"/slots/{first['id_slot']}?action=erase", {})
                    self.assertEqual(server.post("/slots/0?action=restore", {"filename": "one"})[0], 200)
                    again = server.post("/completion", {"prompt": prompt, "n_predict": 4, "temperature": 0})[2]
                    self.assertGreater(again["timings"]["cache_n"], 180)
                    self.assertEqual(again["content"], first["content"])
                finally:
                    server.stop()
        self.assertLess(2 * sizes[1], sizes[0])

    def test_an_edit_in_the_middle_costs_the_edit(self):
        for flags in ((), ("-np", "1", "-c", "640")):  # the latter: room for little more than one such prompt in a context
            with self.subTest(flags=flags):
                self.check_an_edit(Server("--cache-reuse", "32", *flags))

    def check_an_edit(self, server):
        try:
            story = " ".join(f"In chapter {i} the river paid {i * 37 % 101} coins." for i in range(30))
            ask = lambda edit, **more: server.post("/v1/chat/completions", {"max_tokens": 4, **more, "messages": [
                {"role": "system", "content": "You read ledgers."}, {"role": "user", "content": edit + story + " What did the river pay first?"}]})[2]
            count = lambda answer: (answer["usage"]["prompt_tokens"], answer["timings"]["cache_n"])
            first = ask("Be brief. ")
            prompt, cached = count(ask("Take your time, and say it in your own words. "))
            self.assertEqual(count(first)[1], 0)
            self.assertGreater(prompt, 400)
            self.assertGreater(cached, prompt - 40)
            prompt, cached = count(ask("Hurry up now: ", n_cache_reuse=0))
            self.assertLess(cached, 60, "without it, what stands before the edit")
            for wrong in (-1, "many", 1.5):
                self.assertEqual(server.post("/completion", {"prompt": "a", "n_cache_reuse": wrong})[0], 400)
        finally:
            server.stop()

    def test_what_a_slot_holds_of_a_token(self):
        server = Server("--api-key", KEY + ",other", "--kv-budget", "24MiB", "-np", "2")
        try:
            key, other = ({"Authorization": "Bearer " + name} for name in (KEY, "other"))
            answer = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "river and town " * 300}], "max_tokens": 4,
                                                           "kv_budget": "5MiB"}, key)[2]
            slot, gone = answer["kv"]["slot"], answer["kv"]["evicted_spans"]
            look = lambda position, who=key: server.request("GET", f"/slots/{slot}?position={position}", headers=who)
            status, _, first = look(0)
            self.assertEqual((status, first["id_slot"], len(first["layers"]), len(first["layers"][0])), (200, slot, 30, 3), first)
            self.assertTrue(all(head["held"] and head["pinned"] for layer in first["layers"] for head in layer))
            heads = [head for layer in look(first["n_tokens"] - 40)[2]["layers"] for head in layer]
            judged = [head for head in heads if head["held"] and not head["pinned"]]
            self.assertTrue(judged and all(0 <= head["rank"] <= 1 and head["format"] for head in judged), heads[:3])
            if gone:
                self.assertFalse(any(head["held"] for layer in look(gone[0][0])[2]["layers"] for head in layer))
            self.assertEqual(look(first["n_tokens"])[0], 400)
            self.assertEqual(look("x")[0], 400)
            self.assertEqual(look("")[0], 400)
            self.assertEqual(look(0, other)[0], 404, "another key's cache")
            self.assertEqual(server.request("GET", f"/slots/{slot}?position=0")[0], 401)
            self.assertEqual(server.request("GET", "/slots/9?position=0", headers=key)[0], 404)
        finally:
            server.stop()

    def test_the_key_guards_everything_but_health(self):
        server = Server("--api-key", KEY + ",other", env={"LLAMA_ARG_ALIAS": "named"})
        try:
            self.assertEqual(server.request("GET", "/health")[0], 200)
            for path in ("/v1/models", "/metrics", "/props", "/slots", "/api/tags", "/nowhere"):
                self.assertEqual(server.request("GET", path)[0], 401, path)
            for headers in ({"Authorization": "Bearer " + KEY}, {"x-api-key": "other"}):
                self.assertEqual(server.request("GET", "/v1/models", headers=headers)[2]["data"][0]["id"], "named")
            for key in ("", "sk", KEY + "x", KEY[:-1], KEY.upper()):
                self.assertEqual(server.request("GET", "/v1/models", headers={"Authorization": "Bearer " + key})[0], 401, key)
            self.assertEqual(server.post("/v1/messages", {})[2]["error"]["type"], "authentication_error")
        finally:
            server.stop()

    def test_the_end_waits_for_what_runs(self):
        server = Server("-np", "1")
        out = []
        body = {"prompt": "Once upon a time", "n_predict": 60, "ignore_eos": True, "temperature": 0}
        running = threading.Thread(target=lambda: out.append(server.post("/completion", body)))
        running.start()
        for _ in range(200):
            if server.request("GET", "/slots")[2][0]["is_processing"]:
                break
            time.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        for _ in range(100):
            status, headers, _ = server.request("GET", "/health")
            if status == 503:
                self.assertIn("retry-after", headers)
                break
            time.sleep(0.02)
        running.join()
        self.assertEqual((out[0][0], out[0][2]["tokens_predicted"]), (200, 60))
        server.process.wait(30)
        self.assertEqual(server.process.returncode, 0)
        server.stop()

    def test_a_full_queue_says_when_to_come_back(self):
        server = Server("-np", "1", "--queue", "1")
        try:
            body = {"prompt": "Once upon a time", "n_predict": 40, "ignore_eos": True}
            answers = []
            threads = [threading.Thread(target=lambda: answers.append(server.post("/completion", body))) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            refused = [headers for status, headers, _ in answers if status == 429]
            self.assertEqual(len(refused) + sum(status == 200 for status, _, _ in answers), 8)
            self.assertTrue(refused)
            self.assertTrue(all("retry-after" in headers for headers in refused))
        finally:
            server.stop()


class Models(unittest.TestCase):
    """Several models: loaded when they are asked for."""

    @classmethod
    def setUpClass(cls):
        if not os.path.exists(default_model()):
            raise unittest.SkipTest("no default model")
        maker = os.environ.get("PITH_RANDOM_MODEL") or os.path.join(os.path.dirname(BINARY), "tests", "random_model")
        cls.folder = tempfile.TemporaryDirectory()
        for name in ("one", "two"):
            os.symlink(default_model(), f"{cls.folder.name}/{name}.gguf")
        subprocess.run([maker, "bert", cls.folder.name + "/encoder.gguf"], check=True)
        with open(cls.folder.name + "/broken.gguf", "wb") as broken:
            broken.write(b"GGUF" + b"\xff" * 100)
        cls.server = Server("--models", cls.folder.name, "--slot-save-path", cls.folder.name, "--kv-budget", "64MiB")

    @classmethod
    def tearDownClass(cls):
        code = cls.server.stop()
        cls.folder.cleanup()
        assert code == 0, f"the server ended with {code}"

    def ask(self, model, **more):
        body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4, "temperature": 0, **more}
        return self.server.post("/v1/chat/completions", {**body, **({"model": model} if model else {})})

    def loaded(self):
        return [model["name"] for model in self.server.request("GET", "/api/ps")[2]["models"]]

    def test_models_come_and_go(self):
        names = [model["id"] for model in self.server.request("GET", "/v1/models")[2]["data"]]
        self.assertEqual(names, ["broken", "encoder", "one", "two"])
        status, _, first = self.ask("one")
        self.assertEqual((status, first["model"], self.loaded()), (200, "one", ["one"]))
        answers = []
        threads = [threading.Thread(target=lambda name=name: answers.append(self.ask(name))) for name in ("two", "one", "two", "one", "two:latest")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual([status for status, _, _ in answers], [200] * 5)
        # Beside others a last bit may differ, and with it a word that is nearly as likely as another: not the first one.
        first_words = {re.match(r"\w+", body["choices"][0]["message"]["content"]).group() for _, _, body in answers}
        self.assertEqual(first_words, set(re.findall(r"^\w+", first["choices"][0]["message"]["content"])))
        self.assertEqual(len(self.loaded()), 1)
        self.assertEqual(self.ask("")[2]["model"], self.loaded()[0])
        metrics = self.server.request("GET", "/metrics")[2]
        self.assertEqual(re.search(r"\npith:kv_budget_bytes (\S+)\n", metrics).group(1), str(64 << 20))

    def test_models_that_are_not_there(self):
        for path, shape in (("/v1/chat/completions", "model_not_found"), ("/v1/embeddings", "model_not_found")):
            status, _, body = self.server.post(path, {"model": "none", "messages": [], "input": "a"})
            self.assertEqual((status, body["error"]["code"]), (404, shape))
        self.assertEqual(self.server.post("/v1/messages", {"model": "none"})[2]["error"]["type"], "not_found_error")
        status, _, body = self.server.post("/api/chat", {"model": "none", "messages": []})
        self.assertEqual((status, "not found" in body["error"]), (404, True))
        status, _, body = self.ask("broken")
        self.assertEqual((status, self.ask("../one")[0]), (400, 404), body)

    def test_an_encoder(self):
        status, _, body = self.server.post("/v1/embeddings", {"model": "encoder", "input": [[5, 6, 7], [9]]})
        self.assertEqual((status, len(body["data"]) if status == 200 else body), (200, 2))
        self.assertAlmostEqual(sum(x * x for x in body["data"][0]["embedding"]), 1, places=3)
        self.assertNotEqual(body["data"][0]["embedding"], body["data"][1]["embedding"])
        self.assertEqual(self.ask("encoder")[0], 400)
        self.assertEqual(self.server.post("/api/show", {"model": "encoder"})[2]["capabilities"], ["embedding"])

    def test_keep_alive(self):
        self.server.post("/api/generate", {"model": "one", "keep_alive": "1h"})
        expires = self.server.request("GET", "/api/ps")[2]["models"][0]["expires_at"]
        self.assertGreater(expires, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3000)))
        answer = self.server.post("/api/generate", {"model": "one", "keep_alive": 0})[2]
        self.assertIn('"unload"', json.dumps(answer) if isinstance(answer, dict) else answer)
        for _ in range(100):
            if not self.loaded():
                break
            time.sleep(0.05)
        self.assertEqual(self.loaded(), [])
        self.assertEqual(self.server.request("GET", "/slots")[2], [])
        self.assertEqual(self.server.request("GET", "/props")[0], 200)


class WithClients(Served):
    @classmethod
    def setUpClass(cls):
        reason = use_clients()
        if reason:
            raise unittest.SkipTest(reason)
        super().setUpClass()


class OpenAi(WithClients):
    """The official client."""

    def client(self):
        import openai
        return openai.OpenAI(base_url=self.server.url + "/v1", api_key="none", max_retries=0)

    def ask(self, text="Tell me a long story about a river.", **more):
        more = {"max_tokens": 12, "temperature": 0, **more}
        return self.client().chat.completions.create(model="any", messages=[{"role": "user", "content": text}], **more)

    def test_chat_and_its_stream(self):
        alone = {"extra_body": {"cache_prompt": False}}  # a prefix that is taken up is computed in other batches
        whole = self.ask(**alone)
        self.assertEqual((whole.choices[0].finish_reason, whole.usage.completion_tokens), ("length", 12))
        self.assertEqual(whole.kv["evicted_spans"], [])
        chunks = list(self.ask(stream=True, stream_options={"include_usage": True}, **alone))
        self.assertEqual("".join(c.choices[0].delta.content or "" for c in chunks if c.choices), whole.choices[0].message.content)
        self.assertEqual(chunks[-1].usage.completion_tokens, 12)
        self.assertIn("used_bytes", chunks[-1].kv)
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        long = "A river runs through the town. " * 20 + "What runs?"
        self.assertEqual(self.ask(long).usage.prompt_tokens_details.cached_tokens < 100, True)
        self.assertGreater(self.ask(long).usage.prompt_tokens_details.cached_tokens, 100)

    def test_the_kv_of_a_stream_without_usage(self):
        chunks = list(self.ask(stream=True))
        self.assertIn("budget_bytes", chunks[-1].kv)
        self.assertEqual(chunks[-1].choices[0].finish_reason, "length")

    def test_choices_logprobs_and_limits(self):
        two = self.ask(n=2, logprobs=True, top_logprobs=2, temperature=1, seed=1)
        self.assertEqual(([c.index for c in two.choices], two.usage.completion_tokens), ([0, 1], 24))
        content = two.choices[0].logprobs.content
        self.assertEqual((len(content), len(content[0].top_logprobs)), (12, 2))
        self.assertLessEqual(content[0].logprob, 0)
        same = {self.ask("Which fruit is it?", temperature=1, seed=7).choices[0].message.content for _ in range(3)}
        self.assertEqual(len(same), 1, same)
        none = self.ask(max_tokens=0)
        self.assertEqual((none.choices[0].message.content, none.usage.completion_tokens, none.choices[0].finish_reason), ("", 0, "length"))

    def test_what_openai_refuses(self):
        import openai
        tool = {"type": "function", "function": {"name": "f"}}
        for wrong in ({"temperature": 2.5}, {"top_p": 1.5}, {"presence_penalty": 3}, {"logit_bias": {"5": 101}}, {"n": 0}, {"max_tokens": -5},
                      {"max_completion_tokens": 0, "max_tokens": None}, {"top_logprobs": 3}, {"stop": [""]}, {"stream_options": {"include_usage": True}},
                      {"tools": [tool], "tool_choice": {"type": "function", "function": {"name": "g"}}}, {"response_format": {"type": "yaml"}},
                      {"functions": [{"name": "f"}]}, {"messages": [{"role": "tool", "tool_call_id": "x", "content": "y"}]}):
            with self.assertRaises(openai.BadRequestError, msg=wrong):
                self.ask(**wrong) if "messages" not in wrong else self.client().chat.completions.create(model="any", **wrong)
        for wrong in ({"logprobs": 21}, {"best_of": 2}, {"suffix": "x"}, {"prompt": [-1]}):
            with self.assertRaises(openai.BadRequestError, msg=wrong):
                self.client().completions.create(**{"model": "any", "prompt": "a", "max_tokens": 1, **wrong})

    def test_stop_strings_lose_nothing(self):
        whole = self.ask("Count from one to ten.", max_tokens=30).choices[0].message.content
        stop = whole[10:14]
        stopped = self.ask("Count from one to ten.", max_tokens=30, stop=[stop]).choices[0]
        self.assertEqual((stopped.message.content, stopped.finish_reason), (whole[:whole.index(stop)], "stop"))
        tail = whole[-3:] + "\u2603"  # looks like the stop's beginning until the end
        chunks = list(self.ask("Count from one to ten.", max_tokens=30, stop=[tail], stream=True))
        self.assertEqual("".join(c.choices[0].delta.content or "" for c in chunks), whole)

    def test_json_and_schemas(self):
        schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 10}, "age": {"type": "integer"}},
                  "required": ["name", "age"], "additionalProperties": False}
        form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
        person = json.loads(self.ask("A person.", response_format=form, max_tokens=60).choices[0].message.content)
        self.assertEqual(list(person), ["name", "age"])
        self.assertIsInstance(person["age"], int)
        anything = self.ask("A short JSON object with one number.", response_format={"type": "json_object"}, max_tokens=200)
        if anything.choices[0].finish_reason == "stop":
            self.assertIsInstance(json.loads(anything.choices[0].message.content), dict)

    def test_tools(self):
        tools = [{"type": "function", "function": {"name": "weather", "description": "Of a city", "parameters": WEATHER}},
                 {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}]
        for choice, names in (("required", ("weather", "clock")), ({"type": "function", "function": {"name": "clock"}}, ("clock",))):
            answer = self.ask("What is the weather in Paris?", tools=tools, tool_choice=choice, max_tokens=80, parallel_tool_calls=False)
            call = answer.choices[0].message.tool_calls[0]
            self.assertEqual(answer.choices[0].finish_reason, "tool_calls")
            self.assertIn(call.function.name, names)
            self.assertIsInstance(json.loads(call.function.arguments), dict)
            chunks = list(self.ask("What is the weather in Paris?", tools=tools, tool_choice=choice, max_tokens=80, stream=True,
                                   parallel_tool_calls=False))
            calls = [call for c in chunks if c.choices for call in c.choices[0].delta.tool_calls or []]
            self.assertIn(calls[0].function.name, names)
            self.assertEqual(chunks[-1].choices[0].finish_reason, "tool_calls")
        talk = [{"role": "user", "content": "Weather?"}, answer.choices[0].message.model_dump(exclude_none=True),
                {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
        more = self.client().chat.completions.create(model="any", messages=talk, tools=tools, max_tokens=5)
        self.assertGreater(more.usage.prompt_tokens, 20)
        none = self.ask("Say hello.", tools=tools, tool_choice="none")
        self.assertIsNone(none.choices[0].message.tool_calls)
        auto = self.ask("Say hello.", tools=tools, max_tokens=40)
        self.assertIn(auto.choices[0].finish_reason, ("stop", "length", "tool_calls"))
        import openai
        with self.assertRaises(openai.BadRequestError):
            self.ask(tools=tools, tool_choice={"type": "function", "function": {"name": "unknown"}})

    def test_embeddings(self):
        client = self.client()
        texts = ["The river is deep.", "A deep river.", "Seven plus two is nine."]
        many = client.embeddings.create(model="any", input=texts)  # the client asks for base64 itself
        rows = [one.embedding for one in many.data]
        self.assertEqual([one.index for one in many.data], [0, 1, 2])
        self.assertEqual({len(row) for row in rows}, {576})
        product = lambda a, b: sum(x * y for x, y in zip(a, b))  # noqa: E731
        self.assertAlmostEqual(product(rows[0], rows[0]), 1, places=4)
        self.assertGreater(product(rows[0], rows[1]), product(rows[0], rows[2]))
        plain = client.embeddings.create(model="any", input=texts[0], encoding_format="float")
        self.assertLess(max(abs(x - y) for x, y in zip(plain.data[0].embedding, rows[0])), 1e-5)
        self.assertEqual(many.usage.total_tokens, sum(len(self.server.post("/tokenize", {"content": t})[2]["tokens"]) for t in texts))
        tokens = self.server.post("/tokenize", {"content": texts[0]})[2]["tokens"]
        self.assertLess(max(abs(x - y) for x, y in zip(client.embeddings.create(model="any", input=tokens).data[0].embedding, rows[0])), 1e-5)
        short = client.embeddings.create(model="any", input=texts[0], dimensions=64).data[0].embedding
        self.assertEqual((len(short), round(product(short, short), 4)), (64, 1))
        self.assertEqual(len(client.embeddings.create(model="any", input=["a"] * 40).data), 40)
        for wrong in ({}, {"input": 5}, {"input": []}, {"input": ""}, {"input": [""]}, {"input": ["a", 5]}, {"input": [10**9]}, {"input": "a", "dimensions": 0},
                      {"input": "a", "dimensions": 9999}, {"input": "a", "encoding_format": "hex"}, {"input": "word " * 3000}):
            self.assertEqual(self.server.post("/v1/embeddings", wrong)[0], 400, str(wrong)[:60])
        self.assertEqual(len(self.server.post("/embedding", {"content": "a"})[2][0]["embedding"][0]), 576)

    def test_an_answer_that_the_client_begins(self):
        messages = [{"role": "user", "content": "What is the capital of France?"}, {"role": "assistant", "content": "The capital of France is"}]
        answer = self.client().chat.completions.create(model="any", messages=messages, max_tokens=3, temperature=0)
        self.assertTrue(answer.choices[0].message.content.startswith(" Paris"), answer.choices[0].message.content)

    def test_completions(self):
        client = self.client()
        plain = client.completions.create(model="any", prompt="The capital of France is", max_tokens=5, temperature=0, logprobs=2)
        self.assertIn("Paris", plain.choices[0].text)
        self.assertEqual([len(plain.choices[0].logprobs.tokens), len(plain.choices[0].logprobs.top_logprobs)], [5, 5])
        self.assertEqual(plain.choices[0].logprobs.text_offset[0], 0)
        echo = client.completions.create(model="any", prompt="The capital of France is", max_tokens=5, temperature=0, echo=True)
        self.assertEqual(echo.choices[0].text, "The capital of France is" + plain.choices[0].text)
        for maximum in (0, 5):
            scored = client.completions.create(model="any", prompt="The capital of France is", max_tokens=maximum, temperature=0, echo=True,
                                               logprobs=2).choices[0].logprobs
            self.assertEqual("".join(scored.tokens), echo.choices[0].text if maximum else "The capital of France is")
            self.assertIsNone(scored.token_logprobs[0])
            self.assertTrue(all(-30 < one <= 0 for one in scored.token_logprobs[1:]), scored.token_logprobs)
            self.assertEqual({len(one) for one in scored.top_logprobs[1:]}, {2})
        # What the prompt's tokens get is what they would have got if they had been written.
        tokens = self.server.post("/tokenize", {"content": "The capital of France is"})[2]["tokens"]
        last = client.completions.create(model="any", prompt=tokens[:-1], max_tokens=1, logprobs=5, temperature=0).choices[0].logprobs
        self.assertAlmostEqual(last.top_logprobs[0][" is"], scored.token_logprobs[len(tokens) - 1], places=1)
        both = client.completions.create(model="any", prompt=["One two", "Red green"], n=2, max_tokens=3)
        self.assertEqual([c.index for c in both.choices], [0, 1, 2, 3])
        self.assertEqual(both.usage.completion_tokens, sum(1 for _ in both.choices) * 3)
        text = "".join(c.choices[0].text for c in client.completions.create(
            model="any", prompt="The capital of France is", max_tokens=5, temperature=0, stream=True))
        self.assertEqual(text, plain.choices[0].text)

    def test_responses(self):
        client = self.client()
        answer = client.responses.create(model="any", input="Tell me a long story.", instructions="Be kind.", max_output_tokens=12)
        self.assertEqual((answer.status, answer.incomplete_details.reason), ("incomplete", "max_output_tokens"))
        self.assertTrue(answer.output_text)
        schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
        formed = client.responses.create(model="any", input="Is it?", max_output_tokens=40,
                                         text={"format": {"type": "json_schema", "name": "a", "schema": schema}})
        self.assertEqual(list(json.loads(formed.output_text)), ["ok"])
        self.assertEqual(formed.status, "completed")
        stream = list(client.responses.create(model="any", input="Tell me a long story.", max_output_tokens=12, stream=True))
        self.assertEqual([e.sequence_number for e in stream], list(range(len(stream))))
        self.assertEqual((stream[0].type, stream[-1].type), ("response.created", "response.incomplete"))
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        self.assertEqual(text, stream[-1].response.output_text)
        tools = [{"type": "function", "name": "weather", "parameters": WEATHER}]
        called = client.responses.create(model="any", input="Weather in Paris?", tools=tools, tool_choice="required", max_output_tokens=60)
        self.assertEqual((called.output[0].type, called.output[0].name), ("function_call", "weather"))

    def test_responses_that_are_kept(self):
        import openai
        client = self.client()
        first = client.responses.create(model="any", input="My name is Ann.", instructions="Be kind.", max_output_tokens=12)
        self.assertTrue(first.store)
        again = client.responses.retrieve(first.id)
        self.assertEqual((again.output_text, again.usage.input_tokens), (first.output_text, first.usage.input_tokens))
        # The answer to a conversation that the server keeps is the one to the same conversation from the client.
        more = {"model": "any", "max_output_tokens": 12, "temperature": 0}
        kept = client.responses.create(input="What is my name?", previous_response_id=first.id, **more)
        given = client.responses.create(input=[{"role": "user", "content": "My name is Ann."}, *[o.model_dump() for o in first.output],
                                               {"role": "user", "content": "What is my name?"}], store=False, **more)
        self.assertEqual((kept.output_text, kept.usage.input_tokens), (given.output_text, given.usage.input_tokens))
        self.assertEqual(kept.previous_response_id, first.id)
        self.assertGreater(kept.usage.input_tokens, client.responses.create(input="What is my name?", **more).usage.input_tokens)
        last = list(client.responses.create(input="And now?", previous_response_id=kept.id, stream=True, **more))[-1].response
        self.assertEqual(client.responses.retrieve(last.id).output_text, last.output_text)
        self.assertGreater(last.usage.input_tokens_details.cached_tokens, 0)
        items = list(client.responses.input_items.list(last.id, order="asc", limit=2))  # the client asks for all pages
        self.assertEqual([item.role for item in items], ["user", "assistant"] * 2 + ["user"])
        self.assertEqual((items[0].content[0].text, items[1].id), ("My name is Ann.", first.output[0].id))
        self.assertEqual(list(client.responses.input_items.list(last.id))[0].content[0].text, "And now?")
        client.responses.delete(first.id)
        for call in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
            for name in (first.id, given.id, "resp_0"):
                with self.assertRaises(openai.NotFoundError):
                    call(name)
        with self.assertRaises(openai.BadRequestError) as raised:
            client.responses.create(input="a", previous_response_id=first.id, **more)
        self.assertEqual(raised.exception.code, "previous_response_not_found")
        # What came later stands for itself.
        self.assertGreater(client.responses.create(input="a", previous_response_id=kept.id, **more).usage.input_tokens, kept.usage.input_tokens)

    def test_kept_responses_are_bounded(self):
        server = Server("--kept-responses", "3", "--kept-responses-bytes", "1MiB")
        try:
            ids = [server.post("/v1/responses", {"input": f"{i}", "max_output_tokens": 1})[2]["id"] for i in range(5)]
            self.assertEqual([server.request("GET", "/v1/responses/" + name)[0] for name in ids], [404, 404, 200, 200, 200])
            self.assertRegex(server.request("GET", "/metrics")[2], r"\npith:responses_kept 3\n")
        finally:
            server.stop()

    def test_models_and_errors(self):
        import openai
        client = self.client()
        name = client.models.list().data[0].id
        self.assertEqual(client.models.retrieve(name).id, name)
        with self.assertRaises(openai.NotFoundError):
            client.models.retrieve("none")
        with self.assertRaises(openai.BadRequestError) as raised:
            self.ask("word " * 3000)
        self.assertEqual(raised.exception.type, "exceed_context_size_error")

    def test_a_budget_of_its_own(self):
        text = "The code is 7391. " + "The weather was fine and people walked. " * 80 + "What is the code?"
        full = self.ask(text, max_tokens=3)
        small = self.ask(text, max_tokens=3, extra_body={"kv_budget": "8MiB", "cache_prompt": False, "kv_map": True})
        self.assertLess(abs(sum(small.kv["map"]) / len(small.kv["map"]) / 100 - small.kv["kept_fraction"]), 0.02)
        self.assertEqual(sum(b - a for a, b in small.kv["evicted_spans"]), small.kv["evicted_tokens"])
        self.assertLessEqual(small.kv["used_bytes"], 8 << 20)
        self.assertLess(small.kv["kept_fraction"], full.kv["kept_fraction"])
        self.assertTrue(all(0 <= a < b <= small.usage.prompt_tokens + 3 for a, b in small.kv["evicted_spans"]))

    def test_recipes_that_want_a_whole_prompt(self):
        text = "The code is 7391. " + "The weather was fine and people walked. " * 60 + "What is the code?"
        usual = self.ask(text, max_tokens=3, extra_body={"recipe": "kvzip"})
        self.assertEqual(usual.kv["compress"], "after")
        self.assertAlmostEqual(usual.kv["kept_fraction"], 0.3, delta=0.03)
        share = self.ask(text, max_tokens=3, extra_body={"recipe": "kvzip", "keep": 0.6})
        self.assertAlmostEqual(share.kv["kept_fraction"], 0.6, delta=0.03)
        self.assertEqual(share.usage.prompt_tokens_details.cached_tokens, 0, "compressed otherwise, it is another cache")
        sized = self.ask(text, max_tokens=3, extra_body={"recipe": "kvzip", "kv_budget": "8MiB"})
        self.assertEqual(sized.kv["budget_bytes"], 8 << 20)
        self.assertLessEqual(sized.kv["used_bytes"], 8 << 20)
        own = self.ask(text, max_tokens=3, extra_body={"recipe": "pith", "compress": "after", "keep": 0.2})
        self.assertLess(own.kv["used_bytes"], usual.kv["used_bytes"])
        _, _, metrics = self.server.request("GET", "/metrics")
        self.assertGreaterEqual(float(re.search(r"^pith:kv_compressions_total (\S+)", metrics, re.MULTILINE).group(1)), 4)

    def test_turns_are_compressed_once(self):
        story = "The river carried letters over every bridge while people spoke about gardens. "
        messages = [{"role": "user", "content": "My name is Ada. " + story * 20}]
        kept = []
        for turn in range(3):
            answer = self.client().chat.completions.create(model="any", messages=messages, max_tokens=8,
                                                           extra_body={"recipe": "snapkv turns=flowkv:drop=0.6"})
            kept.append(answer.kv["kept_fraction"])
            if turn > 0:
                self.assertGreater(answer.usage.prompt_tokens_details.cached_tokens, 300)
            messages += [{"role": "assistant", "content": answer.choices[0].message.content},
                         {"role": "user", "content": f"And {turn}? " + story * 8}]
        self.assertEqual(kept[0], 1)
        self.assertLess(kept[1], 0.75)
        whole = self.client().chat.completions.create(model="any", messages=messages[:5], max_tokens=8,
                                                      extra_body={"recipe": "snapkv turns=flowkv:drop=0.6", "cache_prompt": False})
        self.assertEqual(whole.usage.prompt_tokens_details.cached_tokens, 0)
        self.assertAlmostEqual(whole.kv["kept_fraction"], kept[2], delta=0.02)

    def test_topics_have_caches_of_their_own(self):
        """A budget that cannot hold the conversation: each question goes to its topic's cache, and finds it again."""
        topics = ("The garden grows roses, tulips and herbs near the old wall. ", "The train to Bonn leaves at noon from the third track. ")
        messages = []
        for i in range(8):
            messages += [{"role": "user", "content": topics[i % 2] * 12}, {"role": "assistant", "content": "I see."}]
        own = {"recipe": "keydiff turns=epicache:block=64,utterances=2,episodes=2", "kv_budget": "12MiB"}

        def ask(question):
            return self.client().chat.completions.create(model="any", messages=[*messages, {"role": "user", "content": question}],
                                                         max_tokens=4, extra_body=own)
        first = ask(topics[0])
        self.assertLess(first.kv["kept_fraction"], 1)
        self.assertLessEqual(first.kv["used_bytes"], 12 << 20)
        other = ask(topics[1])
        self.assertLess(other.usage.prompt_tokens_details.cached_tokens, 100, "another topic's cache")
        for question in topics:
            self.assertGreater(ask(question).usage.prompt_tokens_details.cached_tokens, 500)

    def test_a_recipe_names_no_files(self):
        for recipe in ("score=keydiff alloc=file:/etc/passwd act=drop", "epicache:embedder=/etc/passwd"):
            status, _, body = self.server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "recipe": recipe})
            self.assertEqual((status, "names a file" in body["error"]["message"]), (400, True), body)


class AnthropicClient(WithClients):
    def ask(self, text="Tell me a long story about a river.", **more):
        import anthropic
        client = anthropic.Anthropic(base_url=self.server.url, api_key="none", max_retries=0)
        more = {"max_tokens": 12, **more}
        return client.messages.create(model="any", messages=[{"role": "user", "content": text}], **more)

    def test_messages(self):
        whole = self.ask(system=[{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}])
        self.assertEqual((whole.stop_reason, whole.usage.output_tokens), ("max_tokens", 12))
        stopped = self.ask(stop_sequences=["e", "a"])
        self.assertEqual((stopped.stop_reason, stopped.stop_sequence in ("e", "a")), ("stop_sequence", True))

    def test_stream_and_count(self):
        import anthropic
        client = anthropic.Anthropic(base_url=self.server.url, api_key="none", max_retries=0)
        messages = [{"role": "user", "content": "Tell me a long story about a river."}]
        with client.messages.stream(model="any", max_tokens=12, messages=messages) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        self.assertEqual((text, final.stop_reason, final.usage.output_tokens), (final.content[0].text, "max_tokens", 12))
        count = client.messages.count_tokens(model="any", messages=messages).input_tokens
        whole = client.messages.create(model="any", max_tokens=1, messages=messages).usage
        self.assertEqual(count, whole.input_tokens + whole.cache_read_input_tokens)

    def test_tools_and_errors(self):
        import anthropic
        tools = [{"name": "weather", "input_schema": WEATHER}]
        answer = self.ask("Weather in Paris?", tools=tools, tool_choice={"type": "tool", "name": "weather"}, max_tokens=60)
        self.assertEqual((answer.stop_reason, answer.content[-1].type, answer.content[-1].name), ("tool_use", "tool_use", "weather"))
        self.assertIn(answer.content[-1].input["city"], ("Paris", "Bonn"))
        with self.assertRaises(anthropic.BadRequestError) as raised:
            self.ask(tools=tools, tool_choice={"type": "tool", "name": "none"})
        self.assertEqual(raised.exception.body["type"], "error")
        for wrong in ({"extra_body": {"temperature": 1.5}}, {"extra_body": {"top_k": -1}}, {"stop_sequences": [" "]}, {"max_tokens": 0},
                      {"thinking": {"type": "enabled", "budget_tokens": 2000}}, {"text": ""},
                      {"text": [{"type": "tool_result", "tool_use_id": "x", "content": "y"}]}):
            with self.assertRaises(anthropic.BadRequestError, msg=wrong):
                self.ask(**wrong)
        status, _, body = self.server.post("/v1/messages?beta=true", {"messages": [{"role": "user", "content": "a"}]})
        self.assertEqual((status, body["error"]["type"]), (400, "invalid_request_error"))


class OllamaClient(WithClients):
    flags = ("--max-retained", "0")  # a prefix that is taken up is computed in other batches

    def client(self):
        import ollama
        return ollama.Client(host=self.server.url)

    def test_generate_and_chat(self):
        client = self.client()
        name = client.list().models[0].model
        whole = client.generate(model=name, prompt="Tell me a long story about a river.", options={"num_predict": 8, "temperature": 0})
        self.assertEqual((whole.done, whole.done_reason, whole.eval_count), (True, "length", 8))
        self.assertGreater(whole.total_duration, 10**6)
        parts = list(client.generate(model=name, prompt="Tell me a long story about a river.", options={"num_predict": 8, "temperature": 0}, stream=True))
        self.assertEqual("".join(part.response for part in parts), whole.response)
        self.assertTrue(parts[-1].context)
        talk = client.chat(model=name, messages=[{"role": "user", "content": "Hi"}], options={"num_predict": 4})
        self.assertEqual(talk.message.role, "assistant")
        self.assertEqual(client.generate(model=name, prompt="").done_reason, "load")
        formed = client.chat(model=name, messages=[{"role": "user", "content": "Where?"}], format=WEATHER, options={"num_predict": 40})
        self.assertIn(json.loads(formed.message.content)["city"], ("Paris", "Bonn"))

    def test_the_rest(self):
        client = self.client()
        name = client.list().models[0].model
        self.assertEqual(client.show(name).details.format, "gguf")
        self.assertEqual(client.ps().models[0].model, name)
        self.assertTrue(self.server.request("GET", "/api/version")[2]["version"])
        both = client.embed(model=name, input=["The sky is blue.", "A blue sky."])
        self.assertEqual(len(both.embeddings), 2)
        self.assertAlmostEqual(sum(x * x for x in both.embeddings[0]), 1, places=3)
        self.assertGreater(both.prompt_eval_count, 6)
        self.assertEqual(client.embeddings(model=name, prompt="The sky is blue.").embedding, both.embeddings[0])
        cut = client.embed(model=name, input="word " * 3000, truncate=True)
        self.assertLessEqual(cut.prompt_eval_count, 2048)
        self.assertEqual(self.server.post("/api/embed", {"model": name, "input": "word " * 3000, "truncate": False})[0], 400)
        self.assertEqual(client.embed(model=name, input="").embeddings, [])
        for wrong in ({"options": {"num_ctx": "4096"}}, {"options": {"temperature": "hot"}}, {"format": "xml"}, {"raw": True, "system": "a"}, {"think": "hard"}):
            self.assertEqual(self.server.post("/api/generate", {"model": name, "prompt": "a", **wrong})[0], 400, wrong)
        for keep in ("soon", [], "5 minutes"):
            self.assertEqual(self.server.post("/api/generate", {"model": name, "keep_alive": keep})[0], 400, keep)
        self.assertEqual(client.generate(model=name, prompt="", keep_alive="0s").done_reason, "unload")
        status, _, body = self.server.post("/api/show", {"model": "none"})
        self.assertEqual((status, isinstance(body["error"], str)), (404, True))


class LangChain(WithClients):
    def model(self, **more):
        from langchain_openai import ChatOpenAI
        return ChatOpenAI(model="any", base_url=self.server.url + "/v1", api_key="none", max_tokens=60, temperature=0, max_retries=0, **more)

    def test_invoke_and_stream(self):
        answer = self.model().invoke("Name a colour.")
        self.assertTrue(answer.content)
        self.assertGreater(answer.usage_metadata["input_tokens"], 10)
        self.assertTrue("".join(part.content for part in self.model().stream("Name a colour.")))

    def test_tools_and_structures(self):
        weather = {"title": "weather", "description": "Weather of a city", **WEATHER}
        answer = self.model().bind_tools([weather], tool_choice="weather").invoke("Weather in Paris?")
        self.assertEqual(answer.tool_calls[0]["name"], "weather")
        self.assertIn(answer.tool_calls[0]["args"]["city"], ("Paris", "Bonn"))
        for method in ("json_schema", "function_calling"):
            formed = self.model().with_structured_output(weather, method=method).invoke("Weather in Paris?")
            self.assertIn(formed["city"], ("Paris", "Bonn"), method)


if __name__ == "__main__":
    if sys.argv[1:] == ["--prepare"]:
        sys.exit(use_clients())
    unittest.main(verbosity=2)
