#!/usr/bin/env python3
"""Checks what CONTRIBUTING.md promises of the code, by its text and, where it was built, by its symbols.

  scripts/check_tidy.py [--objects build/release/src]
  scripts/check_tidy.py --fix   lets clang-format break the lines that are too long

- No line above 120 characters (but in texts, raw strings of several lines), no file of src/ and include/ above 600 lines, no function above 70.
- The library (all layers but lab and cli) neither ends the process nor writes to the terminal, and throws nothing,
  outside of the places in ENDS, WRITES and THROWS. By text in its sources; and in its objects by the symbols that they
  lack (with --objects), since a macro or an inline function of somebody else's header may hide a call.

The exceptions below are the whole list, with their reasons. One that has become untrue is an error, too.
"""
import argparse
import pathlib
import re
import subprocess
import sys

MAX_LINE, MAX_FILE, MAX_FUNCTION = 120, 600, 70
FOLDERS = ["src", "include", "nginx", "tests", "fuzz", "bench", "examples"]
SUFFIXES = {".h", ".cc", ".c", ".hpp", ".inc"}
# Layers that are a program, not a library: they talk to whoever started them.
PROGRAMS = {"lab", "cli"}

# File and name of functions that may be longer.
LONG_FUNCTIONS = {}

# What ends the process.
ENDS = {
    "src/base/check.cc": "PITH_CHECK: our own invariants are broken",
    "src/host/trial.cc": "a forked child that tries a file, and libllama's own aborts",
}
# What writes to the terminal or reads from it.
WRITES = {
    "src/base/check.cc": "says which invariant is broken",
    "src/base/text.cc": "\"-\" stands for standard input and output",
    "src/kernels/target.cc": "says that PITH_FORCE_TARGET is ignored",
    "src/host/trial.cc": "says why libllama gave up",
}
THROWS = {
    "src/base/ledger.h": "an allocator of containers has no other way to say that it can't",
}

RULES = [
    ("ends the process", ENDS, re.compile(r"\b(?:std::)?(?:abort|_?[Ee]xit|quick_exit|terminate)\s*\(")),
    ("uses the terminal", WRITES, re.compile(
        r"\bstd::(?:cerr|cout|clog|cin)\b|\b(?:v?f?printf|f?puts|fputc|putchar|perror)\s*\(|\bfmt::v?print\s*\(")),
    ("throws", THROWS, re.compile(r"\bthrow\b")),
]
# Symbols that objects lack, but for those of the files above. (What is thrown is left to the text, and so is
# std::terminate: containers and threads of the standard library are templates, and have both in our objects.)
SYMBOLS = [
    ("ends the process", ENDS, re.compile(r"^(?:abort|_?exit|_Exit|quick_exit)$")),
    ("uses the terminal", WRITES, re.compile(r"^(?:_ZSt[34](?:cerr|cout|clog|cin)|stdin|stdout|stderr|printf|puts|putchar|perror)$")),
]


def sources(root, folders):
    return sorted(path for folder in folders for path in (root / folder).rglob("*") if path.suffix in SUFFIXES)


def without_comments(text):
    """Comments and string literals blanked, newlines kept."""
    pattern = r'//[^\n]*|/\*.*?\*/|R"\((?:.|\n)*?\)"|"(?:\\.|[^"\\\n])*"|' + r"'(?:\\.|[^'\\\n])'"
    return re.sub(pattern, lambda found: re.sub(r"[^\n]", " ", found.group()), text, flags=re.S)


def lines_of_texts(text):
    """Numbers of the lines that are within a raw string of several lines: help and documents wrap as they like."""
    numbers = set()
    for found in re.finditer(r'R"(\w*)\(.*?\)\1"', text, flags=re.S):
        first = text.count("\n", 0, found.start()) + 1
        last = first + found.group().count("\n")
        if last > first:
            numbers.update(range(first, last + 1))
    return numbers


def functions(text):
    """(name, first line, number of lines) of functions that begin in column 0, or 2 within a class. By layout alone:
    clang-format's style has the closing brace of what begins in a column in that column."""
    lines = without_comments(text).split("\n")
    at, start, column = 0, None, 0
    while at < len(lines):
        line = lines[at]
        indent = len(line) - len(line.lstrip())
        if column == 2 and re.match(r"\};", line):
            column, start = 0, None
        elif line.strip() and not line.startswith("#") and (start is not None or indent == column):
            if start is None:
                start = at
            end = line.rstrip()
            if end.endswith("{"):
                head = " ".join(lines[start:at + 1])
                if re.match(r"\s*(?:inline )?(?:namespace|extern)\b", head):
                    pass
                elif re.match(r"\s*(?:template\s*<.*>\s*)?(?:class|struct|union|enum)\b[^()]*(?:\([^()]*\))?[^()]*\{$", head):
                    if column == 0:
                        column = 2
                else:
                    closing = re.compile(" " * column + r"\}[;,)]*\s*$")
                    last = next((i for i in range(at + 1, len(lines)) if closing.match(lines[i])), at)
                    name = re.search(r"([\w:~]+|operator\S+)\s*\(", head)
                    if name and lines[last].strip() == "}":
                        yield name.group(1), start + 1, last - start + 1
                    at = last
                start = None
            elif end.endswith((";", "}", ":")) or (end.endswith(")") and re.match(r"\s*[A-Z_]+\(", end)):
                start = None
        at += 1


