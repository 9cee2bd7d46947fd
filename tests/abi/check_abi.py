#!/usr/bin/env python3
"""The binary interface of <pith/pith.h> is that of tests/abi, until somebody changes both.

  check_abi.py HEADER LIBRARY     compares; LIBRARY is libpith.so
  check_abi.py HEADER --write CC  writes functions.txt and layout.c anew, with the C compiler CC

functions.txt lists every function with its types, and so the symbols that the library exports. layout.c asserts, when it
is compiled, the size of every struct, the offset of every field and the value of every constant (64-bit systems). Adding
to the end of a struct that begins with its size, or a function, is no break: write the files anew. Anything else is:
raise PITH_ABI_VERSION, too.
"""
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
LAYOUT_HEAD = """// Written by check_abi.py: sizes, offsets and values that programs were compiled with.
#include <pith/pith.h>

#if UINTPTR_MAX == UINT64_MAX
"""


def code_of(header):
    text = re.sub(r"//[^\n]*", "", header)
    return re.sub(r"/\*.*?\*/", "", text, flags=re.S)


def read(path):
    """A header with those of pith that it includes."""
    of_pith = r"#include <(pith/\w+\.h)>"
    return re.sub(of_pith, lambda part: (path.parent.parent / part[1]).read_text(), path.read_text())


def functions(header):
    """Prototypes as text, one for each exported function."""
    found = re.findall(r"PITH_API ((?:[^;()]|\([^;()]*(?:\([^;()]*\)[^;()]*)*\))*);", code_of(header))
    return sorted(re.sub(r"\s+", " ", prototype).strip() for prototype in found)


def name_of(prototype):
    return re.search(r"\b(pith_\w+) ?\(", prototype).group(1)


def structs(header):
    """Names of structs, in order, with those of their fields."""
    found = {}
    for name, body in re.findall(r"typedef struct (\w+) \{(.*?)\} \1;", code_of(header), flags=re.S):
        found[name] = [re.search(r"(\w+)\s*$", field).group(1) for field in body.split(";") if field.strip()]
    return found


def constants(header):
    return re.findall(r"^\s+(PITH_\w+) = ", code_of(header), flags=re.M)


def asserted(layout):
    """What layout.c asserts: ("size", struct), ("offset", struct, field), ("value", constant)."""
    found = {("size", name) for name in re.findall(r"sizeof\((\w+)\) ==", layout)}
    found |= {("offset", name, field) for name, field in re.findall(r"offsetof\((\w+), (\w+)\) ==", layout)}
    return found | {("value", name) for name in re.findall(r"_Static_assert\((PITH_\w+) ==", layout)}


def declared(header):
    found = {("value", name) for name in constants(header) + ["PITH_ABI_VERSION"]}
    for name, fields in structs(header).items():
        found |= {("size", name)} | {("offset", name, field) for field in fields}
    return found


def differences(header, listed, layout, exported):
    """Sentences; none: the interface is what it was."""
    found = []
    now, before = set(functions(header)), set(listed)
    found += [f"functions.txt has, and the header has not: {line}" for line in sorted(before - now)]
    found += [f"the header has, and functions.txt has not: {line}" for line in sorted(now - before)]
    names = {name_of(line) for line in now}
    found += [f"the library does not export {name}" for name in sorted(names - exported)]
    found += [f"the library exports {name}, which the header does not declare" for name in sorted(exported - names)]
    now, before = declared(header), asserted(layout)
    found += [f"layout.c asserts what is gone: {' '.join(item)}" for item in sorted(before - now)]
    found += [f"layout.c does not assert: {' '.join(item)}" for item in sorted(now - before)]
    return found


def exports(library):
    lines = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True).stdout
    return {line.split()[-1].split("@")[0] for line in lines.splitlines() if line.split()[-2] != "A"}


def write(path, header, compiler):
    (HERE / "functions.txt").write_text("".join(line + "\n" for line in functions(header)))
    expressions = []
    for name, fields in structs(header).items():
        expressions.append(f"sizeof({name})")
        expressions += [f"offsetof({name}, {field})" for field in fields]
    expressions += constants(header) + ["PITH_ABI_VERSION"]
    prints = "".join(f'  printf("%ld\\n", (long){e});\n' for e in expressions)
    with tempfile.TemporaryDirectory() as folder:
        source, program = pathlib.Path(folder, "print.c"), pathlib.Path(folder, "print")
        source.write_text(f"#include <pith/pith.h>\n#include <stdio.h>\nint main(void) {{\n{prints}  return 0;\n}}\n")
        subprocess.run([compiler, "-std=c11", f"-I{path.parent.parent}", source, "-o", program], check=True)
        values = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()
    lines = [f'_Static_assert({e} == {value}, "{e}");\n' for e, value in zip(expressions, values)]
    (HERE / "layout.c").write_text(LAYOUT_HEAD + "".join(lines) + "#endif\n")


def main():
    path = pathlib.Path(sys.argv[1]).resolve()
    header = read(path)
    if sys.argv[2] == "--write":
        return write(path, header, sys.argv[3])
    listed = (HERE / "functions.txt").read_text().splitlines()
    found = differences(header, listed, (HERE / "layout.c").read_text(), exports(sys.argv[2]))
    for sentence in found:
        print(sentence, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
