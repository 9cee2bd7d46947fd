"""The drop-in for llama-cpp-python."""

import json
import pickle

import numpy as np
import pytest

import pith
from pith.llama_cpp import Llama, LlamaGrammar, LlamaRAMCache, LogitsProcessorList, StoppingCriteriaList

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Bonn"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def test_rope_and_metadata_are_llama_cpp_pythons():
    def text(**settings):
        one = Llama(str(pith.default_model()), n_ctx=256, verbose=False, **settings)
        return one("The capital of France is", max_tokens=12, temperature=0)["choices"][0]["text"]

    plain = text()
    assert text(rope_freq_base=0.0, yarn_attn_factor=1.0, rope_scaling_type=-1, kv_overrides=None) == plain
    assert text(rope_freq_base=20.0) == text(kv_overrides={"llama.rope.freq_base": 20.0}) != plain
    one = Llama(
        str(pith.default_model()),
        n_ctx=0,
        verbose=False,
        rope_scaling_type=2,
        rope_freq_scale=0.25,
        yarn_orig_ctx=128,
    )
    assert one.n_ctx() == 512
    with pytest.raises(pith.InvalidArgument):
        text(kv_overrides={"llama.rope.freq_base": 20})


@pytest.fixture(scope="module")
def llm(model):
    return Llama(str(pith.default_model()), n_ctx=512, verbose=False, seed=7)


@pytest.fixture(scope="module")
def all_logits(model):
    return Llama(str(pith.default_model()), n_ctx=256, logits_all=True, embedding=True, verbose=False)


@pytest.mark.of_the_default_model
def test_a_completion_has_its_shape(llm):
    answer = llm("The capital of France is", max_tokens=8, temperature=0, stop=["\n"])
    assert set(answer) == {"id", "object", "created", "model", "choices", "usage"}
    assert answer["id"].startswith("cmpl-") and answer["object"] == "text_completion"
    assert answer["model"] == str(pith.default_model())
    choice = answer["choices"][0]
    assert set(choice) == {"text", "index", "logprobs", "finish_reason"} and choice["logprobs"] is None
    assert "Paris" in choice["text"] and choice["finish_reason"] in ("stop", "length")
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_streams_and_wholes_say_the_same(llm):
    whole = llm("Count: one, two,", max_tokens=24, temperature=0, stop=["seven"])["choices"][0]
    chunks = list(llm("Count: one, two,", max_tokens=24, temperature=0, stop=["seven"], stream=True))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]
    assert all("usage" not in chunk for chunk in chunks) and "seven" not in whole["text"]


def test_characters_stay_whole(llm):
    prompt = "Repeat: 🦊🦊🦊🦊🦊🦊 é é é é"
    for chunk in llm(prompt, max_tokens=24, temperature=0, stream=True):
        chunk["choices"][0]["text"].encode("utf-8")


def test_seeds_and_determinism(llm):
    def ask(**kwargs):
        llm.reset()  # what is read in other blocks may round differently
        return llm("I like", max_tokens=12, temperature=1.0, **kwargs)["choices"][0]["text"]

    assert ask(seed=3) == ask(seed=3)
    assert len({ask(seed=i) for i in range(5)}) > 1


def test_grammars_bias_and_processors(llm):
    grammar = LlamaGrammar.from_string('root ::= "red" | "blue"')
    assert llm("My favourite colour is", max_tokens=5, grammar=grammar)["choices"][0]["text"] in ("red", "blue")
    token = llm.tokenize(b" blue", add_bos=False)[0]
    assert llm("Sky:", max_tokens=1, logit_bias={token: 1000})["choices"][0]["text"] == " blue"

    def only(ids, scores):
        scores[:] = -np.inf
        scores[token] = 0
        return scores

    assert llm("Sky:", max_tokens=2, logits_processor=LogitsProcessorList([only]))["choices"][0]["text"] == " blue blue"
    criteria = StoppingCriteriaList([lambda ids, logits: len(ids) >= 8])
    assert llm("a b c d", max_tokens=30, stopping_criteria=criteria)["usage"]["completion_tokens"] < 8
    with pytest.raises(ValueError, match="exceed context window"):
        llm("word " * 600)


