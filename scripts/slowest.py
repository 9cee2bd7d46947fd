#!/usr/bin/env python3
"""What took how long in build trees: compilers and linkers, after Ninja's log, and tests, after the last ./pith test.

  scripts/slowest.py [-n 10] [build/release build/asan ...]     default: every tree below build/

Seconds of single jobs that ran beside others; a step that ran several times counts once, the last time. With ccache
most steps take nothing: CCACHE_DISABLE=1 shows what they are.
"""
import argparse
import pathlib
import signal
import sys
import xml.etree.ElementTree as xml

ROOT = pathlib.Path(__file__).resolve().parent.parent


def steps_of(tree):
    """{output: seconds} of the build; of a step with several outputs, the first."""
    path = tree / ".ninja_log"
    found = {}
    if not path.exists():
        return found
    for line in path.read_text(errors="replace").splitlines():
        fields = line.split("\t")
        if len(fields) == 5:
            start, end, _, output, command = fields
            found[command] = (output.replace("CMakeFiles/", ""), (int(end) - int(start)) / 1000)
    return dict(found.values())


def tests_of(tree):
    """{entry: seconds} of the last run of ctest."""
    paths = [path for path in (tree / "tests.xml", tree / "speed_tests.xml") if path.exists()]
    cases = [case for path in paths for case in xml.parse(path).getroot().iter("testcase")]
    return {case.get("name"): float(case.get("time") or 0) for case in cases if case.get("status") in ("run", "fail")}


def table(title, seconds, count):
    if not seconds:
        return
    print(f"\n{title}: {len(seconds)}, {sum(seconds.values()):.0f} s together")
    for name in sorted(seconds, key=seconds.get, reverse=True)[:count]:
        print(f"{seconds[name]:8.1f} s  {name}")


def main():
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # for `slowest.py | head`
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs="*", type=pathlib.Path, metavar="TREE")
    parser.add_argument("-n", type=int, default=10, help="how many of each (default: 10)")
    arguments = parser.parse_args()
    trees = arguments.trees or sorted(path.parent for path in (ROOT / "build").glob("*/.ninja_log"))
    for tree in trees:
        steps, tests = steps_of(tree), tests_of(tree)
        if not steps and not tests:
            sys.exit(f"slowest.py: {tree} holds neither a build nor a report of tests.")
        linked = {name: s for name, s in steps.items() if not name.endswith((".o", ".gch", ".a"))}
        table(f"{tree}: compiled", {name: s for name, s in steps.items() if name not in linked}, arguments.n)
        table(f"{tree}: linked", linked, arguments.n)
        table(f"{tree}: tests", tests, arguments.n)


if __name__ == "__main__":
    main()
