#!/usr/bin/env python3
"""How much of a prompt trace's future its past tells: what an evictor of blocks hits that knows so much and no more.

usage: bench/prompt_bound.py TRACE.jsonl [--blocks 10000]

Rows, all evicting whole leaves of the prompt that is worth least (Gittins' index of its hazards of being gone on from):
  past      hazards from gradient-boosted trees (scikit-learn, in a virtual environment in the cache folder) that are
            fitted anew twelve times on what has passed: what can be learned as requests come
  others    trees that have seen all other prompts, those of the future, too: no learner of these features has more data
  itself    trees that have seen each prompt's own outcome, and remember what they can of it
  whether   told of each prompt whether it will ever be gone on from, but not when; least recently used first
  flipped   likewise, and wrong for 5 to 30 prompts of 100
  wide      as "others", with all else that a line tells: exact lengths and how often they came before, pauses in
            seconds, prompts a minute, the share that was gone on from among prompts with the same first block, the same
            first two, the same depth, how many ways lead on from where the prompt parts, the conversation's pauses
Features: lengths of prompt, answer and new text, turn, pauses before it, how much was known, how often.
Beside each kind of trees: how often they are wrong about whether a prompt will be gone on from within HORIZON prompts, if
all that they hold for likelier than the share that is are taken for gone on from, and the area under their ROC curve.
"""
import argparse
import collections
import json
import os
import pathlib
import random
import subprocess
import sys
import venv

EDGES = [0, 50, 100, 150, 200, 300, 400, 600, 800, 1200, 1600, 2400, 4000, 8000]
HORIZON = 700


def reenter():
    """Runs this file in an environment that has scikit-learn."""
    cache = os.environ.get("PITH_CACHE_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pith")
    folder = pathlib.Path(cache) / "prompt-bound"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", "numpy==2.4.6", "scikit-learn==1.9.1"],
                       check=True)
        (folder / "complete").touch()
    os.execv(folder / "bin" / "python", [folder / "bin" / "python", *sys.argv])


def describe(prompts):
    """Features of each prompt, and how many prompts later its deepest whole block is asked for again."""
    count, following, gaps = len(prompts), {}, [10**9] * len(prompts)
    for i in reversed(range(count)):
        blocks, whole = prompts[i]["hash_ids"], prompts[i]["input_length"] // 512
        if whole >= 2:
            gaps[i] = following.get(blocks[whole - 1], 10**9) - i
        for block in blocks:
            following[block] = i
    log = lambda value: np.log2(1 + max(0, value))
    last, uses, turn, pause, rows = {}, collections.Counter(), [0] * count, [0] * count, []
    for i, prompt in enumerate(prompts):
        blocks, tokens, known = prompt["hash_ids"], prompt["input_length"], 0
        while known < len(blocks) and blocks[known] in last:
            known += 1
        before = last[blocks[known - 1]] if known >= 2 else -1
        old = prompts[before] if before >= 0 else {"input_length": tokens, "output_length": 0, "hash_ids": blocks}
        goes_on = before >= 0 and known >= len(old["hash_ids"]) - 1
        turn[i] = turn[before] + 1 if goes_on else 0
        pause[i] = i - before if before >= 0 else 0
        rows.append([log(tokens), log(prompt["output_length"]), turn[i], log(pause[i]), log(known),
                     known / len(blocks), log(tokens - 512 * known),
                     log(tokens - old["input_length"] - old["output_length"]), log(old["output_length"]),
                     log(pause[before]) if before >= 0 else 0, turn[before] if before >= 0 else -1,
                     log(uses[blocks[known - 1]]) if known else 0])
        for block in blocks:
            last[block] = i
            uses[block] += 1
    return np.array(rows), np.array(gaps)


def widen(prompts, features, gaps):
    """Further features, of the past alone."""
    log = lambda value: np.log2(1 + max(0, value))
    came, rows = collections.Counter(), []
    tried, went_on = collections.Counter(), collections.Counter()  # prompts by what they have in common
    waiting, last, ways, pauses = {}, {}, collections.defaultdict(set), collections.defaultdict(list)
    for i, prompt in enumerate(prompts):
        blocks, tokens, answer = prompt["hash_ids"], prompt["input_length"], prompt["output_length"]
        known = 0
        while known < len(blocks) and blocks[known] in last:
            known += 1
        before = last[blocks[known - 1]] if known >= 2 else -1
        groups = [("first", blocks[0]), ("second", tuple(blocks[:2])), ("depth", len(blocks)), ("tokens", tokens),
                  ("answer", answer)]
        past = pauses[before] + [i - before] if before >= 0 else []
        pauses[i] = past
        seconds = (prompt["timestamp"] - prompts[before]["timestamp"]) / 1000 if before >= 0 else 0
        recent = i - np.searchsorted(TIMES, prompt["timestamp"] - 60000)
        row = [tokens, answer, tokens % 512, log(seconds), recent, log(came[tokens]), log(came[tokens, answer]),
               log(len(ways[blocks[known - 1]])) if known else 0, np.mean([log(p) for p in past]) if past else -1,
               np.std([log(p) for p in past]) if past else -1, log(prompts[before]["input_length"]) if before >= 0 else -1]
        for group in groups:
            row += [log(tried[group]), (went_on[group] + 1) / (tried[group] + 4)]
        rows.append(row)
        came[tokens] += 1
        came[tokens, answer] += 1
        if 0 < known < len(blocks):
            ways[blocks[known - 1]].add(blocks[known])
        for block in blocks:
            if block in waiting:
                for group in waiting.pop(block):
                    went_on[group] += 1
            last[block] = i
        whole = tokens // 512
        if whole >= 2:
            waiting[blocks[whole - 1]] = groups
        for group in groups:
            tried[group] += 1
    return np.c_[features, np.array(rows)]


