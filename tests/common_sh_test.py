#!/usr/bin/env python3
"""What ./pith builds on, in scripts/common.sh: is_installed, against a made-up dpkg-query; who gets the processors."""
import os
import stat
import subprocess
import tempfile
import unittest

COMMON = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "scripts", "common.sh")

# One status for each architecture, in the format that was asked for.
FAKE = """#!/bin/bash
format=${2#-f=}
case $3 in
  one) statuses=installed ;;
  two) statuses="installed installed" ;;
  second) statuses="not-installed installed" ;;
  removed) statuses=config-files ;;
  never) statuses=not-installed ;;
  *) exit 1 ;;
esac
for status in $statuses; do printf "${format//'${db:Status-Status}'/$status}"; done
"""


class IsInstalled(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        fake = os.path.join(folder.name, "dpkg-query")
        with open(fake, "w") as file:
            file.write(FAKE)
        os.chmod(fake, os.stat(fake).st_mode | stat.S_IXUSR)
        self.path = folder.name

    def installed(self, package):
        done = subprocess.run(["bash", "-c", 'source "$0"; set -euo pipefail; if is_installed "$1"; then echo yes; else echo no; fi',
                               COMMON, package], capture_output=True, text=True,
                              env={**os.environ, "PATH": self.path + os.pathsep + os.environ["PATH"]})
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout.strip() == "yes"

    def test_for_one_architecture_or_several(self):
        for package in ("one", "two", "second"):
            self.assertTrue(self.installed(package), package)

    def test_what_is_not_there(self):
        for package in ("removed", "never", "unheard-of"):
            self.assertFalse(self.installed(package), package)

class OnLeftover(unittest.TestCase):
    @unittest.skipUnless(os.access("/proc/self/autogroup", os.W_OK), "this system knows no groups of sessions")
    def test_the_session_of_its_own_gives_way_and_ours_does_not(self):
        # Ours is one of its own, too, so that a failure slows down nobody else.
        script = 'source "$0"; setsid "${kOnLeftover[@]}" bash -c "cat /proc/self/autogroup; chrt -p \\$\\$" & wait; cat /proc/self/autogroup'
        for _ in range(5):
            done = subprocess.run(["bash", "-c", script, COMMON], capture_output=True, text=True, start_new_session=True)
            theirs, policy, _, ours = done.stdout.splitlines()
            self.assertRegex(theirs, "nice 19$")
            self.assertRegex(policy, "SCHED_IDLE$")
            self.assertRegex(ours, "nice 0$")


if __name__ == "__main__":
    unittest.main()
