"""A guard against slowdowns: speed relative to libllama in the same run, never in absolute terms.

usage: speed_test.py PITH

The bounds are about two thirds of what a quiet machine with two cores shows (docs/performance.md), so that noise does
not reach them and a lost kernel or a copy too many does. One repetition says enough where it holds them; else three, twice
at most, decide. Where other work takes the processors, ratios mean nothing: what was measured meanwhile is measured
again, and if the third time is no better, the test says so and counts as skipped.
"""

import json
import subprocess
import sys

# bench's flags, and {(test's name, recipe, kept): least ratio to libllama in its better setting of flash attention}.
CASES = [
    (["--ctx", "512", "--keep", "1.0", "--tail", "0"], {
        ("pp512", "full", 1): 1.3,
        ("tg24 @ d512", "full", 1): 1.0,
    }),
    (["--ctx", "4096", "--keep", "1.0,0.1", "--fill", "synthetic", "--tail", "256"], {
        ("pp256 @ d3840", "full", 1): 1.4,
        ("tg24 @ d4096", "full", 1): 1.4,
        ("pp256 @ d3840", "keydiff", 0.1): 1.8,
        ("tg24 @ d4096", "keydiff", 0.1): 1.9,
    }),
]  # fmt: skip
# What is left of bounds where products with weights are libllama's: of prompts without oneDNN, of tokens without AVX2.
LIBLLAMA_PRODUCTS = {"pp": ("float_products", 0.6), "tg": ("byte_products", 0.75)}
REPETITIONS = [1, 3, 3]


def measure(pith, arguments, repetitions):
    command = [pith, "bench", *arguments, "--recipes", "keydiff", "-n", "24", "-r", str(repetitions), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed: {done.stderr}")
    return json.loads(done.stdout)


def judge(run, bounds):
    """Lines of a table, and whether all bounds hold."""
    ratios = {
        (test["name"], row["recipe"], row["keep"]): test["ratio"]
        for row in run["rows"] if row["engine"] == "pith" for test in row["tests"]
    }  # fmt: skip
    lines, good = [], True
    for key, bound in bounds.items():
        name, recipe, kept = key
        own, left = LIBLLAMA_PRODUCTS[name[:2]]
        if not run[own]:
            bound *= left
        holds = ratios[key] >= bound
        good = good and holds
        verdict = "ok" if holds else "TOO SLOW"
        lines.append(f"{name:16} {recipe:8} {kept:<4} {ratios[key]:6.2f} x libllama, at least {bound}: {verdict}")
    return lines, good


def main():
    pith, all_good = sys.argv[1], True
    for arguments, bounds in CASES:
        lines = None
        for repetitions in REPETITIONS:
            run = measure(pith, arguments, repetitions)
            if not run["busy"]:
                lines, good = judge(run, bounds)
                if good:
                    break
        if lines is None and not all_good:
            break
        if lines is None:
            print(f"[  SKIPPED ] the machine is too busy to measure: a thread got {run['free_share']:.0%} of its time")
            return 0
        print(*lines, sep="\n")
        all_good = all_good and good
    return 0 if all_good else 1


if __name__ == "__main__":
    sys.exit(main())
