#!/usr/bin/env python3
"""check_tidy.py names each kind of violation and passes a clean tree."""
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).with_name("check_tidy.py")
sys.path.insert(0, str(SCRIPT.parent))
import check_tidy  # noqa: E402


def run(files, sources_of_library=None):
    """sources_of_library: C++ text by file name, compiled into libpith_base.a and looked at with --objects."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        command = [sys.executable, SCRIPT, "--root", root]
        if sources_of_library is not None:
            members = []
            for name, text in sources_of_library.items():
                (root / name).write_text(text)
                members.append(root / f"{name}.o")
                subprocess.run([compiler(), "-std=c++20", "-O1", "-c", root / name, "-o", members[-1]], check=True)
            subprocess.run(["ar", "rcs", root / "libpith_base.a", *members], check=True)
            command += ["--objects", root]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr


def compiler():
    return next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)


def function_of(num_lines, indent=""):
    return f"{indent}void Long() {{\n" + f"{indent}  Work();\n" * (num_lines - 2) + f"{indent}}}\n"


def excepted():
    """What the lists of exceptions name must be there, and be true."""
    files = {}
    for names, text in ((check_tidy.ENDS, "void E() { std::abort(); }\n"),
                        (check_tidy.WRITES, "void W() { std::fputs(text, stderr); }\n"),
                        (check_tidy.THROWS, "void T() { throw 1; }\n")):
        for name in names:
            files[name] = files.get(name, "") + text
    return files


class CheckTidyTest(unittest.TestCase):
    CLEAN = excepted() | {
        "src/lab/report.cc": "void Print() { std::cout << 1; exit(1); }\n",
        "src/base/x.cc": "namespace pith {\n" + function_of(70) + "}  // namespace pith\n",
        "src/base/y.h": '// abort() and std::cerr are words here.\nconst char* kText = "exit(1) throw";\n',
        "src/base/page.cc": 'const char* kHelp = R"(\n' + "x" * 200 + '\n)";\n',
    }

    def check_error(self, files, expected, **more):
        code, errors = run(self.CLEAN | files, **more)
        self.assertEqual(code, 1)
        self.assertEqual(len(errors.splitlines()), 1, errors)
        self.assertIn(expected, errors)

    def test_clean(self):
        self.assertEqual(run(self.CLEAN), (0, ""))

    def test_long_line(self):
        self.check_error({"tests/a_test.cc": "// " + "x" * 118 + "\n"}, "tests/a_test.cc:1: 121 characters")

    def test_long_file(self):
        self.check_error({"src/base/z.h": "// x\n" * 601}, "601 lines")

    def test_long_function(self):
        self.check_error({"src/base/z.cc": "namespace pith {\n" + function_of(71) + "}\n"},
                         "src/base/z.cc:2: Long has 71 lines")

    def test_long_method(self):
        text = "class A {\n public:\n" + function_of(71, "  ") + "};\n"
        self.check_error({"src/base/z.h": text}, "src/base/z.h:3: Long has 71 lines")

    def test_signature_of_several_lines(self):
        text = "int Wide(int a,\n         int b) {\n" + "  Work();\n" * 68 + "}\n"
        self.check_error({"src/base/z.cc": text}, "Wide has 71 lines")

    def test_ends_the_process(self):
        for call in ("abort()", "std::abort()", "exit(1)", "_exit(1)", "std::terminate()"):
            self.check_error({"src/engine/z.cc": f"void F() {{ {call}; }}\n"}, "src/engine/z.cc:1: ends the process")

    def test_uses_the_terminal(self):
        for call in ("std::cerr << 1", "std::printf(text)", "fprintf(stderr, text)", "fmt::print(text)"):
            self.check_error({"src/host/z.cc": f"void F() {{ {call}; }}\n"}, "src/host/z.cc:1: uses the terminal")

    def test_throws(self):
        self.check_error({"include/pith/z.h": "void F() { throw 1; }\n"}, "include/pith/z.h:1: throws")

    def test_exception_that_is_not_needed(self):
        self.check_error({"src/kernels/target.cc": "\n"}, "src/kernels/target.cc: no longer uses the terminal")

    @unittest.skipUnless(compiler() and shutil.which("ar") and shutil.which("nm"), "no compiler")
    def test_symbols(self):
        clean = {"a.cc": "int F() { return 1; }\n"}
        self.assertEqual(run(self.CLEAN, sources_of_library=clean), (0, ""))
        for text, expected in (("#include <cstdlib>\nvoid G() { std::exit(1); }\n", "b.cc ends the process: exit"),
                               ("#include <iostream>\nvoid G() { std::cerr << 1; }\n", "b.cc uses the terminal")):
            self.check_error({}, expected, sources_of_library=clean | {"b.cc": text})


if __name__ == "__main__":
    unittest.main()
