"""Speed and memory of recipes, as rows.

    for row in pith.bench.bench(recipes=["full", "snapkv"], contexts=[512, 4000], keep=0.2): print(row)

`pith bench` measures libllama beside it; run_program() runs that.
"""

import json
import os
import shutil
import statistics
import subprocess
import time

from ._engine import Engine
from ._model import Model

_TEXT = "The river carried the boats past the old mill, where people met to trade apples, salt and news. "


def bench(model=None, recipes=("full", "pith"), contexts=(512,), *, keep=0.1, predict=32, repeat=3, threads=0) -> list:
    """Reads made-up text of so many tokens, compresses it to a share of its entries, and decodes.

    Returns rows: recipe, context, keep, kept, prefill_tokens_per_second (compression apart), compress_seconds,
    decode_tokens_per_second (medians of `repeat`), kv_bytes (of the sequence after compression), peak_bytes (of the
    engine).
    """
    model = model if isinstance(model, Model) else Model(model)
    rows = []
    for context in contexts:
        tokens = model.tokenize(_TEXT * (context // 10 + 2))[:context]
        for recipe in recipes:
            rows.append(_measure(model, str(getattr(recipe, "recipe", recipe)), tokens, keep, predict, repeat, threads))
    return rows


def _measure(model, recipe, tokens, keep, predict, repeat, threads):
    engine = Engine(model, ctx=len(tokens) + predict + 8, threads=threads)
    times, kept, held = [], 1.0, 0
    for _ in range(repeat):
        with engine.sequence(recipe="full", compress_after=True, later_recipes=[recipe]) as sequence:
            sequence._press = None
            begin = time.perf_counter()
            sequence.prefill(tokens)
            read = time.perf_counter()
            if recipe != "full":
                kept = sequence.compress(keep, recipe)
            compressed = time.perf_counter()
            held = sequence.stats["used_bytes"]
            for token in tokens[:predict]:
                sequence.decode(token)
            times.append((read - begin, compressed - read, time.perf_counter() - compressed))
    reading, compressing, decoding = (statistics.median(column) for column in zip(*times))
    return {
        "recipe": recipe,
        "context": len(tokens),
        "keep": 1.0 if recipe == "full" else keep,
        "kept": kept,
        "prefill_tokens_per_second": len(tokens) / reading,
        "compress_seconds": compressing,
        "decode_tokens_per_second": predict / decoding,
        "kv_bytes": held,
        "peak_bytes": engine.stats["peak_bytes"],
    }


def find_program() -> str:
    """The program `pith`: $PITH_BINARY, or the one on the PATH."""
    found = os.environ.get("PITH_BINARY") or shutil.which("pith")
    if not found:
        raise FileNotFoundError("the program pith is not on the PATH; set PITH_BINARY to it")
    return found


def run_program(command: str, *arguments: str) -> dict:
    """What `pith COMMAND ARGUMENTS --json` says, such as run_program("bench", "-c", "512"). Raises RuntimeError with
    its message where it fails."""
    done = subprocess.run(
        [find_program(), command, *arguments, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"pith {command} failed"])[-1])
    return json.loads(done.stdout)
