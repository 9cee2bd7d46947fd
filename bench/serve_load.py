#!/usr/bin/env python3
"""Many clients against a server, and beside it, with --peer, the same against llama-server with as much KV memory.

  bench/serve_load.py build/release/pith -m MODEL.gguf [--seconds 90] [--clients 64] [--peer LLAMA_SERVER] [--out FILE.json]

Each client sends one streamed chat after the other: prompts of 20 to 3,000 tokens (evenly by their logarithm), answers of 16 to
128 tokens; one in five leaves in the middle of its prompt or of its answer. 429 is waited for as Retry-After says. After the
time is over what runs is answered. One JSON object for each server: answers, tokens a second, time to the first token, gaps
between tokens, RSS after a third of the time and at the end, its growth from then on and, of pith, that of what its cache holds, which
grows until kept prefixes fill the budget; of pith also that the budget held and nothing is left live.
"""

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
import urllib.request

WORDS = ("the river engine of a small town carried letters and machines over every bridge while people spoke about weather "
         "numbers gardens in long quiet winter before trains came through with music stones").split()


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pith")
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--peer", help="llama-server, to be measured after pith")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--leave", type=float, default=0.2, help="share of requests whose client leaves")
    parser.add_argument("--slots", type=int, default=8, help="of llama-server, and full caches that --budget is by default")
    parser.add_argument("--sequences", type=int, help="pith's at once, in the same bytes (default: as many as slots)")
    parser.add_argument("--overtaking", help="pith's (default: the server's own)")
    parser.add_argument("-c", "--ctx", type=int, default=4096)
    parser.add_argument("--budget", help="pith's KV budget (default: full caches of all slots, which is what llama-server takes)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--patience", type=float, default=400, help="seconds to wait for what runs at the end")
    parser.add_argument("--out")
    return parser.parse_args()


def rss_mib(pid):
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1)) / 1024


class Client:
    def __init__(self, port, seed, flags, results, end):
        self.port, self.random, self.flags, self.results, self.end = port, random.Random(seed), flags, results, end

    def body(self):
        tokens = int(20 * (3000 / 20) ** self.random.random())
        text = " ".join(self.random.choice(WORDS) for _ in range(max(1, tokens - 12)))
        return {"model": "any", "messages": [{"role": "user", "content": text}], "max_tokens": self.random.randint(16, 128), "stream": True,
                "temperature": 0.7, "seed": self.random.randrange(1 << 31), "ignore_eos": True}

    async def run(self):
        while time.time() < self.end:
            await self.one(self.body(), self.random.random() * 3 if self.random.random() < self.flags.leave else None)

    async def one(self, body, leaves_after):
        self.results["sent"] += 1
        while True:
            try:
                outcome = await self.send(body, leaves_after)
            except (OSError, asyncio.IncompleteReadError, ValueError) as error:
                self.results["failed"] += 1
                self.results["errors"].append(repr(error)[:200])
                return
            if outcome is None:
                return
            self.results["refused"] += 1
            if time.time() > self.end:
                return
            await asyncio.sleep(outcome)

    async def send(self, body, leaves_after):
        data = json.dumps(body).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)
        start, times = time.time(), []
        try:
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nConnection: close\r\n"
                         b"Content-Length: %d\r\n\r\n" % len(data) + data)
            deadline = None if leaves_after is None else start + leaves_after

            async def line():
                left = None if deadline is None else max(deadline - time.time(), 0.001)
                return await asyncio.wait_for(reader.readline(), left)

            head = await line()
            if not head:
                raise ValueError("no answer")
            status, retry = int(head.split()[1]), 1.0
            ended, said = False, b""
            while True:
                text = await line()
                if not text:
                    break
                said = text
                if text.lower().startswith(b"retry-after:"):
                    retry = float(text.split(b":")[1])
                if text.startswith(b"data: [DONE]"):
                    ended = True
                elif text.startswith(b"data: ") and b'"content":' in text:
                    chunk = json.loads(text[6:])
                    if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                        times.append(time.time())
                elif text.startswith(b"data: ") and b'"error"' in text:
                    raise ValueError(text[:200])
            if status == 429:
                return retry
            if status != 200 or not ended:
                raise ValueError(f"status {status}, ended {ended}: {said[:200]}")
            self.results["answers"] += 1
        except asyncio.TimeoutError:
            self.results["left"] += 1
        finally:
            writer.close()
            if times:
                self.results["first"].append(times[0] - start)
                self.results["gaps"].extend(b - a for a, b in zip(times, times[1:]))
                self.results["times"].extend(times)
        return None


