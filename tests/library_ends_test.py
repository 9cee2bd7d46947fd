#!/usr/bin/env python3
"""The library neither ends the process nor writes to its streams, but in the places named here.

usage: library_ends_test.py ARCHIVE...   (those of the layers that programs link)
"""
import collections
import os
import subprocess
import sys
import unittest

CHECKS = {"abort", "stderr"}  # PITH_CHECK (src/base/check.h): our own mistakes, never input
# Object files, and what they may use.
NAMED = {
    "base/ledger": CHECKS,
    "base/text": {"stdout"},  # the CLI's one way to standard output
    "kernels/block_bounds": CHECKS, "kernels/byte_products": CHECKS, "kernels/byte_products_many": CHECKS,
    "kernels/group_codec": CHECKS, "kernels/probabilities": CHECKS, "kernels/row_codec": CHECKS,
    "kernels/row_table": CHECKS,
    "kernels/target": {"stderr"},  # PITH_FORCE_TARGET names what the machine does not have
    "cache/cache_file": CHECKS, "cache/kv_cache": CHECKS, "cache/page_pool": CHECKS,
    "policy/composed": CHECKS, "policy/layer_sharing": CHECKS, "policy/params": CHECKS, "policy/registry": CHECKS,
    "host/block_product": CHECKS, "host/context": CHECKS,
    "host/trial": {"_exit", "kill", "stderr"},  # a process of its own, in which libllama may abort
}
ENDS = {"abort", "exit", "_exit", "_Exit", "quick_exit", "kill", "raise", "__assert_fail", "_ZSt4cerr", "_ZSt4cout",
        "_ZSt4clog", "stderr", "stdout", "printf", "puts", "putchar", "perror", "__printf_chk", "__fprintf_chk"}


def uses_of(archives):
    uses = collections.defaultdict(set)
    for archive in archives:
        layer = os.path.basename(archive).removeprefix("libpith_").removesuffix(".a")
        listed = subprocess.run(["nm", "-A", "-u", archive], capture_output=True, text=True, check=True).stdout
        for line in listed.splitlines():
            place, _, symbol = line.rpartition(" ")
            name = place.split(":")[1].removesuffix(".o").removesuffix(".cc")
            symbol = symbol.split("@")[0]
            if symbol in ENDS:
                uses[f"{layer}/{name}"].add(symbol)
    return dict(uses)


class LibraryEnds(unittest.TestCase):
    archives = []

    def test_only_in_named_places(self):
        self.assertGreater(len(self.archives), 5)
        uses = uses_of(self.archives)
        for place in sorted(uses.keys() | NAMED.keys()):
            with self.subTest(place=place):
                self.assertEqual(uses.get(place, set()), NAMED.get(place, set()))


if __name__ == "__main__":
    LibraryEnds.archives = sys.argv[1:]
    unittest.main(argv=sys.argv[:1])
