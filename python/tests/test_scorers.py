"""Scorers in Python."""

import threading

import numpy as np
import pytest

import pith


@pith.scorer("cosine_py")
def cosine_py(head):
    """Keys that differ most from the mean direction stay."""
    return -pith.cosine(head.keys, head.keys.mean(0))


kept_views = []


def compress(engine, story, recipe, keep=0.3):
    sequence = engine.sequence(later_recipes=[recipe], compress_after=True).prefill(story)
    sequence.compress(keep, recipe)
    return sequence


def test_the_same_formula_keeps_the_same_entries(engine, story):
    mine = compress(engine, story, "score=cosine_py")
    theirs = compress(engine, story, "keydiff")
    assert mine.stats["entries"] == theirs.stats["entries"]
    tail = [story[5], story[9]]
    a, b = mine.logits_of(tail), theirs.logits_of(tail)
    # KeyDiff takes the mean of directions, this one the direction of the mean: nearly the same.
    assert np.corrcoef(a[-1], b[-1])[0, 1] > 0.98


def test_it_is_a_stage_like_any_other(engine, story):
    found = [one for one in pith.stages() if one["name"] == "cosine_py"]
    assert found[0]["summary"].startswith("Keys that differ")
    sequence = compress(engine, story, "score=cosine_py alloc=ada:alpha=0.1 mod=criticalkv")
    assert 0.25 < sequence.stats["kept_fraction"] < 0.35
    with pytest.raises(pith.InvalidArgument):
        pith.register_scorer("cosine_py", cosine_py)
    with pytest.raises(pith.InvalidArgument):
        pith.register_scorer("keydiff", cosine_py)


def test_it_evicts_while_text_is_read(model, story):
    engine = pith.Engine(model, ctx=2048, budget="16MiB", recipe="score=cosine_py")
    sequence = engine.sequence().prefill(story * 5)
    sequence.complete(16)
    assert engine.stats["peak_bytes"] <= 16 << 20 and sequence.stats["kept_fraction"] < 0.9


def test_what_it_sees(engine, story):
    seen = []

    @pith.scorer(
        "looks",
        needs=("keys", "values", "window_probs", "value_norms", "query_moments"),
        window=8,
        aggregates=True,
        params={"weight": (0.5, 0, 1), "rank": 3},
    )
    def looks(head):
        n = len(head)
        assert head.keys.shape == (n, head.key_dim) and head.values.shape == (n, head.value_dim)
        assert head.window_probs.shape == (head.group, head.window, n)
        assert head.query_means.shape == (head.group, head.key_dim)
        assert (np.diff(head.positions) > 0).all() and not head.keys.flags.writeable
        with pytest.raises(ValueError):
            np.asarray(head.keys)[0, 0] = 1
        attention = head.attention(pool=3)
        assert attention.shape == (n,) and np.isinf(attention[-1])
        seen.append((head.layer, head.head, head.params["weight"], head.params["rank"], head.window))
        return attention * head.params["weight"]

    compress(engine, story, "score=looks:weight=0.25,window=16 agg=max")
    layers, heads = engine.model.info["num_layers"], 3
    assert {(layer, head) for layer, head, *_ in seen} == {(i, h) for i in range(layers) for h in range(heads)}
    assert {one[2:] for one in seen} == {(0.25, 3.0, 16)}


@pytest.mark.parametrize(
    "name, result, why",
    [
        ("gives_nan", lambda n: np.full(n, np.nan), "NaN"),
        ("gives_shape", lambda n: np.zeros(n + 1), r"shape must be \(\d+,\)"),
        ("gives_text", lambda n: "text", "could not convert"),
        ("gives_minus_inf", lambda n: np.full(n, -np.inf), "-inf"),
        ("gives_none", lambda n: None, ""),
    ],
)
def test_results_are_checked(engine, story, name, result, why):
    pith.register_scorer(name, lambda head: result(len(head)))
    with pytest.raises(pith.InvalidArgument, match=f"score={name} failed in layer") as caught:
        compress(engine, story, f"score={name}")
    assert caught.value.__cause__ is not None
    import re

    assert re.search(why, str(caught.value)), str(caught.value)
    assert engine.sequence().prefill(story[:30]).logits is not None


