#!/usr/bin/env python3
"""scripts/count_tests.py, which decides what ./pith test says at its end, and slowest.py, on made-up reports."""
import os
import subprocess
import sys
import tempfile
import unittest

SCRIPTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "scripts")
SCRIPT = os.path.join(SCRIPTS, "count_tests.py")

SUITE = """<?xml version="1.0"?>
<testsuites tests="4" failures="1"><testsuite name="A">
  <testcase name="Good" status="run" result="completed" classname="A" />
  <testcase name="Bad" status="run" result="completed" classname="A"><failure message="x" /></testcase>
  <testcase name="Left" status="run" result="skipped" classname="A"><skipped message="a_test.cc:7&#x0A;nothing to say" /></testcase>
  <testcase name="Other" status="notrun" result="suppressed" classname="A" />
</testsuite></testsuites>"""
GOOD = """<testsuites><testsuite name="A">
  <testcase name="One" status="run" result="completed" /><testcase name="Two" status="run" result="completed" />
</testsuite></testsuites>"""


class CountTests(unittest.TestCase):
    def count(self, entries, suites):
        """Counts for entries {name: status} of which suites {name: XML} wrote a file. What was skipped is in self.skipped."""
        with tempfile.TemporaryDirectory() as folder:
            report = os.path.join(folder, "report.xml")
            with open(report, "w") as file:
                file.write("<testsuite>")
                for name, status in entries.items():
                    why = "<skipped/><system-out>\nit began\n[  SKIPPED ] too busy\n</system-out>"
                    inside = "<failure/>" if status == "fail" else why if status == "notrun" else ""
                    file.write(f'<testcase name="{name}" status="{status}">{inside}</testcase>')
                file.write("</testsuite>")
            os.mkdir(os.path.join(folder, "suites"))
            for name, text in suites.items():
                with open(os.path.join(folder, "suites", name + ".xml"), "w") as file:
                    file.write(text)
            done = subprocess.run([sys.executable, SCRIPT, report, os.path.join(folder, "suites")],
                                  capture_output=True, text=True, check=True)
            counts, *self.skipped = done.stdout.splitlines()
            return tuple(int(number) for number in counts.split())

    def test_entries_without_a_suite(self):
        self.assertEqual(self.count({"a": "run", "b": "fail", "c": "notrun", "d": "disabled"}, {}), (1, 1, 2))
        self.assertEqual(self.skipped, ["c: too busy", "d"])

    def test_each_test_of_a_suite_counts(self):
        self.assertEqual(self.count({"a": "run", "Every/B": "run"}, {"Every.B": GOOD}), (3, 0, 0))
        self.assertEqual(self.count({"a": "fail"}, {"a": SUITE}), (1, 1, 1))
        self.assertEqual(self.skipped, ["a: Left: nothing to say"])

    def test_an_entry_that_failed_at_its_end(self):
        self.assertEqual(self.count({"a": "fail"}, {"a": GOOD}), (2, 1, 0))

    def test_a_suite_that_crashed(self):
        self.assertEqual(self.count({"a": "fail", "b": "run"}, {"b": GOOD}), (2, 1, 0))


class Slowest(unittest.TestCase):
    def test_the_longest_of_each_kind(self):
        with tempfile.TemporaryDirectory() as tree:
            with open(os.path.join(tree, ".ninja_log"), "w") as file:
                file.write("# ninja log v5\n0\t9000\t1\told.o\taa\n0\t2000\t1\told.o\taa\n0\t3500\t1\tlong.o\tbb\n"
                           "5\t15\t1\tprogram\tcc\n5\t15\t1\talias\tcc\n")
            with open(os.path.join(tree, "tests.xml"), "w") as file:
                file.write('<testsuite><testcase name="A" status="run" time="1.5"/>'
                           '<testcase name="B" status="fail" time="40"/></testsuite>')
            with open(os.path.join(tree, "speed_tests.xml"), "w") as file:
                file.write('<testsuite><testcase name="C" status="run" time="2"/></testsuite>')
            done = subprocess.run([sys.executable, os.path.join(SCRIPTS, "slowest.py"), "-n", "1", tree],
                                  capture_output=True, text=True, check=True).stdout
        self.assertIn("compiled: 2, 6 s together\n     3.5 s  long.o\n", done)
        self.assertIn("linked: 1, 0 s together", done)
        self.assertIn("tests: 3, 44 s together\n    40.0 s  B\n", done)
        self.assertNotIn("old.o", done)


if __name__ == "__main__":
    unittest.main()
