#!/usr/bin/env python3
"""tests/tools/speed_model.cc writes files that pith runs, also where blocks of 256 do not divide a model's width.

usage: speed_model_test.py SPEED_MODEL PITH
"""
import json
import os
import subprocess
import sys
import tempfile

maker, pith = sys.argv[1:3]
info = subprocess.run([pith, "info", "--json"], capture_output=True, text=True)
if info.returncode != 0:
    print("[  SKIPPED ] there is no default model, whose tokenizer the file would have")
    sys.exit(0)
tokenizer = json.loads(info.stdout)["path"]
with tempfile.TemporaryDirectory() as folder:
    model = os.path.join(folder, "model.gguf")
    made = subprocess.run([maker, "SmolLM2-135M", "Q4_0", model, tokenizer], capture_output=True, text=True)
    if made.returncode != 0:
        sys.exit(f"speed_model failed ({made.returncode}): {made.stderr[-500:]}")
    run = subprocess.run([pith, "run", "-m", model, "-p", "Once", "--raw", "-n", "4", "--ignore-eos", "--temp", "0", "--json"],
                         capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"pith failed ({run.returncode}): {run.stderr[-500:]}")
    tokens = json.loads(run.stdout)["tokens"]
    if tokens != 4:
        sys.exit(f"{tokens} tokens instead of 4")
