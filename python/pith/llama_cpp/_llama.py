"""Llama: llama-cpp-python's class over an engine of pith."""

import random
import sys
import time
import uuid
import warnings
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Callable, List, Optional

import numpy as np

from .. import _pith
from .._engine import Engine
from .._errors import Error, Unsupported
from .._model import Embedder, Model
from . import _constants as constants
from ._chat import chat_completion
from ._completion import complete
from .llama_cache import longest_token_prefix

_ORDER = "penalties;top_k;typ_p;top_p;min_p;temperature"
# Names of llama-cpp-python's formats and of libllama's templates.
_FORMATS = {
    "chatml": "chatml",
    "qwen": "chatml",
    "llama-2": "llama2",
    "llama-3": "llama3",
    "gemma": "gemma",
    "zephyr": "zephyr",
    "vicuna": "vicuna",
    "openchat": "openchat",
    "mistral-instruct": "mistral-v1",
    "chatglm3": "chatglm3",
}
_KV_FORMATS = {constants.GGML_TYPE_F16: "f16", constants.GGML_TYPE_Q8_0: "q8", constants.GGML_TYPE_Q4_0: "q4"}
# What changes nothing here: memory maps are libllama's own choice, attention is pith's.
_WITHOUT_EFFECT = {
    "tensor_split": (None,),
    "use_mlock": (False,),
    "draft_model": (None,),
    "spm_infill": (False,),
}
# llama.cpp's flags, with the values that leave them to the file: llama-cpp-python's own, and what LangChain gives where
# nothing was asked for.
_ROPE = {
    "rope_freq_base": (0.0, 10000.0),
    "rope_freq_scale": (0.0, 1.0),
    "yarn_ext_factor": (-1.0,),
    "yarn_attn_factor": (1.0,),
    "yarn_beta_fast": (32.0,),
    "yarn_beta_slow": (1.0,),
    "yarn_orig_ctx": (0,),
}
_SCALINGS = ("none", "linear", "yarn")


def _rope_of(settings):
    """What pith.Model takes, of llama-cpp-python's arguments."""
    rope = {
        name.replace("_", "-"): settings[name]
        for name, neutral in _ROPE.items()
        if settings.get(name, neutral[0]) not in (*neutral, None)
    }
    scaling = settings.get("rope_scaling_type")
    if scaling is not None and scaling >= 0:
        if scaling >= len(_SCALINGS):
            raise Unsupported(f"pith has no rope_scaling_type {scaling}", "unsupported")
        rope["rope-scaling"] = _SCALINGS[scaling]
    return rope


class LogitsProcessorList(List[Callable]):
    """Functions (input_ids, scores) -> scores, one after the other."""

    def __call__(self, input_ids, scores):
        for processor in self:
            scores = processor(input_ids, scores)
        return scores


class StoppingCriteriaList(List[Callable]):
    """Functions (input_ids, logits) -> whether to stop."""

    def __call__(self, input_ids, logits) -> bool:
        return any(criterion(input_ids, logits) for criterion in self)


class MinTokensLogitsProcessor:
    """Forbids the end before so many tokens."""

    def __init__(self, min_tokens: int, token_eos: int):
        self.min_tokens = min_tokens
        self.token_eos = token_eos
        self.prompt_tokens = None

    def __call__(self, input_ids, scores):
        if self.prompt_tokens is None:
            self.prompt_tokens = len(input_ids)
        if len(input_ids) - self.prompt_tokens < self.min_tokens:
            scores[self.token_eos] = -np.inf
        return scores


class _NoEngine:
    """In place of an engine and its sequence, of a model that reads and writes nothing."""

    def __init__(self, why):
        self._why = why

    def __getattr__(self, name):
        raise Unsupported(self._why, "unsupported")

    def __len__(self):
        raise Unsupported(self._why, "unsupported")

    def close(self):
        pass


@dataclass
class LlamaState:
    """What save_state() gives and load_state() takes."""

    input_ids: np.ndarray
    scores: np.ndarray
    n_tokens: int
    llama_state: bytes
    llama_state_size: int
    seed: int


