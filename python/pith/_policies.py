"""Recipes, stages, and scorers of one's own."""

import inspect
from typing import Callable, Optional

import numpy as np

from . import _pith
from ._errors import InvalidArgument
from ._view import plain, view_of

_NEEDS = (
    "keys",
    "values",
    "window_probs",
    "window_queries",
    "every_query",
    "value_norms",
    "repeat",
    "query_moments",
    "squares",
    "largest",
)
_ARRAYS = (
    "positions",
    "pinned",
    "keys",
    "values",
    "window_probs",
    "window_queries",
    "value_norms",
    "query_means",
    "query_covariances",
)


def recipes() -> list:
    """All recipes as dictionaries: name, paper, summary, stages, needs, cost, when, good_for, parameters."""
    return _pith.list_recipes()


def stages() -> list:
    """All stages that recipes are made of, registered ones included: kind, name, paper, summary, parameters."""
    return _pith.list_stages()


def normalise_recipe(recipe: str) -> str:
    """A recipe as pith writes it, with all stages. Raises pith.InvalidArgument with the nearest valid choice."""
    return _pith.normalise_recipe(str(recipe))


class Head:
    """What a scorer sees: the entries of one kv head in one layer, in time order.

    n: entries, D and Dv: head sizes, G: query heads per kv head, w: window. Arrays are float32, read-only, without a
    copy
    (pith.View), and end with the call; what was not asked for (needs=) is None.

    positions          int32 (n,), ascending        pinned             uint8 (n,) or None; 1: never dropped
    keys               (n, D), after RoPE           values             (n, Dv)
    window_probs       (G, w, n), attention of the last w queries after the softmax
    window_queries     (G, w, D), after RoPE        value_norms        (n,), after the output projection
    query_means        (G, D), before RoPE          query_covariances  (G, D (D + 1) / 2), lower triangles
    columns            {name: (n,)}: what observe() remembers
    layer, num_layers, head, num_heads, group (G), key_dim, value_dim, window, next_position, seed, attention_scale,
    rotation [(real, imaginary, angle, magnitude)], params {name: number}
    """

    def __init__(self, layer, head):
        over = self._over = [None]

        def view(array):
            return None if array is None else view_of(array, lambda: over[0])

        self.__dict__.update(layer)
        self.__dict__.update(head)
        self._attention = self.__dict__.pop("attention")  # from the library
        for name in _ARRAYS:
            setattr(self, name, view(head[name]))
        self.columns = {name: view(array) for name, array in head["columns"].items()}

    def attention(self, pool=1):
        """Attention of the window as the recipe's agg= makes it one number per entry, pooled over `pool` neighbours:
        float32 (n,), with inf for the window's own entries. With needs="window_probs" and aggregates=True."""
        return self._attention(self.head, pool)

    def _end(self):
        self._over[0] = "the scorer's call has ended"
        keep = {name: value for name, value in self.__dict__.items() if name not in _ARRAYS}
        self.__dict__.clear()
        self.__dict__.update(keep)
        self.columns = {}

    def __len__(self):
        return self.num_entries


class Seen:
    """What observe() sees: what some consecutive entries of one kv head received of new queries.

    positions int32 (n,); sum, squares, largest float32 (n,) over queries, or None; layer, head, num_queries, params.
    """

    def __init__(self, given):
        self.__dict__.update(given)


def cosine(a, b):
    """Cosines of rows with a vector, or of rows with rows: float32 (n,) of (n, D) and (D,) or (n, D)."""
    a, b = plain(np.asanyarray(a)), plain(np.asanyarray(b))
    if b.ndim == 1:
        dot, norms = a @ b, np.sqrt(b @ b)
    else:
        dot, norms = np.einsum("...d,...d->...", a, b), np.sqrt(np.einsum("...d,...d->...", b, b))
    return dot / np.maximum(np.sqrt(np.einsum("...d,...d->...", a, a)) * norms, np.float32(1e-12))


def _need_bits(needs):
    needs = (needs,) if isinstance(needs, str) else tuple(needs)
    for need in needs:
        if need not in _NEEDS:
            raise InvalidArgument(f"a stage needs some of {', '.join(_NEEDS)}, not '{need}'", "invalid_argument")
    return sum(1 << _NEEDS.index(need) for need in set(needs))


def _param_specs(params):
    specs = []
    for param, value in (params or {}).items():
        initial, low, high = value if isinstance(value, (tuple, list)) else (value, -1e9, 1e9)
        whole = isinstance(initial, int) and not isinstance(initial, bool)
        specs.append((param, float(initial), float(low), float(high), whole, ""))
    return specs


def _summary_of(function):
    return (inspect.getdoc(function) or "in Python").splitlines()[0]


