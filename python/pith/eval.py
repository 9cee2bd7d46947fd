"""What a recipe costs in answers: rows of every (item, recipe, keep), as `pith eval` has them.

    rows = pith.eval.evaluate(recipes=["snapkv", "score=mine alloc=ada"], tasks=pith.eval.own_tasks(), keep=[0.5, 0.2])
    pith.eval.summary(rows)

Recipes with scorers of this process work here. Tasks are dictionaries with context_text, question_text and target;
load_*()
make them of local files.
"""

import json
import math
import random
from pathlib import Path

import numpy as np

from ._engine import Engine
from ._model import Model


def load_tasks(path) -> list:
    """Tasks of pith's own form: JSON lines with id, task, length, context_text, question_text, target."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]


def own_tasks() -> list:
    """The small set that `pith eval` carries."""
    folder = Path(__file__).parent
    for path in (folder / "data" / "tasks.jsonl", folder.parent.parent / "eval" / "tasks.jsonl"):
        if path.exists():
            return load_tasks(path)
    raise FileNotFoundError("pith was installed without its tasks")


def _rows_of(source):
    """Rows of a JSON-lines file, or of anything that gives dictionaries (`datasets` rows, a list)."""
    if isinstance(source, (str, Path)):
        return load_tasks(source)
    return [dict(row) for row in source]


def _task(kind, number, context, question, target):
    return {
        "id": f"{kind}-{number}",
        "task": kind,
        "context_text": context,
        "question_text": question,
        "target": target,
    }


def load_ruler(source) -> list:
    """RULER: NVIDIA's lines (input, outputs), whose last paragraph is the question, or kvpress's rows (context,
    question,
    answer_prefix, answer)."""
    tasks = []
    for i, row in enumerate(_rows_of(source)):
        kind = str(row.get("task", "ruler"))
        if "context" in row:
            answers = row["answer"] if isinstance(row["answer"], str) else ", ".join(map(str, row["answer"]))
            question = row["question"] + row.get("answer_prefix", "")
            tasks.append(_task(kind, row.get("index", i), row["context"], question, " " + answers.strip()))
            continue
        text = row["input"]
        at = max(text.rfind("\n"), text.rfind("Question:"), 0)
        answers = row["outputs"] if isinstance(row["outputs"], list) else [row["outputs"]]
        tasks.append(
            _task(
                kind,
                row.get("index", i),
                text[:at],
                text[at:] + row.get("answer_prefix", ""),
                " " + ", ".join(map(str, answers)),
            )
        )
    return tasks


def load_longbench(source) -> list:
    """LongBench: lines with context, input, answers, dataset."""
    tasks = []
    for i, row in enumerate(_rows_of(source)):
        target = row["answers"][0] if row.get("answers") else row.get("answer", "")
        tasks.append(
            _task(
                str(row.get("dataset", "longbench")),
                row.get("_id", i),
                row["context"],
                f"\n\nQuestion: {row.get('input') or 'Summarise the text.'}\nAnswer:",
                " " + str(target),
            )
        )
    return tasks


def make_needles(haystack: str, *, words=400, count=8, seed=0) -> list:
    """Needle tasks: a sentence with a number, at `count` depths of so many words of any text."""
    draw, all_words, tasks = random.Random(seed), haystack.split(), []
    if len(all_words) < words:
        raise ValueError(f"the haystack has {len(all_words)} words, and {words} are wanted")
    for i in range(count):
        begin = draw.randrange(len(all_words) - words + 1)
        text = all_words[begin : begin + words]
        number, city = str(draw.randrange(1000, 10000)), draw.choice(
            ["Paris", "Oslo", "Lima", "Cairo", "Delhi", "Quito"]
        )
        at = words * i // max(1, count - 1) if count > 1 else words // 2
        text.insert(at, f"The secret number of {city} is {number}.")
        tasks.append(_task("needle", i, " ".join(text), f"\nThe secret number of {city} is", " " + number))
    return tasks


def _log_softmax(logits):
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def _judge(sequence, tail, targets):
    """Log probabilities after the target's tokens' predecessors, (targets, vocab)."""
    logits = sequence.logits_of(tail[:-1])
    return _log_softmax(logits[len(tail) - 1 - targets :])


def split(model, task, mode="agnostic"):
    """Tokens of a task: what is compressed, what is read after it, and the target."""
    context, question, target = (
        model.tokenize(task[name], begins=False) for name in ("context_text", "question_text", "target")
    )
    if mode == "aware":
        context, question = context + question[:-1], question[-1:]
    if not question:  # something must be read after it, for the target's first token
        context, question = context[:-1], context[-1:]
    return context, question, target


def _judge_item(engine, task, recipes, keeps, mode):
    context, question, target = split(engine.model, task, mode)
    tail, count = question + target, len(target)
    picked = np.array(target)

    def row(recipe, keep, kept, seconds_of, found, full):
        own = found[np.arange(count), picked]
        return {
            "id": task.get("id"),
            "task": task.get("task"),
            "recipe": recipe,
            "keep": keep,
            "kept": kept,
            "nll": float(-own.mean()),
            "kl": float((np.exp(full) * (full - found)).sum(axis=-1).mean()),
            "accuracy": float((found.argmax(axis=-1) == picked).all()),
            "context_tokens": len(context),
            "kv_bytes": seconds_of,
        }

    rows = []
    with engine.sequence(recipe="full", compress_after=True, later_recipes=recipes) as read:
        read._press = None
        read.prefill(context)
        with read.fork() as one:
            full = _judge(one, tail, count)
        rows.append(row("full", 1.0, 1.0, read.stats["used_bytes"], full, full))
        for recipe in recipes:
            for keep in keeps:
                with read.fork() as one:
                    kept = one.compress(keep, recipe)
                    held = one.stats["used_bytes"]
                    rows.append(row(recipe, keep, kept, held, _judge(one, tail, count), full))
    return rows


def evaluate(
    model=None,
    recipes=("snapkv", "keydiff"),
    tasks=None,
    keep=(0.5, 0.2),
    *,
    mode="agnostic",
    limit=None,
    threads=0,
    progress=None,
) -> list:
    """Reads each task's context once; for every recipe and share to keep, compresses a copy and judges the answer.

    recipes: texts, or presses (their own compression_ratio is left aside). mode: "agnostic" compresses before the
    question is known, "aware" after it. progress(done, total) is called after each task.

    Returns a list of dictionaries: id, task, recipe, keep, kept (share of entries), nll (nats per target token), kl
    (from the
    full cache), accuracy (0 or 1), context_tokens, kv_bytes. frame(rows) is a pandas frame of them.
    """
    if mode not in ("agnostic", "aware"):
        raise ValueError("mode is 'agnostic' or 'aware'")
    model = model if isinstance(model, Model) else Model(model)
    tasks = own_tasks() if tasks is None else list(tasks)
    tasks = tasks[:limit] if limit is not None else tasks
    names = [getattr(recipe, "recipe", recipe) for recipe in recipes]
    longest = 0
    for task in tasks:
        text = task["context_text"] + task["question_text"] + task["target"]
        longest = max(longest, len(model.tokenize(text, begins=False)) + 8)
    # As much again for what all recipes together hold beside keys and values, and its copy.
    engine = Engine(model, ctx=longest, sequences=2, budget="200%", threads=threads)
    rows = []
    for i, task in enumerate(tasks):
        rows += _judge_item(engine, task, names, list(keep), mode)
        if progress is not None:
            progress(i + 1, len(tasks))
    return rows


def summary(rows) -> list:
    """Means over items of every (recipe, keep)."""
    groups = {}
    for row in rows:
        groups.setdefault((row["recipe"], row["keep"]), []).append(row)
    out = []
    for (recipe, keep), own in groups.items():
        means = {
            name: math.fsum(row[name] for row in own) / len(own)
            for name in ("kept", "nll", "kl", "accuracy", "kv_bytes")
        }
        out.append(dict({"recipe": recipe, "keep": keep, "items": len(own)}, **means))
    return out


def frame(rows):
    """Rows as a pandas DataFrame; needs pandas."""
    import pandas

    return pandas.DataFrame(rows)


def plot(rows, value="nll", axes=None):
    """A curve of each recipe over the share kept; needs matplotlib. Returns its axes."""
    import matplotlib.pyplot as plt

    axes = axes or plt.figure().gca()
    means, curves = summary(rows), {}
    for row in means:
        curves.setdefault(row["recipe"], []).append((row["kept"], row[value]))
    for recipe, points in curves.items():
        points.sort()
        if recipe == "full":
            axes.axhline(points[0][1], color="black", linewidth=0.8, label="full")
        else:
            axes.plot(*zip(*points), marker="o", label=recipe)
    axes.set_xlabel("share of entries kept")
    axes.set_ylabel(value)
    axes.legend()
    return axes
