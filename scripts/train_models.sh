#!/bin/bash
# train_models.sh [PROGRAM]: writes the networks that pith carries, src/evict/models/*.pithnet, anew (two minutes on one
# core). They learn from traces of scripts/make_traces.py with seeds from 101 on; figures are measured on others.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
pith=$(realpath "${1:-$root/build/release/pith}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for seed in 101 102 103 104; do
  for kind in trap trap-fixed web-hard zipf-drift zipf-scan; do
    "$root/scripts/make_traces.py" $kind $seed >"$work/$kind-$seed.csv"
  done
  "$root/scripts/make_traces.py" chat $seed >"$work/chat-$seed.jsonl"
done
for seed in 101 102; do
  "$root/scripts/make_traces.py" prefix $seed >"$work/prefix-$seed.jsonl"
done

list() { (cd "$work" && ls "$@" | sed "s|^|$work/|" | paste -sd,); }
train() { "$pith" sim train "$@"; }
cd "$work"
train --policy learned --trace "$(list *.csv)" --steps 60000 --out learned.pithnet
train --policy coldrl --trace "$(list trap-10[12].csv trap-fixed-10[12].csv web-hard-10[12].csv)" --capacity 25MB,100MB,400MB \
  --steps 15000 --out coldrl.pithnet
train --policy mark0 --trace "$(list zipf-*-10[12].csv *.jsonl)" --capacity 400,2000,8000 --out discard.pithnet
train --policy mnp --trace "$(list zipf-*-10[12].csv *.jsonl)" --capacity 400,2000,8000 --out phase.pithnet
mv ./*.pithnet "$root/src/evict/models/"