def cache_mib(port):
    """What the cache holds: it grows until kept prefixes fill the budget."""
    try:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
        return float(re.search(r"^pith:kv_used_bytes (\S+)$", text, re.MULTILINE).group(1)) / 2**20
    except OSError:
        return 0


async def load(flags, port, pid, is_pith):
    results = {"sent": 0, "answers": 0, "left": 0, "refused": 0, "failed": 0, "errors": [], "first": [], "gaps": [], "times": []}
    start = time.time()
    end = start + flags.seconds
    rss = []

    async def watch():
        while True:
            rss.append((time.time() - start, rss_mib(pid), await asyncio.to_thread(cache_mib, port) if is_pith else 0))
            await asyncio.sleep(1)

    watcher = asyncio.create_task(watch())
    clients = [asyncio.create_task(Client(port, i, flags, results, end).run()) for i in range(flags.clients)]
    _, late = await asyncio.wait(clients, timeout=flags.seconds + flags.patience)
    for task in late:
        task.cancel()
    watcher.cancel()
    results["unanswered"] = len(late)
    results["whole_seconds"] = time.time() - start
    results["rss"] = rss
    return results


def summary(results, flags):
    rank = lambda values, share: sorted(values)[min(int(share * len(values)), len(values) - 1)] if values else None  # noqa: E731
    seconds = results["whole_seconds"]
    after = [row for row in results["rss"] if flags.seconds / 3 <= row[0] <= flags.seconds]

    def growth(mib):
        """MiB a minute, by least squares."""
        if len(after) < 3:
            return 0
        at, size = [row[0] / 60 for row in after], [mib(row) for row in after]
        return statistics.covariance(at, size) / statistics.variance(at)

    return {"seconds": round(seconds, 1), "requests": results["sent"], "answers": results["answers"], "left": results["left"],
            "refused_429": results["refused"], "failed": results["failed"], "unanswered": results["unanswered"], "errors": results["errors"][:5],
            "tokens_per_second": round(len(results["times"]) / seconds, 2),
            "first_token_median": round(statistics.median(results["first"]), 3) if results["first"] else None,
            "first_token_p99": rank(results["first"], 0.99), "gap_median": rank(results["gaps"], 0.5), "gap_p99": rank(results["gaps"], 0.99),
            "gap_most": max(results["gaps"], default=None), "rss_mib_after_a_third": round(after[0][1], 1) if after else None,
            "rss_mib_end": round(results["rss"][-1][1], 1), "rss_mib_per_minute": round(growth(lambda row: row[1]), 2),
            "cache_mib_per_minute": round(growth(lambda row: row[2]), 2),
            "rss_beside_cache_mib_per_minute": round(growth(lambda row: row[1] - row[2]), 2)}


def wait_healthy(port, process):
    for _ in range(600):
        if process.poll() is not None:
            sys.exit(f"the server ended with {process.returncode}")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).read()
            return
        except OSError:
            time.sleep(0.2)
    sys.exit("the server does not come up")


def measure(flags, command, port, is_pith):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_healthy(port, process)
        results = asyncio.run(load(flags, port, process.pid, is_pith))
        row = {"command": " ".join(command), **summary(results, flags)}
        if is_pith:
            time.sleep(1)
            text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
            values = {name: float(value) for name, value in re.findall(r"^(pith:[a-z_]+) (\S+)$", text, re.MULTILINE)}
            row |= {"kv_budget_bytes": values["pith:kv_budget_bytes"], "kv_peak_bytes": values["pith:kv_peak_bytes"],
                    "live_sequences_at_the_end": values["pith:kv_live_sequences"], "live_bytes_at_the_end": values["pith:kv_live_bytes"]}
        return row
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def main():
    flags = parse()
    port = 18000 + os.getpid() % 1000
    pith = [flags.pith, "serve", "-m", flags.model, "--port", str(port), "-c", str(flags.ctx), "-np", str(flags.sequences or flags.slots), "-t",
            str(flags.threads)]
    # As many bytes as llama-server's slots take; a share is one of full caches of all sequences.
    pith += ["--kv-budget", flags.budget or f"{100 * flags.slots / (flags.sequences or flags.slots):g}%"]
    if flags.overtaking:
        pith += ["--overtaking", flags.overtaking]
    rows = {"pith": measure(flags, pith, port, True)}
    if flags.peer:
        # Its context is that of all slots together.
        peer = [flags.peer, "-m", flags.model, "--port", str(port), "-c", str(flags.ctx * flags.slots), "-np", str(flags.slots), "-t",
                str(flags.threads), "--no-webui"]
        rows["llama-server"] = measure(flags, peer, port, False)
    text = json.dumps(rows, indent=1)
    print(text)
    if flags.out:
        with open(flags.out, "w") as out:
            out.write(text + "\n")
    if rows["pith"]["failed"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
