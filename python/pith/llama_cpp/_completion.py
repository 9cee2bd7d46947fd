"""Completions of a Llama: what is shown when, stop strings, log probabilities."""

import sys

import numpy as np

from .llama_cache import longest_token_prefix


def complete(llama, head, prompt, suffix, max_tokens, logprobs, echo, stop, stream, stopping_criteria, sampling):
    """Yields chunks, or the one whole completion. head: what all of them begin with."""
    prompt_tokens, limit = _prompt_of(llama, prompt, max_tokens)
    if logprobs is not None and echo and not llama._logits_all:
        raise ValueError("logprobs of an echoed prompt are not supported for models created with logits_all=False")
    stops = [one.encode("utf-8") for one in ([stop] if isinstance(stop, str) else stop or []) if one]
    _look_up(llama, prompt_tokens)
    prompt_text = (
        prompt if isinstance(prompt, str) else llama.detokenize(prompt_tokens).decode("utf-8", errors="ignore")
    )
    run = _Run(llama, prompt_tokens, len(prompt_text), limit, stops, logprobs)
    for released in run.go(stopping_criteria, sampling):
        if stream:
            yield dict(head, choices=[_choice(released.text, released.logprobs, None)])
    if stream:
        yield dict(head, choices=[_choice("", None, run.finish_reason)])
    if llama.cache is not None:
        llama.cache[prompt_tokens + run.tokens] = llama.save_state()
    if stream:
        return
    text, found = run.text, run.logprobs
    if echo:
        text = prompt_text + text
        if logprobs is not None:
            found = _echoed(llama, prompt_tokens, found, logprobs, len(prompt_text))
    if suffix is not None:
        text += suffix
    count = len(run.tokens)
    yield dict(
        head,
        choices=[_choice(text, found, run.finish_reason)],
        usage={
            "prompt_tokens": len(prompt_tokens),
            "completion_tokens": count,
            "total_tokens": len(prompt_tokens) + count,
        },
    )


def _choice(text, logprobs, finish_reason):
    return {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish_reason}


def _prompt_of(llama, prompt, max_tokens):
    if isinstance(prompt, str):
        tokens = llama.tokenize(prompt.encode("utf-8"), add_bos=True, special=True)
    else:
        tokens = [int(token) for token in prompt]
    if not tokens:
        tokens = [llama.token_bos() if llama.token_bos() >= 0 else llama.token_eos()]
    if len(tokens) >= llama._n_ctx:
        raise ValueError(f"Requested tokens ({len(tokens)}) exceed context window of {llama._n_ctx}")
    limit = llama._n_ctx - len(tokens)
    if max_tokens is not None and max_tokens > 0:
        limit = min(limit, max_tokens)
    return tokens, limit


def _look_up(llama, prompt_tokens):
    if llama.cache is None:
        return
    try:
        state = llama.cache[prompt_tokens]
    except KeyError:
        return
    cached = longest_token_prefix(state.input_ids[: state.n_tokens].tolist(), prompt_tokens)
    if cached > longest_token_prefix(llama._input_ids.tolist(), prompt_tokens):
        llama.load_state(state)
        if llama.verbose:
            print("Llama._create_completion: cache hit", file=sys.stderr)


def _top(llama, row, count, token):
    """(log probability of a token, {text: log probability} of the likeliest and of the token)."""
    values = llama.logits_to_logprobs(row)
    count = min(count, len(values))
    likeliest = np.argpartition(values, -count)[-count:] if count > 0 else []
    likeliest = sorted(likeliest, key=lambda one: -values[one])
    top = {_text_of(llama, int(one)): float(values[one]) for one in likeliest}
    top[_text_of(llama, token)] = float(values[token])
    return float(values[token]), top


def _text_of(llama, token):
    return llama._pith_model._own.plain_piece(int(token)).decode("utf-8", errors="ignore")


def _empty():
    return {"tokens": [], "text_offset": [], "token_logprobs": [], "top_logprobs": []}


