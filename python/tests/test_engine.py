"""Models, engines, sequences, conversations."""

import asyncio
import pickle
import time

import numpy as np
import pytest

import pith


def test_errors_are_one_sentence_with_a_code(model):
    with pytest.raises(pith.NotFound) as caught:
        pith.Model("/nowhere.gguf")
    assert caught.value.code == "not_found" and "/nowhere.gguf" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(pith.Error, match="did you mean 'snapkv'"):
        pith.normalise_recipe("snapkw")
    with pytest.raises(pith.OutOfBudget):
        pith.Engine(model, budget=1000)
    with pytest.raises(pith.InvalidArgument, match="no size"):
        pith.Engine(model, budget="much")
    with pytest.raises(TypeError, match="tempreture"):
        pith.Engine(model, ctx=64).sequence().prefill("a").complete(tempreture=1)
    assert issubclass(pith.OutOfBudget, MemoryError) and issubclass(pith.Error, RuntimeError)


@pytest.mark.of_the_default_model
def test_a_model_says_what_it_is(model):
    info = model.info
    assert info["architecture"] == "llama" and info["num_embd"] == 576 and model.num_vocab == 49152
    assert info["eos_token"] >= 0 and info["chat_template"]
    assert model.metadata["general.architecture"] == "llama"
    tokens = model.tokenize("Hello, wörld ☃")
    assert model.detokenize(tokens).decode() == "Hello, wörld ☃"
    assert model.tokenize("", begins=False) == []
    assert "Hi" in model.render([{"role": "user", "content": "Hi"}])
    with pytest.raises(pith.InvalidArgument, match="role"):
        model.render([{"content": "Hi"}])
    assert model.piece(10**7) == b""


def test_options_stand_in_place_of_the_file(model):
    overrides = {"general.name": 'a "b", c', "llama.context_length": 512, "general.file_type": 1}
    other = pith.Model(rope={"rope-scaling": "yarn", "rope-scale": 4}, overrides=overrides)
    assert other.info["trained_ctx"] == 2048 != model.info["trained_ctx"]
    assert other.metadata["general.name"] == 'a "b", c'
    for wrong in (
        dict(rope={"rope-scale": 0}),
        dict(rope={"scale": 4}),
        dict(overrides={"llama.context_length": "x"}),
        dict(overrides={"llama.context_length": None}),
    ):
        with pytest.raises(pith.InvalidArgument):
            pith.Model(**wrong)


def test_sizes():
    assert (
        pith.parse_bytes("64MiB") == 64 << 20 and pith.parse_bytes("1.5 GB") == 1500000000 and pith.parse_bytes(7) == 7
    )
    for wrong in ("", "-1", "MiB", "3 parsecs", -1, True):
        with pytest.raises(pith.InvalidArgument):
            pith.parse_bytes(wrong)


def test_a_share_of_the_cache_is_a_budget(model):
    full = pith.Engine(model, ctx=2048).stats["budget_bytes"]
    part = pith.Engine(model, ctx=2048, budget="60%", recipe="keydiff").stats["budget_bytes"]
    assert part == pytest.approx(0.6 * full, rel=0.01)


def test_the_budget_is_never_exceeded(model, story):
    engine = pith.Engine(model, ctx=2048, budget="16MiB", recipe="keydiff")
    sequence = engine.sequence().prefill(story * 5)
    stats = engine.stats
    assert stats["peak_bytes"] <= 16 << 20 and sequence.stats["entries"] < sequence.stats["entries_seen"]


def test_logits_are_views_that_end(engine, story):
    sequence = engine.sequence()
    assert sequence.logits is None
    sequence.prefill(story)
    logits = sequence.logits
    assert logits.dtype == np.float32 and logits.shape == (49152,) and not logits.flags.writeable
    assert isinstance(logits, np.ndarray) and not logits.flags.owndata
    kept, part, best = logits.copy(), logits[:10], int(logits.argmax())
    assert isinstance(logits + 1, np.ndarray) and type(logits + 1) is np.ndarray
    sequence.decode(best)
    for use in (
        lambda: logits[0],
        lambda: part + 1,
        lambda: logits.argmax(),
        lambda: np.exp(logits),
        lambda: list(part),
        lambda: len(logits),
        lambda: np.argmax(logits),
        lambda: pickle.dumps(logits),
        lambda: logits.shape,
    ):
        with pytest.raises(pith.InvalidArgument, match="read on"):
            use()
    assert "over" in repr(logits)
    assert np.isfinite(kept).all()
    after = sequence.logits
    sequence.close()
    with pytest.raises(pith.InvalidArgument, match="closed"):
        after.sum()
    with pytest.raises(pith.InvalidArgument, match="closed"):
        sequence.decode(1)


def test_views_outlive_a_freed_engine_as_memory(model, story):
    logits = pith.Engine(model, ctx=512).sequence().prefill(story[:20]).logits
    assert np.isfinite(logits).all()  # the engine is held by the view


@pytest.mark.of_the_default_model
def test_rows_of_logits_and_embeddings(engine, story):
    one, other = engine.sequence(), engine.sequence()
    rows = one.logits_of(story[:24])
    assert rows.shape == (24, 49152)
    other.prefill(story[:24])
    np.testing.assert_allclose(rows[-1], other.logits, atol=0.35)
    embeddings = other.embeddings_of(story[24:30])
    assert embeddings.shape == (6, 576) and np.isfinite(embeddings).all() and embeddings.std() > 0.1
    # What the model makes logits of: the same tokens give the same rows, whatever was read in between.
    third = engine.sequence()
    third.prefill(story[:24])
    np.testing.assert_allclose(third.embeddings_of(story[24:30]), embeddings, atol=0.05)


