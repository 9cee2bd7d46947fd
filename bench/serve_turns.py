#!/usr/bin/env python3
"""Time to the first token of a conversation's second turn against its first, and one client's speed against pith run's.

  bench/serve_turns.py build/release/pith -m MODEL.gguf [--hybrid MODEL.gguf] [--tokens 4000] [--cases speed,edited] [--out FILE.json]

Cases: an edit before the text of a first prompt, with and without --cache-reuse; all kept; the server was restarted and the slot restored from its file; a budget that keeps about a fifth; a hybrid model.
`cache_n` says how many tokens the second turn took from the first one's cache. Speed: tokens a second of a streamed answer, from its
first token on, and of `pith run`, in turns.
"""

import argparse
import http.client
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time


class Server:
    def __init__(self, pith, model, *flags):
        self.process = subprocess.Popen([pith, "serve", "-m", model, "--port", "0", "--temp", "0", "-np", "1", *flags], stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True)
        self.port = int(re.search(r":(\d+)$", self.process.stdout.readline().strip()).group(1))

    def post(self, path, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("POST", path, json.dumps(body))
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    def stream(self, body):
        """(seconds to the first token, tokens, seconds from it on, the last chunk)"""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        start = time.perf_counter()
        connection.request("POST", "/completion", json.dumps({**body, "stream": True}))
        reply, first, last, count, tokens = connection.getresponse(), None, None, 0, []
        for line in reply:
            if not line.startswith(b"data: "):
                continue
            part = json.loads(line[6:])
            if not part["stop"] and part["tokens"]:
                last = time.perf_counter()
                first = first or last
                count += len(part["tokens"])
                tokens += part["tokens"]
        connection.close()
        return first - start, count, last - first, part, tokens

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def second_turn(flags, model, *more, restart=False):
    with tempfile.TemporaryDirectory() as folder:
        more = ("-c", str(flags.tokens + 512), "--slot-save-path", folder, *more)
        server = Server(flags.pith, model, *more)
        text = "The river carried letters over the bridge, and people spoke about the weather in the town. " * (flags.tokens // 12)
        prompt = server.post("/tokenize", {"content": text, "add_special": True})["tokens"][:flags.tokens]
        first, _, _, _, answer = server.stream({"prompt": prompt, "n_predict": 32, "ignore_eos": True})
        said = {}
        if restart:
            said = server.post("/slots/0?action=save", {"filename": "turn"})
            server.stop()
            server = Server(flags.pith, model, *more)
            server.post("/slots/0?action=restore", {"filename": "turn"})
        question = server.post("/tokenize", {"content": "\nAnd what did they say then?"})["tokens"]
        second, _, _, end, _ = server.stream({"prompt": prompt + answer + question, "n_predict": 8, "ignore_eos": True})
        server.stop()
        return {"first_seconds": round(first, 4), "second_seconds": round(second, 4), "share": round(second / first, 4),
                "cache_n": end["timings"]["cache_n"], "prompt_n": end["timings"]["prompt_n"], "kept_fraction": end["kv"]["kept_fraction"],
                **({"saved_bytes": said["n_written"]} if said else {})}


def edited(flags):
    """The conversation's question was another one, in the middle of the prompt: read anew, and with --cache-reuse."""
    row = {}
    for name, more in (("read", ()), ("taken_over", ("--cache-reuse", "64"))):
        server = Server(flags.pith, flags.model, "-c", str(flags.tokens + 512), *more)
        tokens = lambda text: server.post("/tokenize", {"content": text})["tokens"]
        story = " ".join(f"In chapter {i} the river met a town and paid {i * 37 % 101} coins." for i in range(flags.tokens // 12))
        front, text = tokens("You answer questions about a story. "), tokens(story)[:flags.tokens]
        prompts = [front + tokens(question) + text + tokens("\nAnswer: ") for question in ("Who paid? ", "What did the river pay in chapter 7, and to whom? ")]
        first, _, _, _, _ = server.stream({"prompt": prompts[0], "n_predict": 8, "ignore_eos": True})
        second, _, _, end, _ = server.stream({"prompt": prompts[1], "n_predict": 8, "ignore_eos": True})
        server.stop()
        row[name] = {"first_seconds": round(first, 4), "second_seconds": round(second, 4), "share": round(second / first, 4),
                     "cache_n": end["timings"]["cache_n"], "prompt_n": end["timings"]["prompt_n"]}
    return row


def speed(flags):
    prompt, count, served, ran = "Once upon a time there was a river", 200, [], []
    server = Server(flags.pith, flags.model, "-c", "1024")
    for _ in range(5):
        _, tokens, seconds, _, _ = server.stream({"prompt": prompt, "n_predict": count, "ignore_eos": True, "cache_prompt": False})
        served.append((tokens - 1) / seconds)
        said = subprocess.run([flags.pith, "run", "-m", flags.model, "-p", prompt, "-n", str(count), "-c", "1024", "--temp", "0", "--ignore-eos",
                               "--raw", "--json"], capture_output=True, text=True)
        if said.returncode != 0:
            sys.exit(said.stderr)
        ran.append(json.loads(said.stdout)["timings"]["decode_tps"])
    server.stop()
    return {"serve_tokens_per_second": round(statistics.median(served), 2), "run_tokens_per_second": round(statistics.median(ran), 2),
            "share": round(statistics.median(served) / statistics.median(ran), 4)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pith")
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--hybrid", help="a model with recurrent layers")
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--cases", help="of these, between commas (default: all)")
    parser.add_argument("--out")
    flags = parser.parse_args()
    cases = {"speed": lambda: speed(flags), "all_kept": lambda: second_turn(flags, flags.model),
             "restarted": lambda: second_turn(flags, flags.model, restart=True),
             "evicted": lambda: second_turn(flags, flags.model, "--kv-budget", "20%"),
             "evicted_restarted": lambda: second_turn(flags, flags.model, "--kv-budget", "20%", restart=True), "edited": lambda: edited(flags)}
    if flags.hybrid:
        cases["hybrid"] = lambda: second_turn(flags, flags.hybrid)
        cases["hybrid_restarted"] = lambda: second_turn(flags, flags.hybrid, restart=True)
    wanted = flags.cases.split(",") if flags.cases else list(cases)
    rows = {name: cases[name]() for name in wanted}
    text = json.dumps(rows, indent=1)
    print(text)
    if flags.out:
        with open(flags.out, "w") as out:
            out.write(text + "\n")


if __name__ == "__main__":
    main()
