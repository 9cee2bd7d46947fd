#!/usr/bin/env python3
"""Every recipe under hard budgets: peak KV bytes and the process's memory beside plain libllama's.

usage: scripts/check_budgets.py [--build build/release] [-m MODEL] [-f TEXT] [-c 8192] [--shares 5,10,20,50] [-n 16]

For each recipe and share of the full cache one `pith run --json`; a violation is peak_bytes > budget_bytes, or a
resident set that exceeds libllama's own (one block of the same size, tests/tools/plain_rss) by more than the budget
and 40 MiB. A budget that a recipe refuses with one sentence is listed. Prints a table; exit code 1 on a violation.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

MIB = 1 << 20


def run(arguments):
    return subprocess.run(arguments, capture_output=True, text=True)


def text_of(count):
    return " ".join(f"In the year {i} the town by the river counted {3 * i + 7} boats, and the miller wrote it down."
                    for i in range(count // 24))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build/release")
    parser.add_argument("-m", "--model", default=os.environ.get("PITH_DEFAULT_MODEL", ""))
    parser.add_argument("-f", "--file", default="", help="prompt (default: generated, longer than what the budget holds)")
    parser.add_argument("-c", "--ctx", type=int, default=8192)
    parser.add_argument("-n", "--predict", type=int, default=16)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--shares", default="5,10,20,50")
    parser.add_argument("--recipes", default="", help="comma-separated (default: all that pith lists)")
    options = parser.parse_args()
    pith = os.path.join(options.build, "pith")
    model = ["-m", options.model] if options.model else []
    recipes = options.recipes.split(",") if options.recipes else [
        r["name"] for r in json.loads(run([pith, "recipes", "--json"]).stdout)["recipes"]]
    path = json.loads(run([pith, "info", "--json", *model]).stdout)["path"]
    plain, bad = {}, 0
    with tempfile.TemporaryDirectory() as folder:
        print("| recipe | share | budget MiB | peak MiB | kept | RSS MiB | over libllama's | policy share |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for share in options.shares.split(","):
            prompt = options.file or os.path.join(folder, "prompt.txt")
            if not options.file:
                with open(prompt, "w", encoding="utf-8") as file:
                    file.write(text_of(int(options.ctx * float(share) / 100 * 1.3) + 300))
            for recipe in recipes:
                done = run([pith, "run", "--json", *model, "-f", prompt, "--raw", "--ignore-eos", "--temp", "0",
                            "-n", str(options.predict), "-c", str(options.ctx), "-t", str(options.threads),
                            "--kv-budget", share + "%", "--recipe", recipe])
                if done.returncode != 0:
                    one_sentence = done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
                    bad += not one_sentence
                    print(f"| {recipe} | {share}% | {done.stderr.strip()} |", flush=True)
                    continue
                result = json.loads(done.stdout)
                kv = result["kv"]
                block = kv["block_tokens"]
                if block not in plain:
                    plain[block] = int(run([os.path.join(options.build, "tests", "plain_rss"), path, str(block),
                                            str(options.threads)]).stdout)
                over = result["rss_peak_bytes"] - plain[block]
                wrong = kv["peak_bytes"] > kv["budget_bytes"] or over > kv["budget_bytes"] + 40 * MIB
                bad += wrong
                print(f"| {recipe} | {share}% | {kv['budget_bytes'] / MIB:.2f} | {kv['peak_bytes'] / MIB:.2f} | "
                      f"{kv['kept_fraction']:.3f} | {result['rss_peak_bytes'] / MIB:.0f} | {over / MIB:.0f} | "
                      f"{100 * result['timings']['policy_share']:.1f}% |{' VIOLATION' if wrong else ''}", flush=True)
    print(f"\n{bad} violations")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
