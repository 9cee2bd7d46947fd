#!/usr/bin/env python3
"""speed_test.py with programs that say what a bench might have found."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

import speed_test

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "speed_test.py")
# Says the next of its answers (busy, ratio of all tests), the last one for ever, and counts its calls.
PROGRAM = """#!{python}
import json, os, sys
answers, calls = {answers}, {calls!r}
number = os.path.getsize(calls) if os.path.exists(calls) else 0
open(calls, "a").write("x")
busy, ratio = answers[min(number, len(answers) - 1)]
bounds = next(bounds for flags, bounds in json.loads({cases!r}) if flags[1] == sys.argv[sys.argv.index("--ctx") + 1])
rows = [{{"engine": "pith", "recipe": recipe, "keep": keep, "tests": [{{"name": name, "ratio": ratio}}]}}
        for name, recipe, keep in bounds]
print(json.dumps({{"busy": busy, "free_share": 0.7 if busy else 1, "rows": rows, "float_products": True, "byte_products": True}}))
"""


class SpeedTest(unittest.TestCase):
    def run_with(self, *answers):
        """Exit code, output, number of benches."""
        with tempfile.TemporaryDirectory() as folder:
            program, calls = os.path.join(folder, "pith"), os.path.join(folder, "calls")
            cases = json.dumps([(flags, list(bounds)) for flags, bounds in speed_test.CASES])
            with open(program, "w") as file:
                file.write(PROGRAM.format(python=sys.executable, answers=list(answers), calls=calls, cases=cases))
            os.chmod(program, 0o700)
            done = subprocess.run([sys.executable, SCRIPT, program], capture_output=True, text=True)
            self.assertEqual(done.stderr, "")
            return done.returncode, done.stdout, os.path.getsize(calls)

    def test_one_good_repetition_is_enough(self):
        code, said, benches = self.run_with((False, 3))
        self.assertEqual((code, benches), (0, 2))
        self.assertEqual(said.count(": ok\n"), 6)

    def test_slow_ones_are_measured_again(self):
        self.assertEqual(self.run_with((False, 0.5), (False, 3))[::2], (0, 3))
        code, said, benches = self.run_with((False, 0.5))
        self.assertEqual((code, benches), (1, 6))
        self.assertEqual(said.count("TOO SLOW"), 6)

    def test_a_busy_machine_says_nothing(self):
        code, said, benches = self.run_with((True, 0.5))
        self.assertEqual((code, benches), (0, 3))
        self.assertIn("[  SKIPPED ] the machine is too busy to measure: a thread got 70% of its time", said)
        self.assertEqual(self.run_with((True, 0.5), (False, 3))[::2], (0, 3))
        # Slow while it was quiet counts, whatever came after.
        self.assertEqual(self.run_with((False, 0.5), (True, 3))[0], 1)


if __name__ == "__main__":
    unittest.main()
