#!/usr/bin/env python3
"""check_abi.py sees what would break a program that was compiled before."""
import unittest

import check_abi

HEADER = """
enum {
  PITH_OK = 0,  // fine
};
#define PITH_ABI_VERSION 1
// What it takes; more
typedef struct pith_options {
  size_t struct_size;
  const char* const* names;  // [n]
} pith_options;
PITH_API int pith_open(const pith_options* options,
                       void (*visit)(void* user));
PITH_API void pith_close(void);
"""
LISTED = ["int pith_open(const pith_options* options, void (*visit)(void* user))", "void pith_close(void)"]
LAYOUT = """
_Static_assert(sizeof(pith_options) == 16, "");
_Static_assert(offsetof(pith_options, struct_size) == 0, "");
_Static_assert(offsetof(pith_options, names) == 8, "");
_Static_assert(PITH_OK == 0, "");
_Static_assert(PITH_ABI_VERSION == 1, "");
"""
EXPORTED = {"pith_open", "pith_close"}


class Differences(unittest.TestCase):
    def find(self, header=HEADER, listed=tuple(LISTED), layout=LAYOUT, exported=frozenset(EXPORTED)):
        return check_abi.differences(header, listed, layout, exported)

    def test_none_where_nothing_changed(self):
        self.assertEqual(self.find(), [])

    def test_a_function_that_is_gone_or_has_other_types(self):
        self.assertEqual(len(self.find(header=HEADER.replace("PITH_API void pith_close(void);", ""))), 2)
        changed = self.find(header=HEADER.replace("void pith_close(void)", "int pith_close(void)"))
        self.assertEqual(len(changed), 2)
        self.assertIn("int pith_close(void)", changed[1])

    def test_a_symbol_that_is_missing_or_foreign(self):
        self.assertEqual(self.find(exported={"pith_open"}), ["the library does not export pith_close"])
        self.assertEqual(len(self.find(exported=EXPORTED | {"llama_decode"})), 1)

    def test_a_field_or_constant_that_nothing_asserts(self):
        more = HEADER.replace("size_t struct_size;", "size_t struct_size;\n  int added;")
        self.assertEqual(self.find(header=more), ["layout.c does not assert: offset pith_options added"])
        self.assertEqual(len(self.find(header=HEADER.replace("PITH_OK = 0", "PITH_FINE = 0"))), 2)


if __name__ == "__main__":
    unittest.main()
