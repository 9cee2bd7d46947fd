"""pith's attention under a Llama of llama-cpp-python that is there already."""

import sys
import warnings

from .._errors import InvalidArgument, Unsupported
from ._llama import Llama

_classes = {}
# Settings that overrule the file, with the values that do not.
_OF_THE_FILE = {
    "vocab_only": False,
    "attention_type": -1,
}


def _refuse(why):
    raise Unsupported(why, "unsupported")


def _gone(name):
    def get(self):
        raise AttributeError(f"{name} is libllama's, which no longer answers for this Llama: pith.attach() took its place")

    return property(get)


def _class_of(original, attributes):
    """Llama over pith that is one of llama-cpp-python's, too; what that alone has says that it is gone."""
    if original not in _classes:
        names = {name for name in dir(original) if not name.startswith("__")} | {"_ctx", "_model", "_batch"}
        own = {name: _gone(name) for name in sorted(names - set(dir(Llama)) - set(attributes))}
        own.update(__module__=original.__module__, __doc__=Llama.__doc__, __init__=Llama.__init__)
        _classes[original] = type(original.__name__, (Llama, original), own)
    return _classes[original]


def _settings_of(llama):
    """What it was made with, as far as pith does the same."""
    settings = llama.__getstate__()
    for name in ("draft_model", "use_mlock"):  # they change the speed and not the text
        settings.pop(name, None)
    for name, neutral in _OF_THE_FILE.items():
        if settings.pop(name, neutral) != neutral:
            _refuse(f"this Llama was made with {name}, which pith leaves to the file")
    return settings


def attach(llama, *, kv_budget=None, recipe=None):
    """Puts pith under a llama_cpp.Llama of llama-cpp-python: from now on the same object reads and answers by pith's
    engine, inside kv_budget and by recipe (as in pith.llama_cpp.Llama), wherever it is held already. Returns it.

    Its file is opened again with its settings, what it has read is read again, its chat handlers and seed stay, and the
    memory of its context is freed. States that were saved before, and a cache of them, are libllama's and end here.
    That its answers stay what they were, up to rounding, rests on both having the same libllama: pith.Unsupported where
    llama-cpp-python is of another version than the one that pith is built with, or where the Llama has settings that
    pith does not follow; it is then as it was.
    """
    from . import __version__ as built_with

    other = sys.modules.get("llama_cpp")
    if isinstance(llama, Llama):
        raise InvalidArgument("this Llama is pith's already", "invalid_argument")
    if other is None or not isinstance(llama, getattr(other, "Llama", ())):
        raise InvalidArgument("attach() takes a Llama of llama-cpp-python", "invalid_argument")
    if other.__version__ != built_with:
        _refuse(f"pith is built with libllama of llama-cpp-python {built_with}, and this Llama is of {other.__version__}")
    settings = _settings_of(llama)
    handler = llama.chat_handler or llama._chat_handlers.get(llama.chat_format)
    handler = handler or other.llama_chat_format.get_chat_completion_handler(llama.chat_format)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            mine = Llama(**settings, kv_budget=kv_budget, recipe=recipe, libllama_products=True)
        except (RuntimeWarning, ValueError) as why:  # a setting that is left out, or unknown
            _refuse(f"this Llama cannot change over, as {why}")
    mine.chat_handler, mine._chat_handlers = handler, llama._chat_handlers
    if not isinstance(llama.tokenizer_, other.LlamaTokenizer):
        mine.tokenizer_ = llama.tokenizer_
    if llama.n_tokens > 0:
        mine.eval(llama.input_ids[: llama.n_tokens])
    llama.close()
    llama.__dict__.clear()
    llama.__class__ = _class_of(type(llama), mine.__dict__)
    llama.__dict__.update(mine.__dict__)
    return llama
