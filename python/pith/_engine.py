"""Engines, sequences and conversations."""

import os
import re

import numpy as np

from . import _pith
from ._errors import KINDS, Error, InvalidArgument
from ._generation import Generation, Stream, astream, in_thread, sampling_of
from ._model import Model
from ._view import view_of

_UNITS = {
    "": 1,
    "b": 1,
    "k": 1 << 10,
    "kib": 1 << 10,
    "kb": 1000,
    "m": 1 << 20,
    "mib": 1 << 20,
    "mb": 1000**2,
    "g": 1 << 30,
    "gib": 1 << 30,
    "gb": 1000**3,
}


def parse_bytes(size) -> int:
    """Bytes of 67108864, "64MiB", "1.5 GB"."""
    if isinstance(size, (int, np.integer)) and not isinstance(size, bool) and size >= 0:
        return int(size)
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(size).lower())
    if not found or found[2] not in _UNITS:
        raise InvalidArgument(f'"{size}" is no size; give bytes, or a text such as "64MiB"', "invalid_argument")
    return int(float(found[1]) * _UNITS[found[2]])


def _share(size):
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", size) if isinstance(size, str) else None
    if not found:
        return None
    share = float(found[1]) / 100
    if not 0 < share <= 10:
        raise InvalidArgument(f'"{size}" is no percentage above 0; give one such as "20%"', "invalid_argument")
    return share


def _as_tokens(tokens):
    array = np.ascontiguousarray(tokens, dtype=np.int32)
    if array.ndim != 1:
        raise InvalidArgument("tokens must be a list of numbers", "invalid_argument")
    return array


def _sequence_options(recipe, ctx, keep_entries, floor, ceiling, seed, compress_after, later_recipes):
    options = {
        "num_ctx": ctx,
        "keep_entries": keep_entries,
        "floor_bytes": parse_bytes(floor),
        "ceiling_bytes": parse_bytes(ceiling),
        "seed": seed,
        "compress_after": compress_after,
        "later_recipes": [str(one) for one in later_recipes],
    }
    if recipe is not None:
        options["recipe"] = str(recipe)
    return options


