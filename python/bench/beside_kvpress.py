#!/usr/bin/env python3
"""kvpress and pith on the same items, weights and tokens: what the answers cost, and what both caches hold afterwards.

    pip install . torch 'transformers<5.3' kvpress gguf
    build/release/tests/requantize MODEL.gguf f32.gguf
    python python/bench/beside_kvpress.py f32.gguf [--ratio 0.5] [--items 20] [--json rows.json]

Contexts are compressed before the question is known. Bytes are held by the cache of the first item's context: those of
kvpress's tensors, halved, as they are float32 and pith's float16, and those that pith's budget counts for a sequence with
this recipe alone, with all that it keeps beside keys and values.
"""

import argparse
import json
import os
import statistics
import time

import torch
import transformers
import kvpress

import pith

PLAIN = ["ExpectedAttention", "KeyDiff", "Knorm", "ObservedAttention", "PyramidKV", "SnapKV", "StreamingLLM", "TOVA"]
AROUND_SNAPKV = ["AdaKV", "CriticalKV", "CriticalAdaKV"]


def presses_of(module, ratio):
    """The presses by name, of kvpress or of pith.presses: they are written alike."""
    found = {name: getattr(module, name + "Press")(compression_ratio=ratio) for name in PLAIN}
    for name in AROUND_SNAPKV:
        found[name] = getattr(module, name + "Press")(module.SnapKVPress(compression_ratio=ratio))
    return found


def bytes_held(model, recipe, context, keep):
    """By a sequence of pith's that has read the context and compressed it."""
    with pith.Engine(model, ctx=len(context) + 8).sequence(compress_after=True, later_recipes=[recipe]) as one:
        one.prefill(context)
        if keep < 1:
            one.compress(keep, recipe)
        return one.stats["used_bytes"]


class Theirs:
    """kvpress over transformers, the file's weights in float32."""

    def __init__(self, path):
        folder, name = os.path.split(os.path.abspath(path))
        transformers.utils.logging.disable_progress_bar()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=name, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        self.layers = [layer.self_attn for layer in self.model.model.layers]
        for layer in self.layers:
            layer.rotary_emb = self.model.model.rotary_emb  # where ExpectedAttention looks for it

    @torch.no_grad()
    def read(self, context):
        """What kvpress's hooks get, layer by layer, when the model reads the context: presses act after a layer's
        attention, so that they all get the same."""
        seen, cache = [], transformers.DynamicCache()
        hooks = [
            layer.register_forward_hook(lambda layer, _, given, output: seen.append((given, output)), with_kwargs=True)
            for layer in self.layers
        ]
        self.model.set_attn_implementation("eager")  # for ObservedAttention's sake
        self.model.model(torch.tensor([context]), past_key_values=cache)
        self.model.set_attn_implementation("sdpa")
        for hook in hooks:
            hook.remove()
        return seen, [(layer.keys, layer.values) for layer in cache.layers]

    @torch.no_grad()
    def judge(self, press, read, context, question, target):
        """NLL of the target, and bytes of the cache after the press."""
        seen, whole = read
        cache = transformers.DynamicCache()
        press.post_init_from_model(self.model)
        for i, (layer, (given, output), (keys, values)) in enumerate(zip(self.layers, seen, whole)):
            layer.masked_key_indices = None
            cache.update(keys.clone(), values.clone(), i)
            press.forward_hook(layer, [], dict(given, past_key_values=cache), output)
        held = sum(part.untyped_storage().nbytes() for one in cache.layers for part in (one.keys, one.values))
        tail, count = question + target[:-1], len(target)
        # One mask serves all layers, and masked heads one query: other caches are read token by token.
        alike = len({one.keys.shape[2] for one in cache.layers}) == 1
        alike = alike and all(layer.masked_key_indices is None for layer in self.layers)
        rows = []
        for begin in range(0, len(tail), len(tail) if alike else 1):
            part = tail[begin:] if alike else tail[begin : begin + 1]
            at = torch.arange(len(context) + begin, len(context) + begin + len(part))[None]
            rows.append(self.model(torch.tensor([part]), past_key_values=cache, position_ids=at).logits[0])
        log_probs = torch.cat(rows)[-count:].log_softmax(-1)
        return -log_probs.gather(1, torch.tensor(target)[:, None]).mean().item(), held


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--ratio", type=float, default=0.5, help="the share that is removed")
    parser.add_argument("--items", type=int, default=20)
    parser.add_argument("--presses", default="", help="some of them, separated by commas")
    parser.add_argument("--json", default="")
    given = parser.parse_args()
    names = given.presses.split(",") if given.presses else PLAIN + AROUND_SNAPKV
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = pith.Model(given.model)
    # kvpress refuses contexts shorter than SnapKV's window.
    tasks = [task for task in sorted(pith.eval.own_tasks(), key=lambda task: task["length"])
             if len(pith.eval.split(model, task)[0]) > 64][: given.items]  # fmt: skip
    ours, theirs = presses_of(pith.presses, given.ratio), presses_of(kvpress, given.ratio)
    recipes = {ours[name].recipe: name for name in names}
    begin = time.monotonic()
    rows = {}
    for row in pith.eval.evaluate(model, list(recipes), tasks, keep=[1 - given.ratio], threads=torch.get_num_threads()):
        name = recipes.get(row["recipe"], "full")
        rows[row["id"], name] = {"id": row["id"], "press": name, "pith": row["nll"]}
    first = pith.eval.split(model, tasks[0])[0]
    held = {name: [bytes_held(model, recipe, first, 1 - given.ratio)] for recipe, name in recipes.items()}
    held["full"] = [bytes_held(model, "full", first, 1)]
    print(f"pith: {time.monotonic() - begin:.0f} s", flush=True)
    begin = time.monotonic()
    peer = Theirs(given.model)
    for task in tasks:
        tokens = pith.eval.split(model, task)
        read, everything = peer.read(tokens[0]), kvpress.KnormPress(compression_ratio=0.0)
        for name in ["full", *names]:
            rows[task["id"], name]["kvpress"], float32 = peer.judge(theirs.get(name, everything), read, *tokens)
            held[name].append(float32 // 2)
        print(f"kvpress: {task['id']}, {time.monotonic() - begin:.0f} s", flush=True)
    if given.json:
        with open(given.json, "w") as file:
            json.dump(list(rows.values()), file, indent=1)
    print("\n| press | NLL | kvpress | difference | KiB held | kvpress |\n|---|---|---|---|---|---|")
    for name in ["full", *names]:
        nll, other = (statistics.fmean(row[key] for row in rows.values() if row["press"] == name)
                      for key in ("pith", "kvpress"))  # fmt: skip
        kib = [round(count / 1024) for count in held[name][:2]]
        print(f"| {name} | {nll:.4f} | {other:.4f} | {nll - other:+.4f} | {kib[0]} | {kib[1]} |")


if __name__ == "__main__":
    main()
