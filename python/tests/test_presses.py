"""kvpress's names, the pipeline, eval and bench."""

import json
import os

import pytest

import pith
from pith import presses

CONTEXT = (
    "The lighthouse keeper is called Ines. Her boat is red and lies in the north of the bay. "
    + "Each evening she climbs the stairs, lights the lamp and writes down the weather. " * 12
)


def test_every_press_is_a_recipe():
    rows = presses.table()
    assert len(rows) >= 13
    for row in rows:
        assert pith.normalise_recipe(row["recipe"])
    assert {"SnapKVPress", "ExpectedAttentionPress", "AdaKVPress", "KVzipPress"} <= {row["press"] for row in rows}
    assert presses.SnapKV is presses.SnapKVPress
    assert presses.AdaKVPress(presses.SnapKVPress(0.4)).keep == pytest.approx(0.6)


def test_a_press_compresses_the_first_prompt(model, story):
    engine = pith.Engine(model, ctx=1024, sequences=2)
    with presses.SnapKV(compression_ratio=0.5)(model) as press:
        sequence = engine.sequence()
        sequence.prefill(story)
        assert sequence.stats["kept_fraction"] == pytest.approx(0.5, abs=0.02)
        sequence.prefill(story[:9])
        assert len(sequence) == len(story) + 9 and press.recipe.startswith("snapkv")
        with pytest.raises(pith.InvalidArgument, match="another press"):
            with presses.Knorm(0.1)(model):
                pass
    assert engine.sequence().prefill(story).stats["kept_fraction"] == 1
    with pytest.raises(pith.InvalidArgument, match="compression_ratio"):
        with presses.Knorm(1.5)(model):
            pass


@pytest.mark.of_the_default_model
def test_the_pipeline_answers(model):
    pipe = pith.pipeline(model)
    full = pipe(CONTEXT, question="What is the keeper called?", max_new_tokens=16)
    assert "Ines" in full["answer"] and full["kept"] == 1
    some = pipe(
        CONTEXT,
        questions=["What is the keeper called?", "Which colour has the boat?"],
        max_new_tokens=8,
        press=presses.KVzip(compression_ratio=0.4),
    )
    assert len(some["answers"]) == 2 and some["kept"] == pytest.approx(0.6, abs=0.03)
    assert some["kv_bytes"] < full["kv_bytes"]
    with pytest.warns(UserWarning, match="was cut"):
        assert pipe(CONTEXT, question="?", max_context_length=50, max_new_tokens=2)["context_tokens"] == 50


def test_eval_judges_scorers_of_ones_own(model):
    @pith.scorer("newest_py", needs="keys")
    def newest(head):
        return head.positions.astype("float32")

    tasks = [task for task in pith.eval.own_tasks() if task["length"] == 512][:2]
    rows = pith.eval.evaluate(model, ["snapkv", "score=newest_py", presses.Knorm()], tasks, keep=[0.5])
    assert len(rows) == 2 * 4
    means = {row["recipe"]: row for row in pith.eval.summary(rows)}
    assert means["full"]["kl"] == 0 and means["full"]["kept"] == 1
    assert all(row["kept"] == pytest.approx(0.5, abs=0.03) for name, row in means.items() if name != "full")
    assert 0 < means["snapkv"]["kl"] < 20


def test_eval_judges_all_presses_at_once(model):
    tasks = [next(task for task in pith.eval.own_tasks() if not task["question_text"])]
    recipes = [row["recipe"] for row in presses.table()]
    rows = pith.eval.evaluate(model, recipes, tasks, keep=[0.5])
    assert [row["recipe"] for row in rows] == ["full", *recipes]
    assert all(row["recipe"] == "full" or row["kv_bytes"] < rows[0]["kv_bytes"] for row in rows)


def test_it_agrees_with_the_program(model):
    if not os.environ.get("PITH_BINARY"):
        pytest.skip("PITH_BINARY is not set")
    tasks = [task for task in pith.eval.own_tasks() if task["length"] == 512][:2]
    own = pith.eval.summary(pith.eval.evaluate(model, ["knorm", "keydiff"], tasks, keep=[0.5]))
    theirs = pith.bench.run_program(
        "eval", "--recipes", "knorm,keydiff", "--keep", "0.5", "--lengths", "512", "--limit", "2"
    )
    said = {}
    for row in theirs["items"]:
        said.setdefault(row["policy"], []).append(row["nll"])
    for row in own:
        nlls = said[row["recipe"]]
        assert row["nll"] == pytest.approx(sum(nlls) / len(nlls), abs=0.02), row["recipe"]


def test_loaders(tmp_path):
    path = tmp_path / "ruler.jsonl"
    path.write_text(json.dumps({"index": 3, "input": "Some text.\nQuestion: what? Answer:", "outputs": ["it"]}) + "\n")
    assert pith.eval.load_ruler(path)[0]["target"] == " it"
    row = {"context": "c", "question": "q?", "answer_prefix": "A:", "answer": ["x", "y"], "task": "niah"}
    assert pith.eval.load_ruler([row])[0] == {
        "id": "niah-0",
        "task": "niah",
        "context_text": "c",
        "question_text": "q?A:",
        "target": " x, y",
    }
    row = {"context": "c", "input": "q?", "answers": ["a"], "dataset": "qasper", "_id": "7"}
    assert pith.eval.load_longbench([row])[0]["id"] == "qasper-7"
    needles = pith.eval.make_needles(CONTEXT * 3, words=100, count=3)
    assert all(task["target"].strip() in task["context_text"] for task in needles)
    with pytest.raises(ValueError, match="haystack"):
        pith.eval.make_needles("too short")


def test_bench_gives_rows(model):
    rows = pith.bench.bench(model, ["full", "keydiff"], [128], keep=0.3, predict=4, repeat=1)
    assert [row["recipe"] for row in rows] == ["full", "keydiff"]
    assert all(row["decode_tokens_per_second"] > 0 for row in rows)
    assert rows[1]["kept"] == pytest.approx(0.3, abs=0.03) and rows[1]["kv_bytes"] < rows[0]["kv_bytes"]
