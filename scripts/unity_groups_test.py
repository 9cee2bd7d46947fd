#!/usr/bin/env python3
"""unity_groups.py keeps apart what would mean something else together, and puts the rest together."""
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import unity_groups  # noqa: E402


def inside(text):
    return f"namespace pith {{\nnamespace {{\n{text}\n}}  // namespace\n}}  // namespace pith\n"


class UnityGroupsTest(unittest.TestCase):
    def groups(self, *texts):
        with tempfile.TemporaryDirectory() as folder:
            files = []
            for number, text in enumerate(texts):
                path = pathlib.Path(folder) / f"{number}.cc"
                path.write_text(text)
                files.append(unity_groups.File(path))
            return [[int(file.path.stem) for file in group] for group in unity_groups.groups_of(files)]

    def test_names_of_a_files_own(self):
        for text, names in (
                ("constexpr int kA = 3, kB[] = {1, 2}, kC = kA;", {"kA", "kB", "kC"}),
                ("const char* const kNames[] = {\"x(\", \"y\"};\nint Next(int from = 3) { int local = 1; return local; }", {"kNames", "Next"}),
                ("template <typename T>\nstd::vector<T> Of(const T& one) { return {one}; }\nclass Box final : public Base { int side_; };", {"Of", "Box"}),
                ("using Row = std::array<float, 4>;\nenum class Kind { kOne };\n// int Comment();\nstd::string text_ = R\"(int Raw();)\";",
                 {"Row", "Kind", "text_"}),
                ("TEST(Suite, Name) { int x = 0; }\n#define ODD(a) \\\n  (a % 2)", {"ODD"})):
            self.assertEqual(unity_groups.own_names(unity_groups.without_texts(inside(text))), names, text)
        self.assertEqual(unity_groups.own_names("static int Count() { return 1; }\nint Public() { return 2; }\n"), {"Count"})

    def test_strangers_go_together(self):
        self.assertEqual(self.groups(inside("int A() { return 1; }"), inside("int B() { return 2; }")), [[0, 1]])

    def test_a_name_that_both_have(self):
        self.assertEqual(self.groups(inside("int A() { return 1; }"), inside("int A() { return 2; }"), inside("int B = 0;")), [[0, 2]])

    def test_a_name_that_the_other_means_otherwise(self):
        self.assertEqual(self.groups(inside("int A() { return 1; }"), "int b = pith::A();\n"), [])

    def test_using_namespace(self):
        self.assertEqual(self.groups("using namespace std;\n", "int b;\n", "using namespace std;\nint c;\n"), [[0, 2]])

    def test_no_group_is_long(self):
        self.assertEqual([len(group) for group in self.groups(*[f"int x{i};\n" for i in range(20)])], [8, 8, 4])
        self.assertEqual(self.groups("int x;\n" * 1000, "int y;\n" * 1000), [])

    def test_what_is_compiled_several_times_stays_alone(self):
        self.assertEqual(self.groups('#include "hwy/foreach_target.h"\n', "int b;\n"), [])


if __name__ == "__main__":
    unittest.main()