def check_shape(root, errors):
    seen = set()
    for path in sources(root, FOLDERS):
        name, text = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
        lines = text.split("\n")
        texts = lines_of_texts(text)
        for number, line in enumerate(lines, 1):
            if len(line) > MAX_LINE and number not in texts:
                errors.append(f"{name}:{number}: {len(line)} characters, more than {MAX_LINE}")
        if not name.startswith(("src/", "include/")):
            continue
        if len(lines) - 1 > MAX_FILE:
            errors.append(f"{name}: {len(lines) - 1} lines, more than {MAX_FILE}")
        for function, first, length in functions(text):
            if length <= MAX_FUNCTION:
                continue
            if (name, function) in LONG_FUNCTIONS:
                seen.add((name, function))
            else:
                errors.append(f"{name}:{first}: {function} has {length} lines, more than {MAX_FUNCTION}")
    errors.extend(f"{name}: {function} is no longer too long: take it out of LONG_FUNCTIONS"
                  for name, function in sorted(LONG_FUNCTIONS.keys() - seen))


def break_long_lines(root):
    for path in sources(root, FOLDERS):
        text = path.read_text(encoding="utf-8")
        texts = lines_of_texts(text)
        long_lines = [number for number, line in enumerate(text.split("\n"), 1)
                      if len(line) > MAX_LINE and number not in texts]
        # .inc: lists of macros, whose layout is a table's.
        if long_lines and path.suffix != ".inc":
            subprocess.run(["clang-format", "-i", *(f"-lines={n}:{n}" for n in long_lines), path], check=True)


def is_library(name):
    parts = pathlib.PurePosixPath(name).parts
    return (parts[0] == "include" or parts[1] not in PROGRAMS) and not re.search(r"_(?:test|bench|test_util)\.\w+$", name)


def check_calls(root, errors):
    seen = [set() for _ in RULES]
    for path in sources(root, ["src", "include"]):
        name = path.relative_to(root).as_posix()
        if not is_library(name):
            continue
        for number, line in enumerate(without_comments(path.read_text(encoding="utf-8")).split("\n"), 1):
            for (what, allowed, pattern), used in zip(RULES, seen):
                if not pattern.search(line):
                    continue
                if name in allowed:
                    used.add(name)
                else:
                    errors.append(f"{name}:{number}: {what}, which a library must not")
    for (what, allowed, _), used in zip(RULES, seen):
        errors.extend(f"{name}: no longer {what}: take it out of the list" for name in sorted(allowed.keys() - used))


def check_symbols(objects, errors):
    libraries = sorted(path for path in objects.glob("libpith_*.a")
                       if path.stem.removeprefix("libpith_") not in PROGRAMS)
    if not libraries:
        errors.append(f"{objects}: no libraries to look at")
    for library in libraries:
        layer = library.stem.removeprefix("libpith_")
        listed = subprocess.run(["nm", "-A", "-P", "-u", library], capture_output=True, text=True, check=True).stdout
        for line in listed.splitlines():
            # lib.a[member.cc.o]: symbol U
            found = re.match(r".*\[(?:.*/)?([^/\]]+)\.(?:o|obj)\]: (\S+)", line)
            if not found:
                continue
            member, symbol = found.groups()
            for what, allowed, pattern in SYMBOLS:
                owners = {pathlib.PurePosixPath(name).name for name in allowed if name.startswith(f"src/{layer}/")}
                if pattern.match(symbol.split("@")[0]) and member not in owners:
                    errors.append(f"{library.name}: {member} {what}: {symbol}, which a library must not")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent)
    parser.add_argument("--objects", type=pathlib.Path, help="folder of the layers' libraries, libpith_*.a")
    parser.add_argument("--fix", action="store_true", help="break long lines first, by clang-format")
    arguments = parser.parse_args()
    errors = []
    if arguments.fix:
        break_long_lines(arguments.root.resolve())
    check_shape(arguments.root.resolve(), errors)
    check_calls(arguments.root.resolve(), errors)
    if arguments.objects:
        check_symbols(arguments.objects, errors)
    for error in errors:
        print(error, file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
