"""A drop-in for llama-cpp-python: `from pith.llama_cpp import Llama`.

    llm = Llama(model_path="model.gguf", n_ctx=8192, kv_budget="64MiB", recipe="snapkv")
    llm("Q: Name the planets. A:", max_tokens=32, stop=["Q:"])["choices"][0]["text"]

install() makes `import llama_cpp` find this package, for LangChain, LlamaIndex and others that import it by that name.
"""

import importlib
import sys

from ._attach import attach
from ._constants import *  # noqa: F401, F403
from ._llama import (
    Llama,
    LlamaState,
    LlamaTokenizer,
    LogitsProcessorList,
    MinTokensLogitsProcessor,
    StoppingCriteriaList,
)
from .llama_cache import BaseLlamaCache, LlamaCache, LlamaDiskCache, LlamaRAMCache
from .llama_grammar import LlamaGrammar
from .llama_types import *  # noqa: F401, F403

# The version whose interface this is.
__version__ = "0.3.36"

_SUBMODULES = ("llama_types", "llama_cache", "llama_grammar", "llama_chat_format", "llama_speculative", "_internals")


def install() -> None:
    """From now on `import llama_cpp` gives this package in this process. Raises RuntimeError where the real one has
    been imported already, whose objects would be mixed with these."""
    here = sys.modules[__name__]
    before = sys.modules.get("llama_cpp")
    if before is here:
        return
    if before is not None:
        raise RuntimeError("llama_cpp was imported before pith.llama_cpp.install(), which must come first")
    sys.modules["llama_cpp"] = here
    for name in _SUBMODULES:
        sys.modules[f"llama_cpp.{name}"] = importlib.import_module(f"{__name__}.{name}")
    sys.modules["llama_cpp.llama"] = importlib.import_module(f"{__name__}._llama")


def uninstall() -> None:
    """Takes install() back."""
    here = sys.modules[__name__]
    if sys.modules.get("llama_cpp") is here:
        for name in ("llama_cpp", "llama_cpp.llama", *(f"llama_cpp.{one}" for one in _SUBMODULES)):
            sys.modules.pop(name, None)
