#!/usr/bin/env python3
"""libCacheSim's evictors beside pith's, on one core and the same trace, in turns.

usage: bench/peer_libcachesim.py TRACE.oracleGeneral.bin [--pith build/release/pith] [--capacity 2000] [-r 5]

TRACE: libCacheSim's own data/cloudPhysicsIO.oracleGeneral.bin, or any other; sizes are ignored (--capacity counts
objects). The peer is the PyPI package libcachesim, in a virtual environment in the cache folder. Shown are millions of
requests per second of the replay alone, the best of -r turns; both must hit equally often.
"""
import argparse
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import venv

VERSION = "0.3.5"
# By name of ours: the peer's.
EVICTORS = {"fifo": "FIFO", "lru": "LRU", "lfu": "LFU", "sieve": "Sieve", "s3fifo-cold": "S3FIFO", "arc": "ARC",
            "gdsf-admit": "GDSF", "belady": "Belady"}
# The peer's trace is in memory, too: it maps the file, which has been read before.
PEER = r"""
import json, sys, time
import libcachesim as peer
trace, capacity, names = sys.argv[1], int(sys.argv[2]), sys.argv[3].split(",")
rows = {}
for name in names:
    reader = peer.TraceReader(trace, peer.TraceType.ORACLE_GENERAL_TRACE, peer.ReaderInitParam(ignore_obj_size=True))
    cache = getattr(peer, name)(capacity, hashpower=18)
    start = time.perf_counter()
    miss, _ = cache.process_trace(reader)
    rows[name] = [time.perf_counter() - start, miss]
print(json.dumps(rows))
"""


def environment():
    cache = os.environ.get("PITH_CACHE_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pith")
    folder = pathlib.Path(cache) / f"peer-libcachesim-{VERSION}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"libcachesim=={VERSION}"], check=True)
        (folder / "complete").touch()
    return python


def without_sizes(trace, folder):
    """The trace with all sizes 1, which is what both then count."""
    data = bytearray(pathlib.Path(trace).read_bytes())
    for at in range(12, len(data), 24):
        struct.pack_into("<I", data, at, 1)
    path = os.path.join(folder, "trace.oracleGeneral.bin")
    pathlib.Path(path).write_bytes(data)
    return path, len(data) // 24


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace")
    parser.add_argument("--pith", default="build/release/pith")
    parser.add_argument("--capacity", type=int, default=2000)
    parser.add_argument("-r", type=int, default=5, metavar="TURNS")
    options = parser.parse_args()
    python = environment()
    ours, theirs, equal = {}, {}, True
    with tempfile.TemporaryDirectory() as folder:
        trace, requests = without_sizes(options.trace, folder)
        for _ in range(options.r):
            run = subprocess.run([options.pith, "sim", "--trace", trace, "--format", "oracle", "--policy",
                                  ",".join(EVICTORS), "--capacity", str(options.capacity), "-t", "1", "--json"],
                                 capture_output=True, text=True, check=True)
            for row in json.loads(run.stdout)["rows"]:
                ours.setdefault(row["policy"], []).append((row["ns_per_request"] * 1e-9 * requests, row["hits"]))
            run = subprocess.run([python, "-c", PEER, trace, str(options.capacity), ",".join(EVICTORS.values())],
                                 capture_output=True, text=True, check=True)
            for name, (seconds, miss) in json.loads(run.stdout).items():
                theirs.setdefault(name, []).append((seconds, round((1 - miss) * requests)))
    print(f"{requests} requests, {options.capacity} objects; millions of requests a second")
    print(f"{'evictor':12} {'pith':>8} {'libCacheSim':>12} {'hits':>10}")
    for name, peer in EVICTORS.items():
        mine, its = min(ours[name]), min(theirs[peer])
        hits = str(mine[1]) if mine[1] == its[1] else f"{mine[1]} and {its[1]}"
        equal = equal and mine[1] == its[1]
        print(f"{name:12} {requests / mine[0] / 1e6:8.1f} {requests / its[0] / 1e6:12.1f} {hits:>10}")
    if not equal:
        sys.exit("the two do not hit equally often")


if __name__ == "__main__":
    main()