class Llama:
    """llama-cpp-python's Llama, with a KV cache inside a fixed budget.

    kv_budget: bytes, "64MiB", or "20%" of the f16 cache of n_ctx, never exceeded; None: all of that.
    recipe:    what stays when it is full (pith.recipes()); None: "pith" with a kv_budget, else "full".
    libllama_products: products with weights as libllama does them, for answers like llama-cpp-python's to the letter.

    The other arguments, methods and answers are llama-cpp-python's. What has no meaning here (threads of other kinds,
    GPU splits, flash attention, which is always on) is accepted; what would change answers and is not done warns.
    """

    def __init__(
        self,
        model_path=None,
        *,
        n_gpu_layers: int = 0,
        seed: int = constants.LLAMA_DEFAULT_SEED,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int = 512,
        n_threads: Optional[int] = None,
        n_threads_batch: Optional[int] = None,
        pooling_type: int = constants.LLAMA_POOLING_TYPE_UNSPECIFIED,
        logits_all: bool = False,
        embedding: bool = False,
        vocab_only: bool = False,
        last_n_tokens_size: int = 64,
        lora_scale: float = 1.0,
        lora_path: Optional[str] = None,
        chat_format: Optional[str] = None,
        chat_handler=None,
        tokenizer=None,
        type_k: Optional[int] = None,
        type_v: Optional[int] = None,
        verbose: bool = True,
        kv_budget=None,
        recipe: Optional[str] = None,
        libllama_products: bool = False,
        **kwargs,
    ):
        self.verbose = verbose
        for name, neutral in _WITHOUT_EFFECT.items():
            if kwargs.get(name, neutral[0]) not in neutral:
                warnings.warn(f"pith leaves {name} out", RuntimeWarning, stacklevel=2)
        self._settings = dict(
            kwargs,
            n_gpu_layers=n_gpu_layers,
            n_ctx=n_ctx,
            n_batch=n_batch,
            n_ubatch=n_ubatch,
            n_threads=n_threads,
            n_threads_batch=n_threads_batch,
            pooling_type=pooling_type,
            logits_all=logits_all,
            embedding=embedding,
            vocab_only=vocab_only,
            last_n_tokens_size=last_n_tokens_size,
            lora_scale=lora_scale,
            lora_path=lora_path,
            chat_format=chat_format,
            chat_handler=chat_handler,
            tokenizer=tokenizer,
            type_k=type_k,
            type_v=type_v,
            verbose=verbose,
            kv_budget=kv_budget,
            recipe=recipe,
            libllama_products=libllama_products,
        )
        if model_path is not None and not Path(model_path).exists():
            raise ValueError(f"Model path does not exist: {model_path}")
        threads = n_threads or 0
        how = dict(
            threads=threads,
            gpu_layers=max(0, n_gpu_layers),
            chat_template=_FORMATS.get(chat_format),
            lora={lora_path: lora_scale} if lora_path else (),
            libllama_products=libllama_products,
            rope=_rope_of(kwargs),
            overrides=kwargs.get("kv_overrides") or {},
        )
        self._pith_model = _load(model_path, "vocabulary" if vocab_only else "text", embedding, how)
        self.model_path = self._pith_model.path
        self._info = self._pith_model.info
        self._n_vocab = self._info["num_vocab"]
        self._n_ctx = n_ctx or self._info["trained_ctx"]
        self.n_batch = min(self._n_ctx, n_batch)
        self.tokenizer_ = tokenizer or LlamaTokenizer(self)
        self._embedder = None
        if self._pith_model.use == "text":
            recipe = recipe or ("pith" if kv_budget is not None else "full")
            self._engine = Engine(
                self._pith_model,
                budget=kv_budget,
                ctx=self._n_ctx,
                threads=threads,
                recipe=recipe + _format_of(type_k, type_v),
            )
            self._sequence = self._engine.sequence()
        else:
            self._engine = self._sequence = _NoEngine(f"{self.model_path} was loaded for its {self._pith_model.use} alone")
            if self._pith_model.use == "embeddings":
                self._embedder = Embedder(self._pith_model, threads=threads)
        self.metadata = self._pith_model.metadata
        self.last_n_tokens_size = last_n_tokens_size
        self._seed = seed or constants.LLAMA_DEFAULT_SEED
        self._logits_all = logits_all
        self._embedding = embedding
        self._pooling = pooling_type
        self._closed = False
        self.cache = None
        self.draft_model = kwargs.get("draft_model")
        self.chat_format = chat_format or ("chat_template.default" if self._info["has_chat_template"] else "llama-2")
        self.chat_handler = chat_handler
        self._chat_handlers = {}
        # States of both kinds cannot go back, whatever else the model is.
        recurrent = bool(self._info["recurrent_bytes"])
        self._is_hybrid = self._info["hybrid"]
        self._is_recurrent = recurrent and not self._is_hybrid
        self.context_params = SimpleNamespace(
            n_ctx=self._n_ctx,
            n_batch=self.n_batch,
            n_ubatch=n_ubatch,
            n_threads=n_threads,
            n_seq_max=1,
            n_threads_batch=n_threads_batch,
            embeddings=embedding,
            pooling_type=pooling_type,
            type_k=type_k,
            type_v=type_v,
        )
        self.model_params = SimpleNamespace(n_gpu_layers=n_gpu_layers, vocab_only=vocab_only)
        self.n_tokens = 0
        self.input_ids = np.zeros((self._n_ctx,), dtype=np.intc)
        self._all_scores = None
        self._requires_eval = True
        self._sampler = None

    # ---- What was read

    @property
    def scores(self):
        """Logits of all tokens read, float32 (n_ctx, vocab), with logits_all=True; else zeros, (n_batch, vocab)."""
        if self._all_scores is None:
            # Pages of zeros that nobody writes take no memory.
            rows = self._n_ctx if self._logits_all else self.n_batch
            self._all_scores = np.zeros((rows, self._n_vocab), dtype=np.single)
        return self._all_scores

    @property
    def _input_ids(self):
        return self.input_ids[: self.n_tokens]

    @property
    def _scores(self):
        return self.scores[: self.n_tokens, :]

    @property
    def eval_tokens(self):
        return deque(self._input_ids.tolist(), maxlen=self._n_ctx)

    @property
    def eval_logits(self):
        return deque(self._scores.tolist(), maxlen=self._n_ctx if self._logits_all else 1)

    # ---- Tokens

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> List[int]:
        """Tokens of UTF-8 bytes."""
        return self.tokenizer_.tokenize(text, add_bos, special)

    def detokenize(self, tokens: List[int], prev_tokens: Optional[List[int]] = None, special: bool = False) -> bytes:
        """Bytes of tokens; control tokens have none unless special."""
        return self.tokenizer_.detokenize(tokens, prev_tokens=prev_tokens, special=special)

    # ---- Reading and sampling

    def set_cache(self, cache):
        """States of prompts, to be looked up before one is read."""
        self.cache = cache

    def set_seed(self, seed: int):
        """Of sampling."""
        self._seed = seed

    def reset(self):
        """Forgets what was read."""
        self.n_tokens = 0
        self._requires_eval = True

    def _go_back(self, num_tokens: int) -> bool:
        """The sequence holds num_tokens tokens, if it can without reading them again."""
        if len(self._sequence) == num_tokens:
            return True
        if len(self._sequence) < num_tokens:
            return False
        try:
            self._sequence.rewind(num_tokens)
            return True
        except Error:
            return False

    def _start_over(self):
        try:
            self._sequence.rewind(0)
        except Error:  # it was lost: a new one takes its place
            self._sequence.close()
            self._sequence = self._engine.sequence()

    def eval(self, tokens):
        """Reads tokens after the n_tokens that were read."""
        tokens = np.asarray(tokens, dtype=np.intc)
        if not self._go_back(self.n_tokens):
            again = self.input_ids[: self.n_tokens].copy()
            self._start_over()
            if len(again):
                self._sequence.prefill(again)
        if len(tokens) == 0:
            return
        begin, end = self.n_tokens, self.n_tokens + len(tokens)
        if end > self._n_ctx:
            raise RuntimeError(f"{end} tokens do not fit into the context of {self._n_ctx}")
        try:
            if self._logits_all:
                self.scores[begin:end] = self._sequence.logits_of(tokens)
            elif len(tokens) == 1:
                self._sequence.decode(int(tokens[0]))
            else:
                self._sequence.prefill(tokens)
        except BaseException:
            self.n_tokens = 0  # how far it came, only the sequence knows
            self._requires_eval = True
            raise
        self.input_ids[begin:end] = tokens
        self.n_tokens = end
        self._requires_eval = False

    def _init_sampler(
        self,
        top_k=40,
        top_p=0.95,
        min_p=0.05,
        typical_p=1.0,
        temp=0.80,
        repeat_penalty=1.0,
        frequency_penalty=0.0,
        presence_penalty=0.0,
        tfs_z=1.0,
        mirostat_mode=0,
        mirostat_eta=0.1,
        mirostat_tau=5.0,
        penalize_nl=True,
        logits_processor=None,
        grammar=None,
    ):
        options = {
            "temperature": temp,
            "top_k": max(0, top_k),
            "top_p": top_p,
            "min_p": min_p,
            "typical_p": typical_p,
            "repeat_penalty": repeat_penalty,
            "frequency_penalty": frequency_penalty,
            "presence_penalty": presence_penalty,
            "repeat_last_n": self.last_n_tokens_size,
            "seed": self._seed & 0xFFFFFFFF,
            "order": _ORDER,
            "mirostat": mirostat_mode,
            "mirostat_tau": mirostat_tau,
            "mirostat_eta": mirostat_eta,
        }
        if temp < 0.0:  # the distribution as it is
            options.update(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0, mirostat=0)
        if grammar is not None:
            options["grammar"] = grammar if isinstance(grammar, str) else grammar._grammar
        return _pith.Sampler(self._pith_model._own, options)

    def _row(self, idx: int):
        """Logits after token idx, as far as they are there."""
        if self._logits_all:
            return self.scores[idx]
        if idx == self.n_tokens - 1:
            logits = self._sequence.logits
            if logits is not None:
                return np.asarray(logits)
            # Restored, or read beside others: the last token is read once more.
            tokens = self.input_ids[idx : self.n_tokens].copy()
            self.n_tokens = idx
            self.eval(tokens)
            return np.asarray(self._sequence.logits)
        raise RuntimeError(f"logits of token {idx} are kept with logits_all=True alone")

    def sample(
        self,
        top_k=40,
        top_p=0.95,
        min_p=0.05,
        typical_p=1.0,
        temp=0.80,
        repeat_penalty=1.0,
        frequency_penalty=0.0,
        presence_penalty=0.0,
        tfs_z=1.0,
        mirostat_mode=0,
        mirostat_eta=0.1,
        mirostat_tau=5.0,
        penalize_nl=True,
        logits_processor=None,
        grammar=None,
        idx: Optional[int] = None,
    ):
        """A token after the last one read, or after token idx."""
        assert self.n_tokens > 0
        sampler = self._sampler or self._init_sampler(
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            temp=temp,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            mirostat_mode=mirostat_mode,
            mirostat_eta=mirostat_eta,
            mirostat_tau=mirostat_tau,
            grammar=grammar,
        )
        logits = self._row(self.n_tokens - 1 if idx is None else idx)
        if logits_processor is not None:
            logits = logits.copy()
            for processor in logits_processor:
                logits[:] = processor(self._input_ids, logits)
        return sampler.sample(logits)

    def _reuse(self, tokens) -> List[int]:
        """Keeps of what was read what tokens begin with, and returns the rest."""
        prefix = longest_token_prefix(self._input_ids.tolist(), tokens)
        if prefix == len(tokens) == self.n_tokens and not self._requires_eval:
            return []
        prefix = min(prefix, len(tokens) - 1)  # one token is read again for its logits
        if prefix > 0 and len(self._sequence) >= prefix:
            prefix = min(prefix, self._sequence.rewind_target(prefix))
            if prefix > 0 and self._go_back(prefix):
                self.n_tokens = prefix
                self._requires_eval = True
                return tokens[prefix:]
        self.reset()
        return tokens

    def generate(
        self,
        tokens,
        top_k=40,
        top_p=0.95,
        min_p=0.05,
        typical_p=1.0,
        temp=0.80,
        repeat_penalty=1.0,
        reset: bool = True,
        frequency_penalty=0.0,
        presence_penalty=0.0,
        tfs_z=1.0,
        mirostat_mode=0,
        mirostat_tau=5.0,
        mirostat_eta=0.1,
        penalize_nl=True,
        logits_processor=None,
        stopping_criteria=None,
        grammar=None,
    ):
        """Yields tokens after a prompt. Tokens that are sent to the generator are read after the one it gave.

        reset: what was read before is forgotten but for what the prompt begins with.
        """
        sampler = self._init_sampler(
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            temp=temp,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            mirostat_mode=mirostat_mode,
            mirostat_eta=mirostat_eta,
            mirostat_tau=mirostat_tau,
            grammar=grammar,
        )
        tokens = [int(token) for token in tokens]
        if reset and self.n_tokens > 0:
            tokens = self._reuse(tokens)
        elif reset:
            self.reset()
        while True:
            self.eval(tokens)
            self._sampler = sampler
            try:
                token = self.sample(logits_processor=logits_processor)
            finally:
                self._sampler = None
            if stopping_criteria is not None and stopping_criteria(self._input_ids, self._row(self.n_tokens - 1)):
                return
            sent = yield token
            tokens = [token] + ([int(one) for one in sent] if sent is not None else [])

    # ---- Embeddings

    def create_embedding(self, input, model: Optional[str] = None):
        """Embeddings of texts, as OpenAI's API has them."""
        embeddings, count = self.embed(input if isinstance(input, list) else [input], return_count=True)
        return {
            "object": "list",
            "data": [{"object": "embedding", "embedding": one, "index": i} for i, one in enumerate(embeddings)],
            "model": model if model is not None else self.model_path,
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }

    def embed(self, input, normalize: bool = False, truncate: bool = True, return_count: bool = False):
        """Embeddings of a text or texts: a row of n_embd floats for each token, or, pooled (pooling_type), one row."""
        if not self._embedding:
            raise RuntimeError("Llama model must be created with embedding=True to call this method")
        texts = [input] if isinstance(input, str) else input
        data, total = [], 0
        for text in texts:
            tokens = self.tokenize(text.encode("utf-8"))
            tokens = tokens[: self.n_batch] if truncate else tokens
            if len(tokens) > self.n_batch:
                raise ValueError(f"Requested tokens ({len(tokens)}) exceed batch size of {self.n_batch}")
            total += len(tokens)
            if self._embedder is not None:
                rows = self._embedder.embeddings_of(tokens)
            else:
                self._start_over()
                rows = self._sequence.embeddings_of(tokens)
            rows = self._pooled(rows)
            if normalize:
                rows = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
            data.append(rows.tolist())
        if self._embedder is None:
            self._start_over()
        self.reset()
        output = data[0] if isinstance(input, str) else data
        return (output, total) if return_count else output

    def _pooled(self, rows):
        pooling = self.pooling_type()
        if pooling == constants.LLAMA_POOLING_TYPE_MEAN:
            return rows.mean(axis=0)
        if pooling == constants.LLAMA_POOLING_TYPE_CLS:
            return rows[0]
        if pooling == constants.LLAMA_POOLING_TYPE_LAST:
            return rows[-1]
        return rows

    # ---- Completions

    def create_completion(
        self,
        prompt,
        suffix: Optional[str] = None,
        max_tokens: Optional[int] = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: Optional[int] = None,
        echo: bool = False,
        stop=[],
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: Optional[int] = None,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: Optional[str] = None,
        stopping_criteria=None,
        logits_processor=None,
        grammar=None,
        logit_bias=None,
    ):
        """Goes on after a prompt (text or tokens). Returns the completion, or with stream=True its chunks."""
        if logit_bias is not None:
            bias = {int(token): float(value) for token, value in logit_bias.items()}

            def add_bias(input_ids, scores):
                scores = np.copy(scores)
                for token, value in bias.items():
                    scores[token] += value
                return scores

            logits_processor = LogitsProcessorList([*(logits_processor or []), add_bias])
        if seed is not None:
            self.set_seed(seed)
        else:
            self.set_seed(random.Random(self._seed).randint(0, 2**32))
        sampling = {
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "typical_p": typical_p,
            "temp": temperature,
            "mirostat_mode": mirostat_mode,
            "mirostat_tau": mirostat_tau,
            "mirostat_eta": mirostat_eta,
            "frequency_penalty": frequency_penalty,
            "presence_penalty": presence_penalty,
            "repeat_penalty": repeat_penalty,
            "logits_processor": logits_processor,
            "grammar": grammar,
        }
        head = {
            "id": f"cmpl-{uuid.uuid4()}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model if model is not None else self.model_path,
        }
        chunks = complete(
            self, head, prompt, suffix, max_tokens, logprobs, echo, stop, stream, stopping_criteria, sampling
        )
        return chunks if stream else next(chunks)

    def __call__(self, prompt, *args, **kwargs):
        """create_completion()."""
        return self.create_completion(prompt, *args, **kwargs)

    def create_chat_completion(
        self,
        messages,
        functions=None,
        function_call=None,
        tools=None,
        tool_choice=None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        stream: bool = False,
        stop=[],
        seed: Optional[int] = None,
        response_format=None,
        max_tokens: Optional[int] = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: Optional[str] = None,
        logits_processor=None,
        grammar=None,
        logit_bias=None,
        logprobs: Optional[bool] = None,
        top_logprobs: Optional[int] = None,
    ):
        """Answers messages. Returns the answer, or with stream=True its chunks."""
        request = dict(
            messages=messages,
            functions=functions,
            function_call=function_call,
            tools=tools,
            tool_choice=tool_choice,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            typical_p=typical_p,
            stream=stream,
            stop=stop,
            seed=seed,
            response_format=response_format,
            max_tokens=max_tokens,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            repeat_penalty=repeat_penalty,
            tfs_z=tfs_z,
            mirostat_mode=mirostat_mode,
            mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta,
            model=model,
            logits_processor=logits_processor,
            grammar=grammar,
            logit_bias=logit_bias,
            logprobs=logprobs,
            top_logprobs=top_logprobs,
        )
        handler = self.chat_handler or self._chat_handlers.get(self.chat_format) or _registered(self.chat_format)
        if handler is not None:
            return handler(llama=self, **request)
        return chat_completion(self, **request)

    def create_chat_completion_openai_v1(self, *args, **kwargs):
        """The same as objects of the package openai."""
        from openai.types.chat import ChatCompletion, ChatCompletionChunk

        if kwargs.get("stream", False):
            return (ChatCompletionChunk(**chunk) for chunk in self.create_chat_completion(*args, **kwargs))
        return ChatCompletion(**self.create_chat_completion(*args, **kwargs))

    # ---- States

    def __getstate__(self):
        return dict(self._settings, model_path=self.model_path, seed=self._seed)

    def __setstate__(self, state):
        self.__init__(**state)

    def save_state(self) -> LlamaState:
        """What was read, with the cache as it is now."""
        if not self._go_back(self.n_tokens):
            self.eval([])
        state = self._sequence.to_bytes() if self.n_tokens > 0 else b""
        scores = self._scores.copy() if self._logits_all else np.zeros((0, self._n_vocab), dtype=np.single)
        return LlamaState(
            scores=scores,
            input_ids=self.input_ids.copy(),
            n_tokens=self.n_tokens,
            llama_state=state,
            llama_state_size=len(state),
            seed=self._seed,
        )

    def load_state(self, state: LlamaState) -> None:
        """Takes it up again. It must be one of the same model, recipe and kv_budget."""
        self._sequence.close()  # its place is the engine's only one
        try:
            self._sequence = self._engine.restore(state.llama_state) if state.n_tokens else self._engine.sequence()
        except Error:
            self._sequence = self._engine.sequence()
            self.reset()
            raise
        if self._logits_all:
            self.scores[: len(state.scores)] = state.scores
            self.scores[len(state.scores) :] = 0
        self.input_ids = state.input_ids.copy()
        self.n_tokens = state.n_tokens
        self._requires_eval = True
        self._seed = state.seed

    # ---- The model

    def n_ctx(self) -> int:
        """Tokens of the context."""
        return self._n_ctx

    def n_embd(self) -> int:
        """Floats of an embedding."""
        return self._info["num_embd"]

    def n_vocab(self) -> int:
        """Tokens of the vocabulary."""
        return self._n_vocab

    def tokenizer(self):
        return LlamaTokenizer(self)

    def token_eos(self) -> int:
        return self._info["eos_token"]

    def token_bos(self) -> int:
        return self._info["bos_token"]

    def token_nl(self) -> int:
        return self._info["newline_token"]

    def pooling_type(self) -> int:
        if self._pooling != constants.LLAMA_POOLING_TYPE_UNSPECIFIED:
            return self._pooling
        named = self.metadata.get(f"{self._info['architecture']}.pooling_type")
        return int(named) if named is not None else constants.LLAMA_POOLING_TYPE_NONE

    @property
    def kv_stats(self) -> dict:
        """pith's own: what the cache holds, pith.Engine.stats."""
        return self._engine.stats

    def close(self) -> None:
        """Frees the cache now."""
        if not self._closed:
            self._closed = True
            self._sequence.close()

    @staticmethod
    def logits_to_logprobs(logits, axis: int = -1):
        """Natural logarithms of the softmax, float32."""
        logits = np.asarray(logits, dtype=np.single)
        highest = np.max(logits, axis=axis, keepdims=True)
        highest = np.where(np.isfinite(highest), highest, 0)
        shifted = np.subtract(logits, highest, dtype=np.single)
        with np.errstate(divide="ignore"):
            return np.subtract(shifted, np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True)), dtype=np.single)

    @staticmethod
    def longest_token_prefix(a, b) -> int:
        return longest_token_prefix(a, b)

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: Optional[str],
        additional_files=None,
        local_dir=None,
        local_dir_use_symlinks="auto",
        cache_dir=None,
        **kwargs,
    ) -> "Llama":
        """Fetches a file of the Hugging Face hub by the package huggingface-hub, and loads it."""
        import fnmatch

        try:
            from huggingface_hub import HfFileSystem, hf_hub_download
        except ImportError:
            raise ImportError(
                "Llama.from_pretrained requires the huggingface-hub package. "
                "You can install it with `pip install huggingface-hub`."
            )
        files = [
            entry["name"] if isinstance(entry, dict) else entry for entry in HfFileSystem().ls(repo_id, recursive=True)
        ]
        files = [str(Path(name).relative_to(repo_id)) for name in files]
        found = [name for name in files if fnmatch.fnmatch(name, filename)]
        if len(found) != 1:
            raise ValueError(
                f"{'No' if not found else 'Multiple'} files found in {repo_id} that match {filename}\n\n"
                f"Available files:\n{files}"
            )
        folder, name = str(Path(found[0]).parent), Path(found[0]).name
        path = hf_hub_download(
            repo_id=repo_id,
            filename=name,
            subfolder=folder if folder != "." else None,
            local_dir=local_dir,
            cache_dir=cache_dir,
        )
        for pattern in additional_files or []:
            for other in (one for one in files if fnmatch.fnmatch(one, pattern)):
                hf_hub_download(repo_id=repo_id, filename=other, local_dir=local_dir, cache_dir=cache_dir)
        return cls(model_path=path, **kwargs)


