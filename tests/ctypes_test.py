#!/usr/bin/env python3
"""The library from Python, by ctypes alone, with a scorer written in Python:  ctypes_test.py LIBPITH.so"""
import ctypes as c
import os
import pathlib
import sys
import unittest

LIBRARY = c.CDLL(sys.argv.pop(1))
CACHE = pathlib.Path(os.environ.get("PITH_CACHE_DIR") or
                     pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "pith")
MODEL = pathlib.Path(os.environ.get("PITH_DEFAULT_MODEL") or CACHE / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf")
FLOATS, INTS = c.POINTER(c.c_float), c.POINTER(c.c_int32)
INVALID_ARGUMENT = 1


class HeadInput(c.Structure):
    _fields_ = [("struct_size", c.c_size_t), ("num_entries", c.c_int32), ("positions", INTS),
                ("pinned", c.POINTER(c.c_uint8)), ("keys", FLOATS), ("values", FLOATS)]


class LayerInput(c.Structure):
    _fields_ = [("struct_size", c.c_size_t), ("layer", c.c_int32), ("num_layers", c.c_int32), ("num_heads", c.c_int32),
                ("group", c.c_int32), ("key_dim", c.c_int32), ("value_dim", c.c_int32), ("window", c.c_int32),
                ("next_position", c.c_int32), ("seed", c.c_uint64), ("attention_scale", c.c_float),
                ("heads", c.POINTER(c.POINTER(HeadInput)))]


class EngineOptions(c.Structure):
    _fields_ = [("struct_size", c.c_size_t), ("budget_bytes", c.c_uint64), ("num_ctx", c.c_int32)]


class SequenceOptions(c.Structure):
    _fields_ = [("struct_size", c.c_size_t), ("recipe", c.c_char_p)]


SCORE = c.CFUNCTYPE(c.c_bool, c.c_void_p, c.POINTER(LayerInput), c.POINTER(FLOATS))
seen = []


@SCORE
def by_first_channel(_, layer, scores):
    layer = layer.contents
    seen.append(layer.layer)
    for h in range(layer.num_heads):
        head = layer.heads[h].contents
        for i in range(head.num_entries):
            scores[h][i] = head.keys[i * layer.key_dim]
    return True


@SCORE
def in_vain(_, layer, scores):
    return False


for function in ("pith_last_error", "pith_version"):
    getattr(LIBRARY, function).restype = c.c_char_p
LIBRARY.pith_sequence_compress.argtypes = [c.c_void_p, c.c_char_p, c.c_double, c.POINTER(c.c_double)]


def sized(struct, **fields):
    return struct(struct_size=c.sizeof(struct), **fields)


class FromPython(unittest.TestCase):
    def check(self, status):
        self.assertEqual(status, 0, LIBRARY.pith_last_error())

    def test_version_and_errors(self):
        self.assertRegex(LIBRARY.pith_version().decode(), r"^\d+\.\d+\.\d+$")
        self.assertNotEqual(LIBRARY.pith_recipe_normalise(b"snapkw", None, c.c_size_t(0), None), 0)
        self.assertIn(b"did you mean 'snapkv'?", LIBRARY.pith_last_error())

    @unittest.skipUnless(MODEL.exists(), "the default model is not here; scripts/fetch_model.sh fetches it")
    def test_a_scorer_in_python(self):
        self.check(LIBRARY.pith_register_scorer(b"from_python", by_first_channel, None, None))
        self.check(LIBRARY.pith_register_scorer(b"in_vain", in_vain, None, None))
        self.assertEqual(LIBRARY.pith_register_scorer(b"from_python", in_vain, None, None), INVALID_ARGUMENT)
        model, engine, sequence = c.c_void_p(), c.c_void_p(), c.c_void_p()
        self.check(LIBRARY.pith_model_load(str(MODEL).encode(), None, c.byref(model)))
        options = sized(EngineOptions, budget_bytes=32 << 20, num_ctx=512)
        self.check(LIBRARY.pith_engine_new(model, c.byref(options), c.byref(engine)))
        wanted = sized(SequenceOptions, recipe=b"score=from_python alloc=ada")
        self.check(LIBRARY.pith_sequence_new(engine, c.byref(wanted), c.byref(sequence)))
        text, tokens, count = b"A long text is read, and some of it is kept. " * 8, (c.c_int32 * 256)(), c.c_size_t()
        self.check(LIBRARY.pith_tokenize(model, text, c.c_size_t(len(text)), True, False, tokens, c.c_size_t(256),
                                         c.byref(count)))
        self.check(LIBRARY.pith_sequence_prefill(sequence, tokens, count, False, None, None))
        kept = c.c_double()
        self.assertEqual(LIBRARY.pith_sequence_compress(sequence, b"score=in_vain", 0.5, c.byref(kept)), INVALID_ARGUMENT)
        self.assertEqual(LIBRARY.pith_last_error(), b"score=in_vain failed in layer 0")
        self.check(LIBRARY.pith_sequence_compress(sequence, None, 0.3, c.byref(kept)))
        self.assertAlmostEqual(kept.value, 0.3, delta=0.02)
        self.assertEqual(sorted(set(seen)), list(range(max(seen) + 1)))
        # In any order.
        for free, handle in (("model", model), ("engine", engine), ("sequence", sequence)):
            getattr(LIBRARY, f"pith_{free}_free")(handle)


if __name__ == "__main__":
    unittest.main()
