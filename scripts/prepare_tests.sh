#!/bin/bash
# Fetches what tests need from elsewhere: packages of Python, Valkey's server, Gemma 3. ./pith test lets it run beside
# the compilers. What cannot be had is said, and the tests that need it are skipped.
#
#   scripts/prepare_tests.sh [--quick]    --quick: what the tests that are not slow need
set -uo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh

command -v redis-server >/dev/null || scripts/fetch_valkey_server.sh >/dev/null ||
  say "tests of stores on servers will be skipped."
PITH_BINARY=build/release/pith python3 tests/serve_test.py --prepare >/dev/null 2>&1 ||
  say "tests of clients of the server will be skipped."
[[ ${1:-} != --quick ]] || exit 0
scripts/fetch_model.sh gemma3-270m >/dev/null || say "tests that need Gemma will be skipped."
python3 python/tests/run.py --prepare --folder build/release/python --name frameworks \
  --packages @python/tests/frameworks/packages.txt >/dev/null || say "tests of the Python package will say what is missing."