class LlamaTokenizer:
    """A Llama's tokens."""

    def __init__(self, llama: Llama):
        self._model = llama._pith_model
        self._bos = llama._info["bos_token"]

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> List[int]:
        if not text and not add_bos:
            return []
        if self._model.use == "embeddings" and add_bos and not special:
            return self._model.tokenize_whole(text)  # encoders' texts have an end, too
        return self._model.tokenize(text, begins=add_bos, special=special)

    def detokenize(self, tokens: List[int], prev_tokens: Optional[List[int]] = None, special: bool = False) -> bytes:
        output = b"".join(
            self._model._own.plain_piece(int(token)) if not special else self._model.piece(int(token))
            for token in tokens
        )
        # The space that tokenizers of this kind put in front of a text.
        first = (list(prev_tokens) + list(tokens) if prev_tokens else list(tokens))[:1]
        begins = not prev_tokens or not any(self._model._own.plain_piece(int(token)) for token in prev_tokens)
        return output[1:] if first == [self._bos] and begins and output[:1] == b" " else output

    def encode(self, text: str, add_bos: bool = True, special: bool = True) -> List[int]:
        return self.tokenize(text.encode("utf-8", errors="ignore"), add_bos, special)

    def decode(self, tokens: List[int]) -> str:
        return self.detokenize(tokens).decode("utf-8", errors="ignore")


def _load(path, use, may_embed, how):
    """The model; with embedding=True an encoder, too."""
    try:
        return Model(path, use=use, **how)
    except Unsupported:
        if not may_embed:
            raise
        try:
            return Model(path, use="embeddings", **how)
        except Error:
            pass
        raise


def _format_of(type_k, type_v) -> str:
    """The storage format in a recipe."""
    if type_k is None and type_v is None:
        return ""
    names = [_KV_FORMATS.get(constants.GGML_TYPE_F16 if kind is None else kind) for kind in (type_k, type_v)]
    if None in names:
        raise ValueError("type_k and type_v may be GGML_TYPE_F16, GGML_TYPE_Q8_0 or GGML_TYPE_Q4_0")
    return "" if names == ["f16", "f16"] else f" format={'/'.join(dict.fromkeys(names))}"


def _registered(name):
    from .llama_chat_format import REGISTERED

    if name in REGISTERED:
        return REGISTERED[name]
    if name == "chat_template.default" or name in _FORMATS:
        return None
    known = sorted([*REGISTERED, *_FORMATS, "chat_template.default"])
    raise ValueError(f"Invalid chat handler: {name} (valid formats: {known})")


def _say(llama, text):
    if llama.verbose:
        print(text, file=sys.stderr)