@pytest.mark.of_the_default_model
def test_a_step_of_several_sequences(engine, story):
    one, other = engine.sequence(recipe="snapkv"), engine.sequence(recipe="knorm")
    results = engine.step([(one, story[:9]), (other, story[:5], True)], logits="all", embeddings=True)
    assert [r["logits"].shape for r in results] == [(9, 49152), (5, 49152)]
    assert [r["embeddings"].shape for r in results] == [(9, 576), (5, 576)]
    np.testing.assert_allclose(results[0]["logits"][4], results[1]["logits"][4], atol=0.2)
    other.close()
    with pytest.raises(pith.InvalidArgument, match="closed"):
        engine.step([(other, [1])])
    failed = engine.step([(one, [10**9])])[0]["error"]
    assert isinstance(failed, pith.Error)
    assert len(one) == 9


def test_sequences_fork_rewind_compress_and_save(engine, story, tmp_path):
    sequence = engine.sequence(later_recipes=["snapkv"]).prefill(story[:100])
    fork = sequence.fork()
    assert fork.complete(8, temperature=0).text == sequence.fork().complete(8, temperature=0).text
    assert len(fork) > 100 and len(sequence) == 100
    fork.close()
    saved = sequence.to_bytes()
    sequence.save(tmp_path / "session")
    sequence.rewind(50)
    assert len(sequence) == 50
    back = engine.restore(saved, later_recipes=["snapkv"])
    assert len(back) == 100
    assert 0.3 < back.compress(0.4, "snapkv") < 0.5
    back.close()
    back = engine.restore(tmp_path / "session", later_recipes=["snapkv"])
    assert len(back) == 100 and "streamingllm" in back.recipe or "full" in back.recipe
    with pytest.raises(pith.Error):
        engine.restore(b"no session")


def test_generation_streams_and_returns_its_result(engine):
    sequence = engine.sequence().prefill("Once upon a time")
    pieces = sequence.generate(12, temperature=0, num_logprobs=3)
    text = ""
    while True:
        try:
            text += next(pieces)
        except StopIteration as end:
            result = end.value
            break
    assert result.text == text and str(result) == text and result.stop == "length" and len(result.tokens) == 12
    assert len(result.logprobs) == 12 and len(result.top[0]) == 2 and result.logprobs[0] < 0
    assert result.top[0][0][1] <= 0


def test_grammars_schemas_and_stops(engine):
    sequence = engine.sequence().prefill("The answer is")
    assert sequence.fork().complete(8, grammar='root ::= " yes" | " no"').text in (" yes", " no")
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    import json

    found = sequence.fork().complete(40, json_schema=schema, temperature=0)
    assert isinstance(json.loads(found.text)["n"], int)
    stopped = sequence.complete(30, temperature=0, stops=" ")
    assert stopped.stop == "stop" and " " not in stopped.text


def test_conversations(engine):
    talk = engine.conversation(system="You are brief.")
    answer = talk.say("Name a colour.", 16, temperature=0)
    assert answer.text and answer.prompt_tokens > 5 and answer.first_token_seconds > 0
    saved = talk.to_bytes()
    stream = talk.stream("Another one?", 16, temperature=0)
    assert "".join(stream) == stream.generation.text
    talk.restore(saved)
    seen = []
    again = talk.say("Another one?", 16, temperature=0, on_text=seen.append)
    assert "".join(seen) == again.text == stream.generation.text
    with pytest.raises(pith.InvalidArgument, match="no token"):
        talk.complete("")
    talk.reset()
    for piece in talk.stream("Tell me a long story.", 400, ignore_eos=True):
        break  # leaving the loop stops it
    begin = time.monotonic()
    assert talk.say("Hi", 4).text is not None
    assert time.monotonic() - begin < 10 and len(talk) < 400, "the story went on"


def test_callbacks_that_raise_end_the_call(engine):
    talk = engine.conversation()

    def fail(text):
        raise KeyError("mine")

    with pytest.raises(pith.Cancelled, match="mine") as caught:
        talk.say("Hello", 8, on_text=fail)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(pith.Cancelled, match="must not call"):
        talk.say("Hello", 8, on_text=lambda text: engine.stats)
    assert engine.stats["budget_bytes"] > 0
    sequence = engine.sequence()
    with pytest.raises(pith.Cancelled):
        sequence.prefill([1] * 600, progress=lambda done, total: False)


def test_async_calls(engine):
    async def main():
        talk = engine.conversation()
        answer = await talk.asay("Name a colour.", 8, temperature=0)
        pieces = [piece async for piece in talk.astream("And a fruit?", 8, temperature=0)]
        assert answer.text and "".join(pieces)
        task = asyncio.ensure_future(talk.asay("Tell a very long story.", 900, ignore_eos=True))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        sequence = engine.sequence()
        await sequence.aprefill("Once upon")
        return await sequence.acomplete(4)

    assert asyncio.run(main()).tokens


def test_lists():
    names = {one["name"] for one in pith.recipes()}
    assert {"snapkv", "pith", "full"} <= names
    assert ("score", "keydiff") in {(one["kind"], one["name"]) for one in pith.stages()}
    assert pith.__version__.count(".") == 2
