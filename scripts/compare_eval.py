#!/usr/bin/env python3
"""Join two results of `pith eval`, or of another program that writes the same fields, item by item. Standard library only.

usage: compare_eval.py OURS THEIRS [--nll-loss 0.02] [--right 2] [--full-nll 0.003] [--full-item 0.02]

Each file is what `pith eval --output` or `--resume` has written. Rows join by id, policy (parameters left out, - and _
alike) and kept fraction. For each recipe and fraction that both have: means of NLL loss (NLL less that of the same
program's full cache) and KL, and answers that are right. Exit code 1 where ours loses more NLL than theirs by more than
--nll-loss, has fewer right answers by more than --right, or differs with the full cache by more than --full-nll in the
mean or --full-item in any item, or where the numbers of tokens differ.
"""
import argparse
import json
import sys
from collections import defaultdict


def read(path):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    try:
        items = json.loads(text)["items"]
    except (ValueError, KeyError):  # --resume: one row a line, a header first, perhaps a torn last line
        items = []
        for line in text.split("\n")[:-1]:
            row = json.loads(line)
            if "policy" in row:
                items.append(row)
    rows = {(r["id"], r["policy"].split(":")[0].replace("-", "_"), round(r["keep"], 6)): r for r in items}
    full = {key[0]: row["nll"] for key, row in rows.items() if key[1] == "full"}
    return rows, full


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours")
    parser.add_argument("theirs")
    parser.add_argument("--nll-loss", type=float, default=0.02)
    parser.add_argument("--right", type=int, default=2)
    parser.add_argument("--full-nll", type=float, default=0.003)
    parser.add_argument("--full-item", type=float, default=0.02)
    arguments = parser.parse_args()
    (ours, our_full), (theirs, their_full) = read(arguments.ours), read(arguments.theirs)
    groups = defaultdict(list)
    for key, row in ours.items():
        if key in theirs and key[0] in our_full and key[0] in their_full:
            groups[(-key[2], key[1])].append((row, theirs[key], our_full[key[0]], their_full[key[0]]))
    if not groups:
        sys.exit("the two files have no row in common")
    bad = []
    print("| recipe | kept | bytes | items | NLL loss | theirs | difference | KL | theirs | right | theirs |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for (keep, policy), pairs in sorted(groups.items()):
        n = len(pairs)
        name = f"{policy} at {-keep:g}"
        loss, their_loss = (sum(p[i]["nll"] - p[i + 2] for p in pairs) / n for i in (0, 1))
        kl, their_kl = (sum(p[i]["kl"] for p in pairs) / n for i in (0, 1))
        # Theirs may only mask what it drops; ours is what the cache still holds.
        held = sum(p[0].get("kept_bytes", 1.0) for p in pairs) / n
        right, their_right = (sum(p[i]["ok"] for p in pairs) for i in (0, 1))
        print(f"| {policy} | {-keep:g} | {held:.3f} | {n} | {loss:.3f} | {their_loss:.3f} | {loss - their_loss:+.3f} | {kl:.3f} | "
              f"{their_kl:.3f} | {right} | {their_right} |")
        if any(a["tokens"] != b["tokens"] for a, b, _, _ in pairs):
            bad.append(f"{name}: numbers of tokens differ")
        if policy == "full":
            mean = sum(a["nll"] - b["nll"] for a, b, _, _ in pairs) / n
            most = max(abs(a["nll"] - b["nll"]) for a, b, _, _ in pairs)
            print(f"full: NLL {sum(p[0]['nll'] for p in pairs) / n:.4f}, theirs {sum(p[1]['nll'] for p in pairs) / n:.4f}, "
                  f"largest difference of an item {most:.4f}", file=sys.stderr)
            if abs(mean) > arguments.full_nll or most > arguments.full_item:
                bad.append(f"full: mean NLL differs by {mean:+.4f}, an item by {most:.4f}")
            continue
        if loss - their_loss > arguments.nll_loss:
            bad.append(f"{name}: loses {loss - their_loss:.3f} more")
        if their_right - right > arguments.right:
            bad.append(f"{name}: {their_right - right} fewer right answers")
    for line in bad:
        print(line, file=sys.stderr)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
