#!/usr/bin/env python3
"""What Python costs: measure.py generation|scorer  (PITH_BINARY names the program)

generation: tokens/s of the program and of Python's ways to generate, in turns, medians of seven; shares of the program's.
scorer:     compressing 8,000 tokens by `keydiff` and by the same formula in Python.
"""

import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np

import pith
from pith.llama_cpp import Llama

TOKENS, PROMPT = 100, "Once upon a time"


def program():
    flags = [
        "--raw",
        "-p",
        PROMPT,
        "-n",
        str(TOKENS),
        "--temp",
        "0",
        "--ignore-eos",
        "-c",
        "512",
        "--recipe",
        "full",
        "--json",
    ]
    done = subprocess.run([os.environ["PITH_BINARY"], "run", *flags], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout)["timings"]["decode_tps"]


def generation():
    model = pith.Model()
    engine, llama = pith.Engine(model, ctx=512), Llama(str(pith.default_model()), n_ctx=512, verbose=False)

    def rate_of(tokens):
        next(tokens)
        begin = time.perf_counter()
        return sum(1 for _ in zip(range(TOKENS - 1), tokens)) / (time.perf_counter() - begin)

    def sequence():
        with engine.sequence() as one:
            return rate_of(one.prefill(PROMPT).generate(TOKENS, temperature=0, ignore_eos=True))

    def conversation():
        with engine.conversation() as talk:
            return talk.complete(PROMPT, TOKENS, temperature=0, ignore_eos=True).tokens_per_second

    def drop_in():
        llama.reset()
        return rate_of(llama.generate(llama.tokenize(PROMPT.encode()), temp=0))

    ways = {"pith run": program, "Sequence": sequence, "Conversation": conversation, "llama_cpp.Llama": drop_in}
    rates = {name: [] for name in ways}
    for _ in range(7):
        for name, way in ways.items():
            rates[name].append(way())
    for name, found in rates.items():
        shares = [one / alone for one, alone in zip(found, rates["pith run"])]
        print(f"{name:16} {statistics.median(found):7.1f} tokens/s {statistics.median(shares):7.1%}")


def scorer():
    @pith.scorer("keydiff_py", needs="keys")
    def keydiff_py(head):
        keys = np.asarray(head.keys)
        norms = np.sqrt(np.einsum("...d,...d->...", keys, keys))
        return -pith.cosine(keys, (1 / norms) @ keys)

    model = pith.Model()
    text = "The river carried the boats past the old mill, where people met to trade apples, salt and news. "
    recipes = ["keydiff", "score=keydiff_py"]
    engine = pith.Engine(model, ctx=8192, sequences=2)
    seconds = {recipe: [] for recipe in recipes}
    with engine.sequence(compress_after=True, later_recipes=recipes) as read:
        read.prefill(model.tokenize(text * 600)[:8000])
        for _ in range(4):
            for recipe in recipes:
                with read.fork() as one:
                    begin = time.perf_counter()
                    one.compress(0.2, recipe)
                    seconds[recipe].append(time.perf_counter() - begin)
    for recipe, found in seconds.items():
        print(f"{recipe:18} {1000 * statistics.median(found[1:]):6.0f} ms")


if __name__ == "__main__":
    {"generation": generation, "scorer": scorer}[sys.argv[1]]()