def mistakes(rates, gaps):
    """Of telling which prompts are gone on from soon: share of wrong ones, area under the curve."""
    width = np.minimum(EDGES[1:], HORIZON) - np.minimum(EDGES[:-1], HORIZON)
    foreseen, soon = (rates * width).sum(1), gaps <= HORIZON
    ranks = np.argsort(np.argsort(foreseen))
    area = (ranks[soon].mean() - (soon.sum() - 1) / 2) / (~soon).sum()
    return np.mean((foreseen > np.quantile(foreseen, 1 - soon.mean())) != soon), area


def hazards(features, gaps, kind):
    """Of each prompt (rows) in each bin of prompts to come (EDGES), per prompt."""
    count, bins, index = len(gaps), len(EDGES) - 1, np.arange(len(gaps))
    chance = np.full((count, bins), 0.02)
    if kind == "past":
        cuts = [count * j // 12 for j in range(13)]
        folds = [(index[:cuts[j]], index[cuts[j]:cuts[j + 1]], cuts[j]) for j in range(1, 12)]
    elif kind in ("others", "wide"):
        lot = np.random.RandomState(1).randint(0, 8, count)
        folds = [(index[lot != j], index[lot == j], count) for j in range(8)]
    else:
        folds = [(index, index, count)]
    for known, asked, now in folds:
        rows, outcomes = [], []
        for b in range(bins):
            at_risk = known[(gaps[known] > EDGES[b]) & (known + EDGES[b + 1] <= now)]
            rows.append(np.c_[features[at_risk], np.full(len(at_risk), b)])
            outcomes.append(gaps[at_risk] <= EDGES[b + 1])
        rows, outcomes = np.concatenate(rows), np.concatenate(outcomes)
        size = {"max_iter": 1500, "max_leaf_nodes": 63} if kind == "itself" else \
               {"max_iter": 120, "max_leaf_nodes": 12, "min_samples_leaf": 60, "l2_regularization": 2}
        trees = HistGradientBoostingClassifier(learning_rate=0.06, random_state=1, **size).fit(rows, outcomes)
        for b in range(bins):
            chance[asked, b] = trees.predict_proba(np.c_[features[asked], np.full(len(asked), b)])[:, 1]
    return -np.log(1 - np.minimum(chance, 0.999)) / np.diff(EDGES)


def indices(rates, ages):
    """The most requests per prompt that keeping each can still earn, by HORIZON at most."""
    best, alive, spent = np.zeros(len(ages)), np.ones(len(ages)), np.full(len(ages), 1e-9)
    for b in range(len(EDGES) - 1):
        width = np.clip(np.minimum(EDGES[b + 1], ages + HORIZON) - np.maximum(EDGES[b], ages), 0, None)
        rate = np.maximum(rates[:, b], 1e-12)
        leave = 1 - np.exp(-rate * width)
        spent = spent + alive * leave / rate
        alive = alive * (1 - leave)
        best = np.maximum(best, (1 - alive) / spent)
    return best


def replay(prompts, capacity, worth):
    """Share of blocks hit. worth(array of prompts, now): what is least goes, deepest blocks first."""
    owner, groups, live, used, hits, total = {}, {}, set(), 0, 0, 0
    for now, prompt in enumerate(prompts):
        blocks, leading = prompt["hash_ids"], 0
        while leading < len(blocks) and blocks[leading] in owner:
            leading += 1
        hits, total = hits + leading, total + len(blocks)
        for block in blocks:
            owner[block] = now
        groups[now] = list(blocks)
        live.add(now)
        if len(blocks) * 512 > prompt["input_length"] >= 512 and len(owner) > capacity:
            owner.pop(groups[now].pop(), None)
        if len(owner) <= capacity:
            continue
        order = np.fromiter(live, int)
        for one in order[np.lexsort((order, worth(order, now + 1)))]:
            group = groups[one]
            while group and len(owner) > capacity:
                block = group.pop()
                if owner.get(block) == one:
                    del owner[block]
            if group:
                break
            live.discard(one)
    return hits / total


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace")
    parser.add_argument("--blocks", type=int, default=10000)
    options = parser.parse_args()
    with open(options.trace) as file:
        prompts = [json.loads(line) for line in file]
    global TIMES
    TIMES = np.array([prompt["timestamp"] for prompt in prompts])
    features, gaps = describe(prompts)
    wide = widen(prompts, features, gaps)
    print(f"lru       {replay(prompts, options.blocks, lambda group, now: group):.4f}", flush=True)
    for kind in ("past", "others", "wide", "itself"):
        rates = hazards(wide if kind == "wide" else features, gaps, kind)
        share = replay(prompts, options.blocks, lambda group, now: indices(rates[group], now - group))
        wrong, area = mistakes(rates, gaps)
        print(f"{kind:9} {share:.4f}  wrong {100 * wrong:.1f}%, area {area:.3f}", flush=True)
    for wrong in (0, 0.05, 0.1, 0.2, 0.3):
        lot = random.Random(1)
        told = np.array([(gap < 10**8) != (lot.random() < wrong) for gap in gaps])
        share = replay(prompts, options.blocks, lambda group, now: group + 10**9 * told[group])
        print(f"{'whether' if wrong == 0 else f'flipped {100 * wrong:.0f}%':9} {share:.4f}", flush=True)


try:
    import numpy as np
    from sklearn.ensemble import HistGradientBoostingClassifier
except ImportError:
    reenter()
main()
