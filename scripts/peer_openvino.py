#!/usr/bin/env python3
"""OpenVINO GenAI with its cache eviction beside pith at the same number of entries, on the same GGUF.

usage: pip install openvino-genai
       scripts/peer_openvino.py [--pith build/release/pith] [-m MODEL] [-f TEXT] [-c 8000] [--keep-tokens 800] [-n 64] [-t 2] [-r 3]

The two take turns; shown are medians of tokens per second, of the prompt and in decoding, and the peak resident set.
OpenVINO reads the whole prompt first and evicts whole blocks after it; pith (keydiff) evicts while it reads.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

from check_budgets import text_of

PEER = r'''
import json, resource, sys
import openvino_genai as ov
model, text, keep, predict, threads = sys.argv[1], open(sys.argv[2]).read(), int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
scheduler = ov.SchedulerConfig()
scheduler.cache_size = 1  # GB
scheduler.max_num_batched_tokens = 512
scheduler.enable_prefix_caching = False
if keep > 0:
    scheduler.use_cache_eviction = True
    scheduler.cache_eviction_config = ov.CacheEvictionConfig(
        start_size=32, recent_size=128, max_cache_size=keep, aggregation_mode=ov.AggregationMode.NORM_SUM)
pipe = ov.LLMPipeline(model, "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=threads)
config = ov.GenerationConfig()
config.max_new_tokens = predict
config.min_new_tokens = predict
config.ignore_eos = True
config.apply_chat_template = False
metrics = pipe.generate([text], config).perf_metrics
tokens = metrics.get_num_input_tokens()
print(json.dumps({
    "prompt_tokens": tokens,
    "prefill": 1000 * tokens / metrics.get_ttft().mean,
    "decode": 1000 / metrics.get_tpot().mean,
    "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
}))
'''


def peer(options, text, keep):
    run = subprocess.run([sys.executable, "-c", PEER, options.model, text, str(keep), str(options.predict), str(options.threads)],
                         capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"OpenVINO failed:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.strip().splitlines()[-1])


def run_pith(options, arguments):
    return subprocess.run([options.pith, *arguments, "-m", options.model, "-c", str(2 * options.context), "--json"],
                          capture_output=True, text=True)


def budget_for(options, entries):
    """The least budget in MiB that keeps so many entries of each head beside a block."""
    for mib in range(1, 1 << 14):
        budget = ["--kv-budget", f"{mib}MiB", "--recipe", "keydiff"]
        info = run_pith(options, ["info", *budget])
        if info.returncode == 0 and json.loads(info.stdout)["budget_split"]["keep_entries"] >= entries:
            return budget
    sys.exit("no budget keeps so many entries")


def pith(options, text, budget):
    run = run_pith(options, ["run", "-f", text, "--raw", "-n", str(options.predict), "--ignore-eos", "--temp", "0",
                             "-t", str(options.threads), *budget])
    if run.returncode != 0:
        sys.exit(f"pith failed:\n{run.stderr[-2000:]}")
    result = json.loads(run.stdout)
    return {"prompt_tokens": result["prompt_tokens"], "prefill": result["timings"]["prefill_tps"],
            "decode": result["timings"]["decode_tps"], "rss": result["rss_peak_bytes"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pith", default="build/release/pith")
    parser.add_argument("-m", "--model", default=os.environ.get("PITH_DEFAULT_MODEL"))
    parser.add_argument("-f", "--file", help="prompt (default: made-up sentences)")
    parser.add_argument("-c", "--context", type=int, default=8000, help="tokens of the made-up prompt, roughly")
    parser.add_argument("--keep-tokens", type=int, default=800, help="a multiple of 32; 0: the full cache")
    parser.add_argument("-n", "--predict", type=int, default=64)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--repeat", type=int, default=3)
    options = parser.parse_args()
    if not options.model:
        parser.error("name a model with -m")
    budget = budget_for(options, options.keep_tokens) if options.keep_tokens > 0 else ["--recipe", "full"]
    with tempfile.TemporaryDirectory() as folder:
        text = options.file or os.path.join(folder, "prompt.txt")
        if not options.file:
            with open(text, "w", encoding="utf-8") as file:
                file.write(text_of(options.context * 24 // 28))  # with sentences of 28 tokens
        results = {"openvino": [], "pith": []}
        for _ in range(options.repeat):
            results["openvino"].append(peer(options, text, options.keep_tokens))
            results["pith"].append(pith(options, text, budget))
    print("| engine | prompt | prefill tokens/s | decode tokens/s | peak RSS MiB |\n|---|---|---|---|---|")
    for engine, rows in results.items():
        median = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        print(f"| {engine} | {median['prompt_tokens']:.0f} | {median['prefill']:.1f} | {median['decode']:.1f} | {median['rss'] / (1 << 20):.0f} |")


if __name__ == "__main__":
    main()