def register_scorer(
    name: str,
    score: Callable,
    *,
    needs=("keys", "values"),
    window=0,
    aggregates=False,
    sinks=0,
    params: Optional[dict] = None,
    columns: Optional[dict] = None,
    observe: Optional[Callable] = None,
    repeat_chunk=0,
    per="head",
    summary="",
    paper="",
):
    """From now on score=NAME works in every recipe, beside every built-in stage.

    score(head):  a pith.Head; returns a float for each of its entries, (n,). Larger stays, inf first of all. Another
    shape,
                  NaN and -inf are errors of what was being read. Called by the engine's threads, one at a time (the
                  GIL).
    per:          "layer": score(heads) gets all heads of a layer and returns a list of arrays.
    needs:        of "keys", "values", "window_probs", "window_queries", "value_norms", "query_moments", and with
    observe
                  "every_query" or "repeat" (the prompt is read once more), "squares", "largest".
    window:       last queries to observe; recipes change it by the parameter "window".
    params:       {name: default} or {name: (default, min, max)}; ints are whole numbers. head.params has their values.
    columns:      {name: initial} floats that are remembered with each entry and counted in the budget; observe(seen,
                  columns) updates them in place.
    sinks:        first tokens that stay unless the recipe says.
    aggregates:   head.attention() is used, so that recipes may name an agg=.

    Raises pith.InvalidArgument: the name is taken, or the options make no sense. A scorer cannot be taken back.
    """
    if per not in ("head", "layer"):
        raise InvalidArgument("per is 'head' or 'layer'", "invalid_argument")
    options = {
        "needs": _need_bits(needs),
        "window": window,
        "aggregates": aggregates,
        "num_sinks": sinks,
        "repeat_chunk": repeat_chunk,
        "params": _param_specs(params),
        "per_layer": per == "layer",
        "columns": [(column, float(initial)) for column, initial in (columns or {}).items()],
        "summary": summary or _summary_of(score),
        "paper": paper,
    }

    def observe_seen(given, own_columns):
        observe(Seen(given), own_columns)

    if per == "layer":

        def score_all(heads):
            return list(score(heads))

    else:
        score_all = score
    _pith.register_scorer(name, Head, score_all, observe_seen if observe is not None else None, options)


def scorer(name: str, **options):
    """register_scorer() as a decorator:

    @pith.scorer("mine")
    def score(head):
        return -pith.cosine(head.keys, head.keys.mean(0))
    """

    def register(function):
        register_scorer(name, function, **options)
        return function

    return register


class Division:
    """What an allocator divides: `layers` (dictionaries with layer, window, and lists by kv head: scores, float32 (n,)
    views,
    and pinned, uint8 (n,) or None), `keep` (entries of each head if all had the same), `total` (of all these heads
    together), `keep_fraction`, `params`."""

    def __init__(self, given):
        over = self._over = [None]

        def view(array):
            return None if array is None else view_of(array, lambda: over[0])

        self.__dict__.update(given)
        for layer in self.layers:
            layer["scores"] = [view(array) for array in layer["scores"]]
            layer["pinned"] = [view(array) for array in layer["pinned"]]

    def _end(self):
        self._over[0] = "the allocator's call has ended"
        self.layers = []


def register_aggregator(name: str, aggregate: Callable, *, params: Optional[dict] = None, summary="", paper=""):
    """From now on agg=NAME works in every recipe whose scorer aggregates.

    aggregate(probs, params): float32 (G, w, n), attention of w queries of each of G query heads over n entries,
    read-only and
    ended with the call; returns a number for each entry, (n,). pith pools what it gives where the scorer wants that.
    """

    def call(probs, given):
        over = [None]
        try:
            return np.asarray(aggregate(view_of(probs, lambda: over[0]), given), np.float32)
        finally:
            over[0] = "the aggregator's call has ended"

    options = {"params": _param_specs(params), "summary": summary or _summary_of(aggregate), "paper": paper}
    _pith.register_aggregator(name, call, options)


def register_modifier(
    name: str,
    modify: Callable,
    *,
    needs=("keys", "values"),
    window=0,
    params: Optional[dict] = None,
    summary="",
    paper="",
):
    """From now on mod=NAME works in every recipe.

    modify(head, scores): a pith.Head, and the float32 (n,) scores of the scorer and of the modifiers before, read-only;
    returns the scores that take their place, (n,). inf stays first of all; NaN and -inf are errors. needs and window:
    as of
    register_scorer(), but for what observe() takes.
    """

    def call(head, scores):
        return modify(head, view_of(scores, lambda: head._over[0]))

    options = {
        "needs": _need_bits(needs),
        "window": window,
        "params": _param_specs(params),
        "summary": summary or _summary_of(modify),
        "paper": paper,
    }
    _pith.register_modifier(name, Head, call, options)


def register_allocator(
    name: str, allocate: Callable, *, across_layers=False, params: Optional[dict] = None, summary="", paper=""
):
    """From now on alloc=NAME works in every recipe.

    allocate(division): a pith.Division of one layer, or, across_layers, of all of them; returns for each of its layers
    a list
    of whole numbers, the entries that each kv head keeps. Beyond the total they are cut; below 0 they are an error.
    """

    def call(given):
        division = Division(given)
        try:
            return [[int(number) for number in layer] for layer in allocate(division)]
        finally:
            division._end()

    options = {
        "across_layers": across_layers,
        "params": _param_specs(params),
        "summary": summary or _summary_of(allocate),
        "paper": paper,
    }
    _pith.register_allocator(name, call, options)


def _decorator(register):
    def named(name: str, **options):
        def take(function):
            register(name, function, **options)
            return function

        return take

    return named


aggregator = _decorator(register_aggregator)
aggregator.__doc__ = "register_aggregator() as a decorator: @pith.aggregator(NAME)."
modifier = _decorator(register_modifier)
modifier.__doc__ = "register_modifier() as a decorator: @pith.modifier(NAME)."
allocator = _decorator(register_allocator)
allocator.__doc__ = "register_allocator() as a decorator: @pith.allocator(NAME)."
