"""What a generation gives, and how it streams."""

import asyncio
import queue
import threading
from dataclasses import dataclass, field
from typing import List, Tuple

_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "top_n_sigma",
    "xtc_probability",
    "xtc_threshold",
    "dynatemp_range",
    "dynatemp_exponent",
    "repeat_last_n",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_last_n",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
    "seed",
    "ignore_eos",
    "order",
    "grammar",
    "json_schema",
    "logit_bias",
)


@dataclass
class Generation:
    """A generated text.

    text:     valid UTF-8. str(generation) is the same.
    tokens:   without the one that ended it.
    stop:     "end" (the model ended it), "length", "context", "stop" (a stop string), "budget", "callback".
    logprobs: natural logarithms, one per token; top: per token the likeliest as (token, logprob). Both are empty unless
              num_logprobs was given.
    """

    text: str
    tokens: List[int]
    prompt_tokens: int
    stop: str
    stop_message: str = ""
    first_token_seconds: float = 0.0
    seconds: float = 0.0
    logprobs: List[float] = field(default_factory=list)
    top: List[List[Tuple[int, float]]] = field(default_factory=list)

    def __str__(self):
        return self.text

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first one."""
        return (len(self.tokens) - 1) / self.seconds if self.seconds > 0 and len(self.tokens) > 1 else 0.0


def sampling_of(options: dict) -> dict:
    """Takes what is about sampling out of a call's options; what is not given is what the model recommends."""
    chosen = {name: options.pop(name) for name in _SAMPLING if options.get(name) is not None}
    for name in _SAMPLING:
        options.pop(name, None)
    if options:
        raise TypeError(f"there is no option '{next(iter(options))}'")
    if isinstance(chosen.get("json_schema"), (dict, list, bool)):
        import json

        chosen["json_schema"] = json.dumps(chosen["json_schema"])
    return chosen


class _Feed:
    """Between a stream and its thread, which must not keep the stream alive."""

    def __init__(self):
        self.pieces = queue.SimpleQueue()
        self.is_closed = False
        self.has_begun = False
        self.has_ended = False

    def run(self, generate):
        try:
            result = generate(self.take)
            self.has_ended = True
            self.pieces.put((None, result, None))
        except BaseException as error:  # handed to whoever iterates
            self.has_ended = True
            self.pieces.put((None, None, error))

    def take(self, text):
        self.has_begun = True
        if text:
            self.pieces.put((text, None, None))
        return not self.is_closed

    def close(self, cancel):
        """The text ends with its next token; before the first one, what reads the prompt is cancelled."""
        self.is_closed = True
        if not self.has_begun and not self.has_ended:
            cancel()


class Stream:
    """Pieces of a text as they are made, by a thread of its own. Iterating ends with the text; close(), or letting go of
    the stream, stops it. `generation` is there once the iteration has ended."""

    def __init__(self, generate, cancel):
        # generate(on_text) -> Generation
        self.generation = None
        self._cancel = cancel
        self._feed = _Feed()
        self._thread = threading.Thread(target=self._feed.run, args=(generate,), daemon=True, name="pith-stream")
        self._thread.start()

    def __iter__(self):
        return self

    def __next__(self):
        if self._thread is None:
            raise StopIteration
        try:
            text, result, error = self._feed.pieces.get()
        except BaseException:  # Ctrl-C
            self.close()
            raise
        if text is not None:
            return text
        self._thread.join()
        self._thread = None
        if error is not None:
            raise error
        self.generation = result
        raise StopIteration

    def close(self):
        """Stops the generation, and waits for it."""
        if self._thread is None:
            return
        self._feed.close(self._cancel)
        self._thread.join()
        self._thread = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def __del__(self):
        if getattr(self, "_thread", None) is not None:
            self._feed.close(self._cancel)


async def in_thread(call, cancel):
    """call() on a thread; where the task is cancelled, cancel() is called, and the thread waited for."""
    task = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        cancel()
        await asyncio.wait([task])
        task.exception()  # was of the cancel
        raise


async def astream(stream_of):
    """Pieces of stream_of(), a Stream, for `async for`."""
    stream = stream_of()
    loop = asyncio.get_running_loop()
    done = object()
    try:
        while True:
            piece = await loop.run_in_executor(None, next, stream, done)
            if piece is done:
                return
            yield piece
    finally:
        stream._feed.close(stream._cancel)
        await loop.run_in_executor(None, stream.close)