def test_exceptions_and_interrupts_of_a_scorer(engine, story):
    raised = []

    @pith.scorer("raises")
    def raises(head):
        raise raised[-1]

    raised.append(ZeroDivisionError("in my formula"))
    with pytest.raises(pith.InvalidArgument, match="in my formula") as caught:
        compress(engine, story, "score=raises")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    raised.append(ValueError("first line\nsecond line"))
    with pytest.raises(pith.InvalidArgument, match="first line$"):
        compress(engine, story, "score=raises")
    raised.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        compress(engine, story, "score=raises")


def test_views_end_with_the_call(engine, story):
    keep = []

    @pith.scorer("keeps")
    def keeps(head):
        keep.append(head.keys)
        return np.zeros(len(head))

    with pytest.raises(pith.InvalidArgument, match="kept an array"):
        compress(engine, story, "score=keeps")
    with pytest.raises(pith.InvalidArgument, match="call has ended"):
        keep[0].sum()

    copies = []

    @pith.scorer("copies")
    def copying(head):
        copies.append(head.keys.copy())
        return -np.arange(len(head))

    compress(engine, story, "score=copies")
    assert np.isfinite(copies[0]).all()


def test_a_scorer_must_not_call_the_engine(engine, story):
    @pith.scorer("calls")
    def calls(head):
        return engine.stats["entries"]

    with pytest.raises(pith.InvalidArgument, match="must not call"):
        compress(engine, story, "score=calls")


def test_whole_layers_and_columns(engine, story):
    observed = []

    def observe(seen, columns):
        observed.append(seen.layer)
        columns["total"] += seen.sum

    def score(heads):
        assert [head.head for head in heads] == list(range(heads[0].num_heads))
        return [head.columns["total"].copy() for head in heads]

    pith.register_scorer(
        "totals", score, needs=("keys", "every_query"), columns={"total": 0.0}, observe=observe, per="layer"
    )
    sequence = compress(engine, story, "score=totals")
    assert observed and 0.25 < sequence.stats["kept_fraction"] < 0.35
    with pytest.raises(pith.InvalidArgument, match="needs some of"):
        pith.register_scorer("wrong", score, needs="everything")
    with pytest.raises(pith.InvalidArgument):
        pith.register_scorer("Wrong Name", score)


def test_engines_on_threads_with_one_scorer(model, story):
    failures = []

    def work():
        try:
            engine = pith.Engine(model, ctx=1024, threads=1)
            for _ in range(2):
                compress(engine, story[:150], "score=cosine_py").close()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_aggregators_modifiers_and_allocators(engine, story):
    @pith.aggregator("largest_py")
    def largest(probs, params):
        assert probs.ndim == 3 and not probs.flags.writeable
        return probs.max(axis=(0, 1))

    @pith.modifier("damp_py", params={"by": (0.5, 0, 1)})
    def damp(head, scores):
        assert scores.shape == (len(head),) and head.keys.shape[0] == len(head)
        return scores * head.params["by"]

    seen = []

    @pith.allocator("first_py")
    def first(division):
        """The first head of each layer keeps more."""
        seen.append(division.keep)
        heads = len(division.layers[0]["scores"])
        assert len(division.layers) == 1 and 0 <= division.total - heads * division.keep < heads
        return [[division.keep * 3 // 2] + [(division.total - division.keep * 3 // 2) // (heads - 1)] * (heads - 1)]

    assert {"largest_py", "damp_py", "first_py"} <= {one["name"] for one in pith.stages()}
    plain = compress(engine, story, "snapkv:pool=1 agg=max")
    mine = compress(engine, story, "snapkv:pool=1 agg=largest_py mod=damp_py:by=0.25")
    # A factor changes no order, and the largest is agg=max.
    assert mine.stats["entries"] == plain.stats["entries"]
    np.testing.assert_array_equal(plain.logits_of([5]), mine.logits_of([5]))
    plain.close()
    mine.close()
    assert 0.25 < compress(engine, story, "knorm alloc=first_py").stats["kept_fraction"] < 0.35 and seen

    pith.register_allocator("wrong_py", lambda division: [[-1] * len(division.layers[0]["scores"])])
    with pytest.raises(pith.InvalidArgument, match="alloc=wrong_py failed in layer 0.*cannot keep -1"):
        compress(engine, story, "knorm alloc=wrong_py")
    pith.register_modifier("nan_py", lambda head, scores: scores * np.nan)
    with pytest.raises(pith.InvalidArgument, match="mod=nan_py failed in layer 0.*NaN"):
        compress(engine, story, "knorm mod=nan_py")
