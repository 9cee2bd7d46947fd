"""Questions about a long context that is read and compressed once."""

import warnings

from ._engine import Engine
from ._model import Model


class Pipeline:
    """pipe(context, question="...", press=press)["answer"]; made by pith.pipeline()."""

    def __init__(self, model=None, *, threads=0):
        self.model = model if isinstance(model, Model) else Model(model)
        self._threads = threads

    def __call__(
        self,
        context: str,
        question=None,
        questions=None,
        answer_prefix="",
        press=None,
        max_new_tokens=50,
        max_context_length=None,
    ) -> dict:
        """Reads the context, compresses it by the press (None: not), and answers greedily.

        question: one; questions: several, each after the context alone.
        Returns {"answer": text} or {"answers": texts}, with "kept" (share of entries), "kv_bytes" (of the compressed
        cache)
        and "context_tokens".
        """
        if question is not None and questions is not None:
            raise ValueError("give question or questions")
        asked = [question or ""] if questions is None else list(questions)
        model = self.model
        if model._info["has_chat_template"]:
            mark = "#" * (len(context) + 10)
            context, suffix = model.render([{"role": "user", "content": context + mark}]).split(mark)
        else:
            suffix = "\n"
        tokens = model.tokenize(context)
        tails = [model.tokenize(one + suffix + answer_prefix, begins=False) for one in asked]
        room = max(map(len, tails), default=0) + max_new_tokens + 1
        longest = max_context_length or model._info["trained_ctx"] - room
        if len(tokens) > longest:
            warnings.warn(f"the context was cut from {len(tokens)} to {longest} tokens", stacklevel=2)
            tokens = tokens[:longest]
        engine = Engine(model, ctx=len(tokens) + room, sequences=2, threads=self._threads)
        later = [press.recipe] if press is not None else []
        # The press compresses here, whichever one is at work on the model.
        with engine.sequence(recipe="full", compress_after=True, later_recipes=later) as read:
            read._press = None
            read.prefill(tokens)
            kept = read.compress(press.keep, press.recipe) if press is not None and press.keep < 1 else 1.0
            held = read.stats["used_bytes"]
            answers = []
            for tail in tails:
                with read.fork() as one:
                    one.prefill(tail)
                    answers.append(one.complete(max_new_tokens, temperature=0).text)
        result = {"answer": answers[0]} if questions is None else {"answers": answers}
        return dict(result, kept=kept, kv_bytes=held, context_tokens=len(tokens))


def pipeline(model=None, *, threads=0) -> Pipeline:
    """A pipeline over a model (a pith.Model, a path, or None: the default model)."""
    return Pipeline(model, threads=threads)
