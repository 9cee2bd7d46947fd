#!/usr/bin/env python3
"""count_tests.py REPORT.xml FOLDER: prints how many tests passed, failed and were skipped in a run of ctest, and below,
a line each, which were skipped and why.

REPORT.xml is ctest's own (--output-junit), FOLDER holds what GoogleTest counted in each of its entries (ENTRY.xml, "/"
in its name as "."). An entry without such a file counts as one test. One that failed without a failed test, because it
crashed or ran out of time or a sanitizer complained at its end, counts as one failed test more.
"""
import os
import sys
import xml.etree.ElementTree as xml


def first_line(text):
    return next((line.strip() for line in (text or "").splitlines() if line.strip()), "")


def line_of_skipping(text):
    """Of what an entry said: GoogleTest's mark, or unittest's "OK (skipped=2)"."""
    said = [line for line in (text or "").splitlines() if "skipped" in line.lower()]
    return first_line("\n".join(said) or text).removeprefix("[  SKIPPED ] ")


def count_suite(path, entry):
    passed = failed = 0
    skipped = []
    for case in xml.parse(path).getroot().iter("testcase"):
        name, mark = case.get("name"), case.find("skipped")
        if case.get("status") == "notrun":  # of another part, or disabled
            skipped += [f"{entry}: {name} is disabled"] if name.startswith("DISABLED_") else []
        elif case.find("failure") is not None:
            failed += 1
        elif case.get("result") == "skipped" or mark is not None:
            # GoogleTest's message begins with the line of code.
            lines = (mark.get("message") or "").splitlines() if mark is not None else []
            skipped.append(f"{entry}: {name}: {first_line(chr(10).join(lines[1:]) or lines[0] if lines else '')}")
        else:
            passed += 1
    return passed, failed, skipped


def count_entry(entry, folder):
    status, name = entry.get("status"), entry.get("name")
    if status in ("disabled", "notrun") and entry.find("failure") is None:
        return 0, 0, [f"{name}: {line_of_skipping(entry.findtext('system-out'))}"]
    path = os.path.join(folder, name.replace("/", ".") + ".xml")
    passed, failed, skipped = count_suite(path, name) if os.path.exists(path) else (0, 0, [])
    if status == "fail" or entry.find("failure") is not None:
        return passed, failed or 1, skipped
    return (passed, failed, skipped) if os.path.exists(path) else (1, 0, [])


def main():
    passed = failed = 0
    skipped = []
    for entry in xml.parse(sys.argv[1]).getroot().iter("testcase"):
        good, bad, left = count_entry(entry, sys.argv[2])
        passed, failed, skipped = passed + good, failed + bad, skipped + left
    print(f"{passed} {failed} {len(skipped)}", *(line.rstrip(": ") for line in skipped), sep="\n")


if __name__ == "__main__":
    main()