def test_log_probabilities(llm, all_logits):
    found = llm("The capital of France is", max_tokens=3, temperature=0, logprobs=2)["choices"][0]
    logprobs = found["logprobs"]
    assert len(logprobs["tokens"]) == 3 and "".join(logprobs["tokens"]) == found["text"]
    assert all(value <= 0 for value in logprobs["token_logprobs"])
    assert max(logprobs["top_logprobs"][0], key=logprobs["top_logprobs"][0].get) == logprobs["tokens"][0]
    assert logprobs["text_offset"][0] == len("The capital of France is")
    echoed = all_logits("The capital of France is", max_tokens=2, temperature=0, logprobs=1, echo=True)["choices"][0]
    assert echoed["text"].startswith("The capital of France is")
    assert echoed["logprobs"]["token_logprobs"][0] is None
    assert (
        len(echoed["logprobs"]["tokens"])
        == len(echoed["logprobs"]["text_offset"])
        == len(all_logits.tokenize(b"The capital of France is")) + 2
    )
    assert len(all_logits.eval_logits) == all_logits.n_tokens
    with pytest.raises(ValueError, match="logits_all"):
        llm("a", max_tokens=1, logprobs=1, echo=True)


def test_chat(llm):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."}]
    answer = llm.create_chat_completion(messages, max_tokens=12, temperature=0, logprobs=True, top_logprobs=2)
    assert answer["id"].startswith("chatcmpl-") and answer["object"] == "chat.completion"
    choice = answer["choices"][0]
    assert choice["message"]["role"] == "assistant" and choice["message"]["content"]
    assert choice["logprobs"]["content"][0]["top_logprobs"][0]["logprob"] <= 0
    chunks = list(llm.create_chat_completion(messages, max_tokens=12, temperature=0, stream=True))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant"} and chunks[-1]["choices"][0]["delta"] == {}
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == choice["message"]["content"]
    with pytest.raises(ValueError, match="Invalid chat handler"):
        Llama(str(pith.default_model()), n_ctx=64, chat_format="nonsense", verbose=False).create_chat_completion(
            messages
        )


def test_formats_of_the_answer(llm):
    messages = [{"role": "user", "content": "Give me a city as JSON."}]
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    }
    for response_format in (
        {"type": "json_object", "schema": schema},
        {"type": "json_schema", "json_schema": {"name": "c", "schema": schema}},
    ):
        answer = llm.create_chat_completion(messages, response_format=response_format, temperature=0)
        assert set(json.loads(answer["choices"][0]["message"]["content"])) == {"city"}


def test_tools(llm):
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    choice = {"type": "function", "function": {"name": "weather"}}
    answer = llm.create_chat_completion(messages, tools=[TOOL], tool_choice=choice, temperature=0)["choices"][0]
    call = answer["message"]["tool_calls"][0]
    assert (
        answer["finish_reason"] == "tool_calls" and call["type"] == "function" and call["function"]["name"] == "weather"
    )
    assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Bonn")
    required = llm.create_chat_completion(messages, tools=[TOOL], tool_choice="required", temperature=0)["choices"][0]
    assert json.loads(required["message"]["tool_calls"][0]["function"]["arguments"])["city"] in ("Paris", "Bonn")
    chunks = list(llm.create_chat_completion(messages, tools=[TOOL], tool_choice=choice, temperature=0, stream=True))
    said = "".join(
        call["function"]["arguments"]
        for chunk in chunks
        for call in chunk["choices"][0]["delta"].get("tool_calls") or []
    )
    assert json.loads(said)["city"] in ("Paris", "Bonn") and chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    history = messages + [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "tool_call_id": call["id"]},
    ]
    assert llm.create_chat_completion(history, tools=[TOOL], tool_choice="none", max_tokens=8)["choices"][0]["message"]
    with pytest.raises(ValueError, match="not found in tools"):
        llm.create_chat_completion(messages, tools=[TOOL], tool_choice={"type": "function", "function": {"name": "x"}})


def test_states_and_caches(llm):
    tokens = llm.tokenize(b"The quick brown fox jumps over")
    llm.reset()
    llm.eval(tokens)
    state = llm.save_state()
    first = [token for _, token in zip(range(6), llm.generate(tokens, temp=0))]
    llm.reset()
    llm.eval(llm.tokenize(b"Something else"))
    llm.load_state(state)
    assert llm.n_tokens == len(tokens) and llm.input_ids[: len(tokens)].tolist() == tokens
    assert [token for _, token in zip(range(6), llm.generate(tokens, temp=0))] == first
    again = pickle.loads(pickle.dumps(state))
    llm.load_state(again)
    assert llm.n_tokens == len(tokens)
    cache = LlamaRAMCache()
    llm.set_cache(cache)
    text = llm("A cache holds", max_tokens=6, temperature=0)["choices"][0]["text"]
    assert cache.cache_size > 0 and llm("A cache holds", max_tokens=6, temperature=0)["choices"][0]["text"] == text
    llm.set_cache(None)
    broken = state.__class__(**{**state.__dict__, "llama_state": b"nothing", "llama_state_size": 7})
    with pytest.raises(pith.Error):
        llm.load_state(broken)
    assert llm("It goes on", max_tokens=2)["usage"]["completion_tokens"] == 2