def _echoed(llama, prompt_tokens, found, count, prompt_length):
    """With the prompt's tokens in front; the first one has no logits before it."""
    all_of = _empty()
    offset = 0
    begins = 1 if prompt_tokens[0] == llama.token_bos() else 0
    for i in range(begins, len(prompt_tokens)):
        text = _text_of(llama, prompt_tokens[i])
        logprob, top = _top(llama, llama.scores[i - 1], count, prompt_tokens[i]) if i > 0 else (None, None)
        all_of["tokens"].append(text)
        all_of["text_offset"].append(offset)
        all_of["token_logprobs"].append(logprob)
        all_of["top_logprobs"].append(top)
        offset += len(text)
    for name, own in found.items():
        all_of[name] += own
    if all_of["tokens"]:
        # OpenAI's API has nulls for the first token.
        all_of["token_logprobs"][0] = all_of["top_logprobs"][0] = None
    return all_of


class _Piece:
    """Tokens whose text may be shown."""

    def __init__(self, text, logprobs):
        self.text = text
        self.logprobs = logprobs


class _Run:
    """One completion."""

    def __init__(self, llama, prompt_tokens, offset, limit, stops, num_logprobs):
        self.llama = llama
        self.prompt_tokens = prompt_tokens
        self.limit = limit
        self.stops = stops
        self.num_logprobs = num_logprobs
        self.offset = offset  # of the next shown character
        self.tokens = []  # the completion's
        self.text = ""
        self.logprobs = None if num_logprobs is None else _empty()
        self.finish_reason = "length"
        self.held = []  # (token, bytes, logprob, top) that are not shown yet
        self.longest = max((len(stop) for stop in stops), default=0)
        self.tail = b""  # of the text, as long as a stop string may be

    def go(self, stopping_criteria, sampling):
        """Yields pieces to show."""
        llama = self.llama
        is_first = True
        for token in llama.generate(self.prompt_tokens, stopping_criteria=stopping_criteria, **sampling):
            if llama._pith_model.ends(token):
                self.finish_reason = "stop"
                break
            self.tokens.append(token)
            piece = llama.detokenize([token], prev_tokens=self.prompt_tokens if is_first else [token])
            is_first = False
            logprob = top = None
            if self.num_logprobs is not None:
                logprob, top = _top(llama, llama._row(llama.n_tokens - 1), self.num_logprobs, token)
            self.held.append((token, piece, logprob, top))
            end = self._end_of_text(piece)
            if end is not None:
                self.finish_reason = "stop"
                yield from self._show(end)
                return
            yield from self._show_safe()
            if len(self.tokens) >= self.limit:
                break
        else:
            if stopping_criteria is not None:
                self.finish_reason = "stop"
        yield from self._show(sum(len(held[1]) for held in self.held))

    def _end_of_text(self, piece):
        """Where within the held bytes the first stop string begins."""
        if not self.stops:
            return None
        held = b"".join(one[1] for one in self.held)
        places = [held.find(stop) for stop in self.stops]
        places = [place for place in places if place >= 0]
        return min(places) if places else None

    def _show_safe(self):
        """What no stop string can begin in any more, up to a whole character."""
        held = b"".join(one[1] for one in self.held)
        safe = len(held)
        for stop in self.stops:
            for length in range(min(len(stop) - 1, len(held)), 0, -1):
                if held.endswith(stop[:length]):
                    safe = min(safe, len(held) - length)
                    break
        at = count = 0
        taken = b""
        for i, (_, piece, _, _) in enumerate(self.held):
            at += len(piece)
            if at > safe:
                break
            taken += piece
            try:
                taken.decode("utf-8")
            except UnicodeDecodeError as error:
                # A broken byte stays broken; an unfinished character may still become one.
                if len(taken) - error.start < 4 and error.reason.startswith("unexpected end"):
                    continue
            count = i + 1
        if count > 0:
            yield self._release(self.held[:count], None)
            self.held = self.held[count:]

    def _show(self, end):
        """All that is held, up to byte `end`."""
        at, shown = 0, []
        for one in self.held:
            if at >= end:
                break
            shown.append(one)
            at += len(one[1])
        self.held = []
        if shown:
            yield self._release(shown, end)

    def _release(self, held, end):
        text = b"".join(one[1] for one in held)
        text = (text if end is None else text[:end]).decode("utf-8", errors="ignore")
        found = None
        if self.num_logprobs is not None:
            found = _empty()
            offset = self.offset
            for token, piece, logprob, top in held:
                found["tokens"].append(_text_of(self.llama, token))
                found["text_offset"].append(offset)
                found["token_logprobs"].append(logprob)
                found["top_logprobs"].append(top)
                offset += len(piece.decode("utf-8", errors="ignore"))
            for name, own in found.items():
                self.logprobs[name] += own
        self.offset += len(text)
        self.text += text
        return _Piece(text, found)