class Engine:
    """Sequences of one model under one budget of bytes, which is never exceeded.

    model:         a pith.Model, a path, or None: the default model.
    budget:        bytes, a text such as "64MiB", or "20%" of what f16 caches take; None: all of that.
    recipe:        of sequences that name none: what stays when the budget is full (`pith.recipes()`).
    ctx:           positions that a sequence may reach; 0: what the model was trained for.
    sequences:     at once, forks and conversations included.
    threads:       0: physical cores.
    block_tokens:  rows of a step at most; 0: chosen from the budget.
    seed:          of sampling, and of recipes that draw.
    fixed_threads: never fewer while other processes take cores.
    save_format:   of saved sequences: "exact", or "comp:ek=0.06,ev=0.06", which takes fewer bytes and comes back within
                   these bounds (docs/formats.md).

    Calls about one engine take turns, whichever threads they come from; engines do not meet. Raises pith.OutOfBudget
    where the budget holds less than one block.
    """

    def __init__(
        self,
        model=None,
        *,
        budget=None,
        recipe="full",
        ctx=0,
        sequences=1,
        threads=0,
        block_tokens=0,
        seed=0,
        fixed_threads=False,
        save_format=None,
    ):
        self.model = model if isinstance(model, Model) else Model(model)
        share = _share(budget)

        def make(budget_bytes):
            return _pith.Engine(
                self.model._own,
                budget_bytes,
                ctx,
                threads,
                sequences,
                block_tokens,
                str(recipe),
                seed,
                fixed_threads,
                save_format,
            )

        if share is None:
            self._own = make(0 if budget is None else parse_bytes(budget))
        else:
            self._own = make(max(1, int(share * make(0).stats()["budget_bytes"])))

    @property
    def stats(self) -> dict:
        """budget_bytes, used_bytes, peak_bytes, entries, entries_seen, kept_fraction, attention_seconds, ..."""
        return self._own.stats()

    @property
    def block_tokens(self) -> int:
        """Rows of a step at most."""
        return self._own.block_tokens()

    def sequence(
        self, *, recipe=None, ctx=0, keep_entries=0, floor=0, ceiling=0, seed=0, compress_after=False, later_recipes=()
    ) -> "Sequence":
        """A new sequence.

        recipe:         None: the engine's.
        keep_entries:   per kv head, in place of what its bytes would hold.
        floor, ceiling: bytes that are guaranteed, and that it may borrow; both 0: an equal share.
        compress_after: a prompt is read whole, then compressed once; else block by block.
        later_recipes:  that compress() will be called with.

        Raises pith.OutOfBudget where all places are taken or its bytes are not there.
        """
        press = self.model._press
        if press is not None:
            later_recipes, compress_after = [*later_recipes, press.recipe], True
        options = _sequence_options(recipe, ctx, keep_entries, floor, ceiling, seed, compress_after, later_recipes)
        return Sequence(self, self._own.sequence(options), press)

    def restore(
        self,
        saved,
        *,
        recipe=None,
        ctx=0,
        keep_entries=0,
        floor=0,
        ceiling=0,
        seed=0,
        compress_after=False,
        later_recipes=(),
    ) -> "Sequence":
        """A sequence that was saved: bytes of Sequence.to_bytes(), or the path of a file. It goes on with the same
        bits,
        with the same model and recipe."""
        options = _sequence_options(recipe, ctx, keep_entries, floor, ceiling, seed, compress_after, later_recipes)
        is_bytes = isinstance(saved, (bytes, bytearray, memoryview))
        own = self._own.restore(options, None if is_bytes else os.fspath(saved), bytes(saved) if is_bytes else b"")
        return Sequence(self, own)

    def conversation(self, system=None, **options) -> "Conversation":
        """pith.Conversation(self, system, **options)."""
        return Conversation(self, system, **options)

    def admit(self, num_tokens: int, *, recipe=None, ctx=0, keep_entries=0, floor=0, ceiling=0) -> dict:
        """What a sequence takes that reads so many tokens: steady_bytes, step_bytes, free_bytes, missing_bytes,
        fits."""
        return self._own.admit(_sequence_options(recipe, ctx, keep_entries, floor, ceiling, 0, False, ()), num_tokens)

    def step(self, items, *, logits="last", embeddings=False) -> list:
        """One pass over the weights for rows of several sequences.

        items: (sequence, tokens) or (sequence, tokens, pin), each sequence once, block_tokens rows at most.
        logits: "last": only each sequence's own `logits`; "all": arrays of every row.

        Returns for each item a dictionary: "error" (None, or a pith.Error that concerns this sequence alone), and where
        asked for "logits", float32 (tokens, vocab), and "embeddings", float32 (tokens, num_embd), which last.
        """
        rows, results = [], []
        for item in items:
            sequence, tokens, pin = item if len(item) == 3 else (*item, False)
            tokens = _as_tokens(tokens)
            result = {"error": None}
            if logits == "all":
                result["logits"] = np.empty((len(tokens), self.model.num_vocab), np.float32)
            if embeddings:
                result["embeddings"] = np.empty((len(tokens), self.model._info["num_embd"]), np.float32)
            rows.append((sequence._own, tokens, bool(pin), result.get("logits"), result.get("embeddings")))
            results.append(result)
        for result, (code, message) in zip(results, self._own.step(rows)):
            if code is not None:
                result["error"] = KINDS.get(code, Error)(message, code)
        return results

    def cancel(self):
        """Whatever reads on this engine ends with pith.Cancelled. From any thread; nothing where nothing runs."""
        self._own.cancel()

    def clear_cancel(self):
        """Takes cancel() back: nothing reads until then."""
        self._own.clear_cancel()

    def __repr__(self):
        return f"<pith.Engine of {self.model._info['description']}>"