def test_prefixes_are_not_read_again(llm):
    llm.reset()
    prompt = llm.tokenize(b"word " * 200)
    llm.create_completion(prompt, max_tokens=1, temperature=0)
    calls = []
    original = llm._sequence.prefill

    def counting(tokens, **kwargs):
        calls.append(len(tokens))
        return original(tokens, **kwargs)

    llm._sequence.prefill = counting
    try:
        llm.create_completion(prompt + llm.tokenize(b" and more", add_bos=False), max_tokens=1, temperature=0)
    finally:
        del llm._sequence.prefill
    assert sum(calls) < 40


@pytest.mark.of_the_default_model
def test_tokens(llm):
    text = "Hello, wörld <|im_end|>".encode()
    assert llm.detokenize(llm.tokenize(text, special=False)).decode() == text.decode()
    special = llm.tokenize(text, special=True)
    assert len(special) < len(llm.tokenize(text, special=False))
    assert b"im_end" not in llm.detokenize(special) and b"im_end" in llm.detokenize(special, special=True)
    assert llm.tokenizer().decode(llm.tokenizer().encode("abc")) == "abc"
    assert llm.n_vocab() == 49152 and llm.n_ctx() == 512 and llm.n_embd() == 576 and llm.token_eos() >= 0


@pytest.mark.of_the_default_model
def test_embeddings(all_logits):
    answer = all_logits.create_embedding(["Hello world", "Another text"])
    assert answer["object"] == "list" and len(answer["data"]) == 2 and answer["usage"]["prompt_tokens"] > 3
    assert len(answer["data"][0]["embedding"][0]) == 576  # a row for each token, as the model pools nothing
    pooled = Llama(str(pith.default_model()), n_ctx=128, embedding=True, pooling_type=1, verbose=False)
    one = np.array(pooled.embed("The cat sat on the mat", normalize=True))
    near = np.array(pooled.embed("A cat sits on a mat", normalize=True))
    far = np.array(pooled.embed("Quarterly revenue rose by nine percent", normalize=True))
    assert one.shape == (576,) and abs(np.linalg.norm(one) - 1) < 1e-5 and one @ near > one @ far
    with pytest.raises(RuntimeError, match="embedding=True"):
        Llama(str(pith.default_model()), n_ctx=64, verbose=False).embed("a")


def test_a_budget_holds(model):
    llm = Llama(str(pith.default_model()), n_ctx=2048, kv_budget="16MiB", recipe="keydiff", verbose=False)
    text = "The keeper of the old lighthouse wrote down the weather every evening. " * 60
    answer = llm(text + "\nIn short:", max_tokens=24)
    assert answer["usage"]["prompt_tokens"] > 700 and answer["choices"][0]["text"]
    assert llm.kv_stats["peak_bytes"] <= 16 << 20 and llm.kv_stats["entries"] < llm.kv_stats["entries_seen"]
    llm.close()


def test_llamas_travel(llm):
    other = pickle.loads(pickle.dumps(llm))
    assert other("The capital of France is", max_tokens=2, temperature=0)["choices"][0]["text"].strip()
    other.close()
    with pytest.raises(ValueError, match="does not exist"):
        Llama("/nowhere.gguf")


def test_a_vocabulary_alone(llm):
    words = Llama(str(pith.default_model()), vocab_only=True, verbose=False)
    assert words.tokenize(b"Hello World") == llm.tokenize(b"Hello World")
    assert words.detokenize(words.tokenize(b"Hello World")) == b"Hello World"
    assert words.model_params.vocab_only
    with pytest.raises(pith.Unsupported, match="vocabulary alone"):
        words("Hello", max_tokens=1)
    words.close()


def test_uses_of_a_model(model):
    vocabulary = pith.Model(use="vocabulary")
    assert vocabulary.tokenize("a lighthouse") == model.tokenize("a lighthouse")
    assert vocabulary.render([{"role": "user", "content": "Hi"}]) == model.render([{"role": "user", "content": "Hi"}])
    with pytest.raises(pith.InvalidArgument, match="vocabulary alone"):
        pith.Engine(vocabulary)
    with pytest.raises(pith.InvalidArgument, match="not loaded for embeddings"):
        pith.Embedder(vocabulary)
    with pytest.raises(pith.InvalidArgument, match="use is one of"):
        pith.Model(use="speech")
    with pytest.raises(pith.Unsupported, match="beside it"):
        pith.Embedder(pith.default_model())
