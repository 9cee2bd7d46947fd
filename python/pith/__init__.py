"""pith: GGUF models inside a fixed KV-cache budget.

    import pith

    engine = pith.Engine(budget="64MiB", recipe="snapkv")       # the default model
    talk = engine.conversation(system="You are brief.")
    print(talk.say("What is a KV cache?", max_tokens=64))
    for piece in talk.stream("And why does it grow?"):
        print(piece, end="", flush=True)

Model          a GGUF file: tokens, templates
Engine         sequences of one model under one budget of bytes
Sequence       tokens in, logits out; forks, compression, sessions
Conversation   messages and answers
Embedder       embeddings by encoders
scorer         a policy of one's own, in Python; aggregator, modifier, allocator: its other stages
presses        kvpress's names; pipeline(): a question about a long context
llama_cpp      a drop-in for llama-cpp-python; attach(): under a Llama of its own
eval, bench    what `pith eval` and `pith bench` measure, as rows

Every failure is a pith.Error with one sentence. docs/python.md goes through the tasks.
"""

from . import _pith, bench, eval, llama_cpp, presses  # noqa: A004
from ._engine import Conversation, Engine, Sequence, parse_bytes
from ._errors import (
    Busy,
    Cancelled,
    Corrupt,
    Error,
    InvalidArgument,
    IoError,
    NotFound,
    OutOfBudget,
    OutOfContext,
    Unsupported,
)
from ._generation import Generation, Stream
from ._model import Embedder, Model, cache_dir, default_model, fetch_model
from ._pipeline import Pipeline, pipeline
from ._policies import (
    Division,
    Head,
    Seen,
    aggregator,
    allocator,
    cosine,
    modifier,
    normalise_recipe,
    recipes,
    register_aggregator,
    register_allocator,
    register_modifier,
    register_scorer,
    scorer,
    stages,
)
from ._view import View
from .llama_cpp import attach

__version__ = _pith.version()


def set_log(callback):
    """callback(level, text) gets what libllama says, at 1 (debug) to 4 (error), from any thread; None: silence."""
    _pith.set_log(callback)


__all__ = [
    "Busy",
    "Cancelled",
    "Conversation",
    "Corrupt",
    "Division",
    "Embedder",
    "Engine",
    "Error",
    "Generation",
    "Head",
    "InvalidArgument",
    "IoError",
    "Model",
    "NotFound",
    "OutOfBudget",
    "OutOfContext",
    "Pipeline",
    "Seen",
    "Sequence",
    "Stream",
    "Unsupported",
    "View",
    "aggregator",
    "allocator",
    "attach",
    "cache_dir",
    "bench",
    "cosine",
    "default_model",
    "eval",
    "fetch_model",
    "llama_cpp",
    "modifier",
    "normalise_recipe",
    "parse_bytes",
    "pipeline",
    "presses",
    "recipes",
    "register_aggregator",
    "register_allocator",
    "register_modifier",
    "register_scorer",
    "scorer",
    "set_log",
    "stages",
]
