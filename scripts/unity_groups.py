#!/usr/bin/env python3
"""Which files may be compiled as one: cmake/PithUnity.cmake asks for every target.

  scripts/unity_groups.py FILE.cc...    prints "group file" for each that shares a group with others

In one translation unit a name of a file's own (in an unnamed namespace, static, a macro, an alias) is seen by the files
after it. Two files go together only where neither has such a name that stands anywhere in the other: then each means
what it means alone, and none needs other names for the sake of the rest. Alone stay files that are compiled once per
SIMD target, and those that check_tidy.py knows by their objects' names.
"""
import pathlib
import re
import sys

sys.dont_write_bytecode = True
from check_tidy import ENDS, WRITES  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
MOST_FILES, MOST_LINES = 8, 1600  # of a group: what a changed file has compiled again beside it
TEXTS = re.compile(r'R"(?P<end>[^()\s\\]*)\(.*?\)(?P=end)"|"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/|'
                   r"(?<!\w)'(?:\\.|[^'\\\n])+'", re.S)
NAME = r"[A-Za-z_]\w*"
NO_FUNCTIONS = {"decltype", "requires", "alignas", "noexcept", "operator"}


def without_texts(code):
    return TEXTS.sub(lambda found: '""' if found[0][0] in "R\"" else " 0 " if found[0][0] == "'" else " ", code)


def declared(head):
    """The names that a declaration in a namespace gives. `head` ends before its body or semicolon."""
    head = re.sub(r"\[\[.*?\]\]", " ", head)
    before = None
    while before != head:
        before, head = head, re.sub(r"<[^<>]*>", " ", head)
    found = (re.match(rf"\s*(?:template\s*)?(?:class|struct|union|enum(?:\s+class)?)\s+({NAME})", head) or
             re.match(rf"\s*(?:template\s*)?using\s+({NAME})\s*=", head) or
             re.match(rf"\s*namespace\s+({NAME})\s*=", head))
    if found:
        return [found[1]]
    if re.match(r"\s*(?:using|static_assert)\b", head):
        return []
    first = head.split("=")[0]
    for name in re.findall(rf"({NAME})\s*\(", first):
        if re.fullmatch(r"[A-Z0-9_]{3,}", name):  # a macro, such as TEST
            return []
        if name not in NO_FUNCTIONS:
            return [name]
    # int a, b[2] = ..., c = ...
    return re.findall(NAME, re.sub(r"\[.*", "", first))[-1:] + re.findall(rf"({NAME})\s*(?:\[[^\]]*\]\s*)*(?:[,=]|$)", head)


def own_names(code):
    """Names of a file's own. `code` is without texts and comments."""
    names = set(re.findall(r"^[ \t]*#[ \t]*define[ \t]+(\w+)", code, re.M))
    names.update(f"using namespace {name}" for name in re.findall(r"^using namespace ([\w:]+)", code, re.M))
    code = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", "", code, flags=re.M)
    namespaces, braces, parentheses, head = [], 0, 0, ""

    def declare():
        alias = re.match(rf"\s*(?:template\b.*)?(?:using|namespace)\s+{NAME}\s*=", head, re.S)
        if alias or "" in namespaces or re.match(r"\s*(?:static|constexpr|const)\b", head):
            names.update(declared(head))

    for part in re.findall(r"[{}();]|[^{}();]+", code):
        if parentheses == 0 and part == "{":
            opened = re.search(r"\bnamespace\s*([\w:]*)\s*$", head) if braces == 0 else None
            if opened:
                namespaces.append(opened[1])
                head = ""
                continue
            if braces == 0:
                declare()
            braces += 1
        elif parentheses == 0 and part == "}":
            if braces == 0 and namespaces:
                namespaces.pop()
            braces = max(braces - 1, 0)
            head = "" if braces == 0 else head
        elif braces > 0:
            continue
        elif part == ";" and parentheses == 0:
            declare()
            head = ""
        else:
            parentheses += (part == "(") - (part == ")")
            head += part
    return names


class File:
    def __init__(self, path):
        self.path = path
        text = path.read_text(encoding="utf-8")
        code = without_texts(text)
        self.own = own_names(code)
        self.named = set(re.findall(NAME, code))
        # What changes the meaning of names in a file that does without; pith.hpp has the engine's in an inline namespace.
        self.opened = {name for name in self.own if " " in name} | set(re.findall(r"pith/pith\.hpp", text))
        self.lines = text.count("\n")
        self.alone = "foreach_target" in text or path in {ROOT / name for name in ENDS | WRITES}


def fit(one, other):
    return one.opened == other.opened and not one.own & other.named and not other.own & one.named


def groups_of(files):
    groups = []
    for file in files:
        for group in groups:
            if (len(group) < MOST_FILES and sum(one.lines for one in group) + file.lines <= MOST_LINES and
                    not file.alone and not group[0].alone and all(fit(file, one) for one in group)):
                group.append(file)
                break
        else:
            groups.append([file])
    return [group for group in groups if len(group) > 1]


def main():
    for number, group in enumerate(groups_of([File(pathlib.Path(name).resolve()) for name in sys.argv[1:]])):
        for file in group:
            print(number, file.path)


if __name__ == "__main__":
    main()
