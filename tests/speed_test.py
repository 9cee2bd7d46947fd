"""A guard against slowdowns: speed relative to libllama in the same run, never in absolute terms.

usage: speed_test.py PITH

The bounds are about two thirds of what a quiet machine with two cores shows (docs/performance.md), so that noise does
not reach them and a lost kernel or a copy too many does. Where other work takes the processors, ratios mean nothing:
what was measured meanwhile is measured again, and if the third time is no better, the test says so and counts as skipped.
"""

import json
import subprocess
import sys

# (context, test's name, recipe, kept) -> least ratio to libllama in its better setting of flash attention.
BOUNDS = {
    (512, "pp512", "full", 1): 1.3,
    (512, "tg24 @ d512", "full", 1): 1.0,
    (4096, "pp256 @ d3840", "full", 1): 1.4,
    (4096, "tg24 @ d4096", "full", 1): 1.4,
    (4096, "pp256 @ d3840", "keydiff", 0.1): 1.8,
    (4096, "tg24 @ d4096", "keydiff", 0.1): 1.9,
}
# What is left of bounds where products with weights are libllama's: of prompts without oneDNN, of tokens without AVX2.
LIBLLAMA_PRODUCTS = {"pp": ("float_products", 0.6), "tg": ("byte_products", 0.75)}
RUNS = [
    ["--ctx", "512", "--keep", "1.0", "--tail", "0"],
    ["--ctx", "4096", "--keep", "1.0,0.1", "--fill", "synthetic", "--tail", "256"],
]


def measure(pith, arguments):
    command = [pith, "bench", *arguments, "--recipes", "keydiff", "-n", "24", "-r", "3", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed: {done.stderr}")
    return json.loads(done.stdout)


def ratios(run):
    found = {}
    for row in run["rows"]:
        if row["engine"] == "pith":
            for test in row["tests"]:
                found[row["ctx"], test["name"], row["recipe"], row["keep"]] = test["ratio"]
    return found


def main():
    pith, measured = sys.argv[1], {}
    for arguments in RUNS:
        for _ in range(3):
            run = measure(pith, arguments)
            if not run["busy"]:
                break
        else:
            print(f"[  SKIPPED ] the machine is too busy to measure: a thread got {run['free_share']:.0%} of its time")
            return 0
        measured.update(ratios(run))
    slow = 0
    for key, bound in BOUNDS.items():
        context, name, recipe, keep = key
        own, left = LIBLLAMA_PRODUCTS[name[:2]]
        if not run[own]:
            bound *= left
        verdict = "ok" if measured[key] >= bound else "TOO SLOW"
        slow += measured[key] < bound
        print(f"{name:16} {recipe:8} {keep:<4} {measured[key]:6.2f} x libllama, at least {bound}: {verdict}")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