class Sequence:
    """Tokens that were read, under a recipe; made by Engine.sequence()."""

    def __init__(self, engine, own, press=None):
        self.engine = engine
        self._own = own
        self._press = press  # compresses the first prompt

    def prefill(self, tokens, *, pin=False, progress=None):
        """Reads tokens (or a text), in blocks.

        pin: no recipe drops them. progress(done, total): called between blocks; False stops.
        After an error len(self) says how far it came. Ctrl-C ends it within a layer; a sequence whose recipe had
        dropped entries in that step is lost then, and says so.
        """
        if isinstance(tokens, (str, bytes)):
            tokens = self.engine.model.tokenize(tokens, begins=len(self) == 0)
        self._own.prefill(_as_tokens(tokens), pin, progress)
        press, self._press = self._press, None
        if press is not None and press.keep < 1:
            self.compress(press.keep, press.recipe)
        return self

    def decode(self, token: int):
        """Reads one token."""
        self._own.decode(token)

    @property
    def logits(self):
        """Of the last token read: float32 (vocab,), read-only, without a copy (pith.View). It ends with the next call
        that reads on this engine, and with close(). None where the engine's last step was one of other sequences."""
        array = self._own.logits()
        if array is None:
            return None
        own, epoch = self._own, self._own.epoch()

        def is_over():
            if own.is_closed():
                return "its sequence was closed"
            return "its engine has read on" if own.epoch() != epoch else None

        return view_of(array, is_over)

    def logits_of(self, tokens, *, pin=False):
        """Reads tokens and returns the logits after each of them: float32 (tokens, vocab), which last."""
        return self._rows_of(tokens, pin, "logits")

    def embeddings_of(self, tokens, *, pin=False):
        """Reads tokens and returns what the model makes logits of: float32 (tokens, num_embd), which last."""
        return self._rows_of(tokens, pin, "embeddings")

    def _rows_of(self, tokens, pin, what):
        if isinstance(tokens, (str, bytes)):
            tokens = self.engine.model.tokenize(tokens, begins=len(self) == 0)
        tokens, block, parts = _as_tokens(tokens), self.engine.block_tokens, []
        for at in range(0, len(tokens), block):
            wants = {"logits": "all"} if what == "logits" else {"embeddings": True}
            result = self.engine.step([(self, tokens[at : at + block], pin)], **wants)[0]
            if result["error"] is not None:
                raise result["error"]
            parts.append(result[what])
        width = self.engine.model._info["num_vocab" if what == "logits" else "num_embd"]
        return np.concatenate(parts) if parts else np.empty((0, width), np.float32)

    def generate(self, max_tokens=128, *, stops=(), num_logprobs=0, **sampling):
        """Yields pieces of text, whole characters, as they are made; what was sampled has been read.

        sampling: temperature, top_k, top_p, min_p, seed, grammar, json_schema, logit_bias={token: number}, ... (names
        of llama.cpp); what is not given is what the model recommends. The generator's value is a pith.Generation.
        """
        stops = [stops] if isinstance(stops, str) else list(stops)
        generator = _pith.Generator(
            self.engine.model._own, sampling_of(sampling), max(0, max_tokens), num_logprobs, stops
        )
        prompt_tokens = len(self)

        def run():
            token = 0
            while token >= 0:
                token, text = generator.next(self._own, True)
                if text:
                    yield text
            got = generator.get()
            got["prompt_tokens"] = prompt_tokens
            return Generation(**got)

        return run()

    def complete(self, max_tokens=128, **options) -> Generation:
        """generate() to its end."""
        pieces = self.generate(max_tokens, **options)
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                return end.value

    async def acomplete(self, max_tokens=128, **options) -> Generation:
        """The same without blocking the event loop; cancelling the task stops it."""
        return await in_thread(lambda: self.complete(max_tokens, **options), self.cancel)

    async def aprefill(self, tokens, *, pin=False):
        """prefill() without blocking the event loop; cancelling the task stops it."""
        await in_thread(lambda: self.prefill(tokens, pin=pin), self.cancel)

    def fork(self) -> "Sequence":
        """A copy that shares its entries until one of the two changes them. It takes a place of the engine."""
        return Sequence(self.engine, self._own.fork())

    def compress(self, keep: float, recipe=None, *, begin=0, end=None) -> float:
        """Compresses what was read to a share of its entries, or a part of its positions; the share that stayed."""
        if end is None and begin == 0:
            return self._own.compress(None if recipe is None else str(recipe), keep, 0, -1)
        return self._own.compress(
            None if recipe is None else str(recipe), keep, begin, len(self) if end is None else end
        )

    def set_budget(self, floor, ceiling):
        """Bytes that are guaranteed, and that it may borrow."""
        self._own.set_budget(parse_bytes(floor), parse_bytes(ceiling))

    def rewind(self, num_tokens: int):
        """Back to the first num_tokens tokens, as if it had never read more; 0 empties any sequence. Raises
        pith.Unsupported where its recipe has dropped what it would have to have back; nothing has changed then."""
        self._own.rewind(num_tokens)

    def rewind_target(self, num_tokens: int) -> int:
        """Where to go back to before a text is read whose first num_tokens tokens were read already."""
        return self._own.rewind_target(num_tokens)

    @property
    def stats(self) -> dict:
        """used_bytes, floor_bytes, ceiling_bytes, entries, entries_seen, kept_fraction, keep_entries, num_tokens."""
        return self._own.stats()

    @property
    def recipe(self) -> str:
        """The recipe with all that it was given."""
        return self._own.recipe()

    def cancel(self):
        """What runs is given up within a layer: pith.Cancelled. From any thread; nothing where nothing runs."""
        self._own.cancel()

    def save(self, path):
        """Into a file. An older one stays where that fails (pith.IoError)."""
        self._own.save(os.fspath(path))

    def to_bytes(self) -> bytes:
        """What save() writes, for Engine.restore()."""
        return self._own.save_to_bytes()

    def close(self):
        """Frees it now. Otherwise it is freed with this object."""
        self._own.close()

    def __len__(self):
        return self._own.num_tokens()

    def __bool__(self):
        return True

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def __repr__(self):
        return "<pith.Sequence, closed>" if self._own.is_closed() else f"<pith.Sequence of {len(self)} tokens>"


