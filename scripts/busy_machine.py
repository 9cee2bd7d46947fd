#!/usr/bin/env python3
"""How much of its fair share of a busy machine a command gets.

  scripts/busy_machine.py [--busy 4] [--threads 2] [--repeat 3] -- build/release/pith eval -t 2 --lengths 512 --limit 2

Runs the command alone and beside --busy processes that never sleep, in turns. Of as many processors, --threads threads beside them
would get threads / (threads + busy) of the machine: the fair time is the processor time that the command takes alone over that rate.
Printed: seconds of both, and the fair time over the time taken (medians).
"""
import argparse
import os
import resource
import statistics
import subprocess
import sys
import time


def run(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        sys.exit(done.stderr.decode()[-500:])
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def beside(command, busy):
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        time.sleep(1)
        start = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if done.returncode != 0:
            sys.exit(f"the command failed beside others ({done.returncode})")
        return time.perf_counter() - start
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2, help="that the command uses")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("command", nargs="+")
    flags = parser.parse_args()
    alone, work, crowded = [], [], []
    for _ in range(flags.repeat):
        wall, cpu = run(flags.command)
        alone.append(wall)
        work.append(cpu)
        crowded.append(beside(flags.command, flags.busy))
    cores = len(os.sched_getaffinity(0))
    threads = min(flags.threads, cores)
    rate = min(threads, cores * threads / (threads + flags.busy))
    fair = statistics.median(work) / rate
    print(f"alone {statistics.median(alone):.1f} s ({statistics.median(work):.1f} s of processors), beside {flags.busy} busy processes "
          f"{statistics.median(crowded):.1f} s, fair {fair:.1f} s: {100 * fair / statistics.median(crowded):.0f}% of a fair share")


if __name__ == "__main__":
    main()
