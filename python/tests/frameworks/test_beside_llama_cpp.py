"""llama-cpp-python itself: its own tests on the drop-in, and pith under a Llama of its own."""

import os
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

# Those of its tests that do not pass here, with the reason.
VOCABULARY = "the stand-in's vocabulary is made up, and has no BOS: llama-cpp-python fails with it, too"
NOT_HERE = {
    "test_real_model": "the classes around llama.h are not there",
    "test_recurrent_model_prompt_cache_reset": VOCABULARY,
    "test_hybrid_model_prompt_cache_reset": VOCABULARY,
    "test_loaded_exact_cached_prompt_reuse_matches_fresh[llama_cpp_recurrent_model_path-True-False]": VOCABULARY,
    "test_loaded_exact_cached_prompt_reuse_matches_fresh[llama_cpp_hybrid_model_path-False-True]": VOCABULARY,
}


@pytest.fixture(scope="module")
def sdist():
    if not os.environ.get("PITH_LLAMA_CPP"):
        pytest.skip("PITH_LLAMA_CPP names no llama-cpp-python (run.py --llama)")
    return os.environ["PITH_LLAMA_CPP"]


def test_its_own_tests_pass(model, sdist):
    script = pathlib.Path(__file__).resolve().parents[1] / "upstream.py"
    command = [sys.executable, script, "--sdist", sdist, "--random", os.environ["PITH_RANDOM_MODEL"], "-rfE"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    failed = set(re.findall(r"^(?:FAILED|ERROR) \S*?::(\S+)", done.stdout, re.MULTILINE))
    assert failed == set(NOT_HERE), done.stdout
    assert f"{26 - len(NOT_HERE)} passed" in done.stdout, done.stdout


def test_attach(model, sdist):
    code = """
        import gc, os, sys
        sys.path.insert(0, os.environ["PITH_LLAMA_CPP"])
        import llama_cpp, pith
        from llama_cpp import LlamaGrammar

        def llama(**settings):
            return llama_cpp.Llama(str(pith.default_model()), **{"n_ctx": 1024, "verbose": False, **settings})

        def refused(one, kind, word):
            before = one(prompt, max_tokens=3, temperature=0)["choices"][0]["text"]
            try:
                pith.attach(one)
            except kind as error:
                assert word in str(error), error
            else:
                raise AssertionError(word)
            assert one(prompt, max_tokens=3, temperature=0)["choices"][0]["text"] == before  # it is as it was

        prompt, story = "The capital of France is", "The keeper of the lighthouse is called Ines. " * 80
        question = [{"role": "user", "content": "Name a colour."}]
        one = llama(seed=3)
        held = {"client": one}
        text = one(prompt, max_tokens=12, temperature=0)["choices"][0]["text"]
        usage = one.create_chat_completion(question, max_tokens=1)["usage"]
        asked = one.input_ids[:usage["prompt_tokens"]].tolist()
        one.reset()
        one.eval(one.tokenize(story.encode())[:200])
        read = one.input_ids[:one.n_tokens].tolist()

        assert pith.attach(one, kv_budget="14MiB", recipe="full") is one and isinstance(one, llama_cpp.Llama)
        assert one.n_tokens == 200 and one.input_ids[:200].tolist() == read
        assert one.kv_stats["budget_bytes"] == 14 << 20
        assert held["client"](prompt, max_tokens=12, temperature=0)["choices"][0]["text"] == text
        assert one.create_chat_completion(question, max_tokens=1)["usage"] == usage
        assert one.input_ids[:len(asked)].tolist() == asked
        grammar = LlamaGrammar.from_string('root ::= "yes" | "no"', verbose=False)
        assert one("Is it? ", grammar=grammar)["choices"][0]["text"] in ("yes", "no")
        state = one.save_state()
        assert one.load_state(state) is None
        try:
            one._ctx
            raise AssertionError("the context is still there")
        except AttributeError as error:
            assert "pith.attach()" in str(error)

        small = pith.attach(llama(), kv_budget="8MiB", recipe="keydiff")
        small(story, max_tokens=4)
        assert small.kv_stats["peak_bytes"] <= 8 << 20
        assert small.kv_stats["entries"] < small.kv_stats["entries_seen"]

        for wrong in (one, 3):
            try:
                pith.attach(wrong)
                raise AssertionError("attached")
            except pith.InvalidArgument:
                pass
        extended = dict(rope_scaling_type=2, rope_freq_scale=0.25, yarn_orig_ctx=64, n_ctx=256)
        one = llama(**extended, kv_overrides={"tokenizer.ggml.add_bos_token": True})
        text = one(prompt, max_tokens=12, temperature=0)["choices"][0]["text"]
        assert pith.attach(one)(prompt, max_tokens=12, temperature=0)["choices"][0]["text"] == text
        refused(llama(type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32), pith.Unsupported, "type_k")
        llama_cpp.__version__ = "0.3.1"
        refused(llama(), pith.Unsupported, "0.3.1")
        del one, held, small
        gc.collect()
        print("done")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stdout + done.stderr


def test_the_version_is_that_of_the_library():
    import pith.llama_cpp

    script = (pathlib.Path(__file__).resolve().parents[3] / "scripts" / "build_llama.sh").read_text()
    assert f"kVersion={pith.llama_cpp.__version__}\n" in script