class Conversation:
    """Messages, the model's template and one sequence.

    engine: a pith.Engine, or what pith.Engine() takes as its model (None: the default model).
    system: the system message, which is never dropped.
    plain_control_tokens: control tokens in messages and texts are text.
    sequence options: recipe, ctx, keep_entries, floor, ceiling, seed, compress_after (Engine.sequence()).
    """

    def __init__(
        self,
        engine=None,
        system=None,
        *,
        plain_control_tokens=False,
        recipe=None,
        ctx=0,
        keep_entries=0,
        floor=0,
        ceiling=0,
        seed=0,
        compress_after=False,
        later_recipes=(),
    ):
        self.engine = engine if isinstance(engine, Engine) else Engine(engine)
        options = _sequence_options(recipe, ctx, keep_entries, floor, ceiling, seed, compress_after, later_recipes)
        self._own = _pith.conversation(self.engine._own, system, plain_control_tokens, options)

    def _generate(self, message, text, max_tokens, stops, num_logprobs, on_text, sampling):
        stops = [stops] if isinstance(stops, str) else list(stops)
        got = self._own.generate(message, text, max(0, max_tokens), num_logprobs, stops, sampling_of(sampling), on_text)
        return Generation(**got)

    def say(self, message: str, max_tokens=512, *, stops=(), num_logprobs=0, on_text=None, **sampling) -> Generation:
        """A message of the user, and the model's answer.

        on_text(piece): called with whole characters as they are made; False stops.
        Where the context or the budget ends, the text is there with its reason (`stop`). Raises pith.InvalidArgument
        for a message that is empty or does not fit: the conversation is as it was then.
        """
        return self._generate(message, None, max_tokens, stops, num_logprobs, on_text, sampling)

    def complete(self, text: str, max_tokens=512, *, stops=(), num_logprobs=0, on_text=None, **sampling) -> Generation:
        """The same for a text without a template, which the model goes on with."""
        return self._generate(None, text, max_tokens, stops, num_logprobs, on_text, sampling)

    def go_on(self, max_tokens=512, *, stops=(), num_logprobs=0, on_text=None, **sampling) -> Generation:
        """Goes on after an answer that was cut, or with what append() queued."""
        return self._generate(None, None, max_tokens, stops, num_logprobs, on_text, sampling)

    def stream(self, message: str, max_tokens=512, **options) -> Stream:
        """say() as an iterator of pieces; its `generation` is there at the end. Leaving the loop stops it."""
        return Stream(lambda take: self.say(message, max_tokens, on_text=take, **options), self.cancel)

    def stream_text(self, text: str, max_tokens=512, **options) -> Stream:
        """complete() as an iterator of pieces."""
        return Stream(lambda take: self.complete(text, max_tokens, on_text=take, **options), self.cancel)

    async def asay(self, message: str, max_tokens=512, **options) -> Generation:
        """say() without blocking the event loop; cancelling the task stops it."""
        return await in_thread(lambda: self.say(message, max_tokens, **options), self.cancel)

    async def acomplete(self, text: str, max_tokens=512, **options) -> Generation:
        """complete() without blocking the event loop."""
        return await in_thread(lambda: self.complete(text, max_tokens, **options), self.cancel)

    def astream(self, message: str, max_tokens=512, **options):
        """Pieces of an answer, for `async for`."""
        return astream(lambda: self.stream(message, max_tokens, **options))

    def append(self, text: str):
        """Queues a text as it is."""
        self._own.queue(text, False)

    def append_message(self, message: str):
        """Queues a message of the user."""
        self._own.queue(message, True)

    def read(self):
        """Reads what is queued, as the next generation does first."""
        self._own.read()

    def reset(self):
        """Forgets what was said; the system message stays."""
        self._own.reset()

    def fork(self) -> "Conversation":
        """A copy that goes on by itself. It takes a place of the engine."""
        fork = object.__new__(Conversation)
        fork.engine = self.engine
        fork._own = self._own.fork()
        return fork

    def compress(self, keep: float, recipe=None) -> float:
        """Compresses what was read to a share of its entries; the share that stayed."""
        return self._own.compress(None if recipe is None else str(recipe), keep)

    @property
    def stats(self) -> dict:
        """As Sequence.stats."""
        return self._own.stats()

    @property
    def note(self) -> str:
        """Why the system message is not pinned; "" where it is."""
        return self._own.note()

    def cancel(self):
        """What runs ends after the token, or block of a prompt, at hand: pith.Cancelled. From any thread."""
        self._own.cancel()

    def save(self, path):
        """With its messages, into a file."""
        self._own.save(os.fspath(path))

    def to_bytes(self) -> bytes:
        """What save() writes."""
        return self._own.save_to_bytes()

    def restore(self, saved):
        """Takes bytes of to_bytes(), or the path of a file, in place of what was said. After an error it is empty."""
        if isinstance(saved, (bytes, bytearray, memoryview)):
            self._own.restore_from_bytes(bytes(saved))
        else:
            self._own.restore(os.fspath(saved))

    def close(self):
        """Frees it now."""
        self._own.close()

    def __len__(self):
        return self._own.num_tokens()

    def __bool__(self):
        return True

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def __repr__(self):
        return "<pith.Conversation, closed>" if self._own.is_closed() else f"<pith.Conversation of {len(self)} tokens>"
