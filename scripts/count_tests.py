#!/usr/bin/env python3
"""count_tests.py REPORT.xml FOLDER: prints how many tests passed, failed and were skipped in a run of ctest.

REPORT.xml is ctest's own (--output-junit), FOLDER holds what GoogleTest counted in each of its entries (ENTRY.xml, "/"
in its name as "."). An entry without such a file counts as one test. One that failed without a failed test, because it
crashed or ran out of time or a sanitizer complained at its end, counts as one failed test more.
"""
import os
import sys
import xml.etree.ElementTree as xml


def count_suite(path):
    passed = failed = skipped = 0
    for case in xml.parse(path).getroot().iter("testcase"):
        if case.get("status") == "notrun":  # of another part, or disabled
            skipped += case.get("name").startswith("DISABLED_")
        elif case.find("failure") is not None:
            failed += 1
        elif case.get("result") == "skipped" or case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return passed, failed, skipped


def count_entry(entry, folder):
    status = entry.get("status")
    if status in ("disabled", "notrun") and entry.find("failure") is None:
        return 0, 0, 1
    path = os.path.join(folder, entry.get("name").replace("/", ".") + ".xml")
    passed, failed, skipped = count_suite(path) if os.path.exists(path) else (0, 0, 0)
    if status == "fail" or entry.find("failure") is not None:
        return passed, failed or 1, skipped
    return (passed, failed, skipped) if os.path.exists(path) else (1, 0, 0)


def main():
    totals = [0, 0, 0]
    for entry in xml.parse(sys.argv[1]).getroot().iter("testcase"):
        totals = [sum(pair) for pair in zip(totals, count_entry(entry, sys.argv[2]))]
    print(*totals)


if __name__ == "__main__":
    main()
