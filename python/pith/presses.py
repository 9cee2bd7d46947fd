"""kvpress's names over pith's recipes.

    press = pith.presses.SnapKVPress(compression_ratio=0.5)
    with press(model):                      # sequences of this model compress the first prompt that they read
        ...
    pith.pipeline(model)(context, question="...", press=press)["answer"]

compression_ratio is the share that is removed, as in kvpress; pith's `keep` is the rest. `press.recipe` is what runs.
Every class has a short name, too: SnapKV is SnapKVPress.
"""

import contextlib
import inspect

from ._errors import InvalidArgument
from ._policies import normalise_recipe


class BasePress:
    """A way to compress a prompt that was read. compression_ratio: the share of entries that is removed."""

    compression_ratio: float = 0.0

    @property
    def recipe(self) -> str:
        """pith's recipe."""
        raise NotImplementedError

    @property
    def keep(self) -> float:
        """The share that stays."""
        if not 0 <= self.compression_ratio < 1:
            raise InvalidArgument("compression_ratio must be at least 0 and below 1", "invalid_argument")
        return 1.0 - self.compression_ratio

    @contextlib.contextmanager
    def __call__(self, model):
        """Within it, the first prompt that each new sequence of the model reads is compressed once it was read."""
        if model._press is not None:
            raise InvalidArgument("another press is at work on this model", "invalid_argument")
        self.keep  # checked now
        normalise_recipe(self.recipe)
        model._press = self
        try:
            yield self
        finally:
            model._press = None

    def __repr__(self):
        return f"{type(self).__name__}(recipe={self.recipe!r}, compression_ratio={self.compression_ratio})"


class ScorerPress(BasePress):
    """A press of one recipe."""

    _name = None

    def __init__(self, compression_ratio: float = 0.0):
        self.compression_ratio = compression_ratio

    @property
    def recipe(self) -> str:
        return self._name


class RecipePress(BasePress):
    """Any recipe of pith's as a press, those with scorers of one's own included."""

    def __init__(self, recipe: str, compression_ratio: float = 0.0):
        self._recipe = normalise_recipe(recipe)
        self.compression_ratio = compression_ratio

    @property
    def recipe(self) -> str:
        return self._recipe


class KnormPress(ScorerPress):
    """Keys of small length stay."""

    _name = "knorm"


class KeyDiffPress(ScorerPress):
    """Keys that differ most from the mean direction stay."""

    _name = "keydiff"


class TOVAPress(ScorerPress):
    """What the last query attends to."""

    _name = "tova"


class ObservedAttentionPress(ScorerPress):
    """What received most attention per query that could see it."""

    _name = "observed"


class RandomPress(BasePress):
    """A random subset."""

    def __init__(self, compression_ratio: float = 0.0, seed=None):
        self.compression_ratio = compression_ratio
        self.seed = seed

    @property
    def recipe(self) -> str:
        return f"random:seed={self.seed or 0}"


class StreamingLLMPress(BasePress):
    """The first tokens and the newest."""

    def __init__(self, compression_ratio: float = 0.0, n_sink: int = 4):
        self.compression_ratio = compression_ratio
        self.n_sink = n_sink

    @property
    def recipe(self) -> str:
        return f"streamingllm:sinks={self.n_sink}"


class SnapKVPress(BasePress):
    """What the last queries attend to, pooled over neighbours."""

    def __init__(self, compression_ratio: float = 0.0, window_size: int = 64, kernel_size: int = 5):
        self.compression_ratio = compression_ratio
        self.window_size = window_size
        self.kernel_size = kernel_size

    @property
    def recipe(self) -> str:
        return f"snapkv:window={self.window_size},pool={self.kernel_size}"


class PyramidKVPress(SnapKVPress):
    """SnapKV with more entries in lower layers."""

    def __init__(self, compression_ratio: float = 0.0, window_size: int = 64, kernel_size: int = 5, beta: int = 20):
        super().__init__(compression_ratio, window_size, kernel_size)
        self.beta = beta

    @property
    def recipe(self) -> str:
        return f"pyramidkv:window={self.window_size},pool={self.kernel_size},beta={self.beta}"


class ExpectedAttentionPress(BasePress):
    """What queries to come are expected to attend to."""

    def __init__(
        self,
        compression_ratio: float = 0.0,
        n_future_positions: int = 512,
        n_sink: int = 4,
        use_covariance: bool = True,
        use_vnorm: bool = True,
        epsilon: float = 0.0,
    ):
        self.compression_ratio = compression_ratio
        self.n_future_positions = n_future_positions
        self.n_sink = n_sink
        self.use_covariance = use_covariance
        self.use_vnorm = use_vnorm
        self.epsilon = epsilon

    @property
    def recipe(self) -> str:
        return (
            f"expectedattention:future={self.n_future_positions},sinks={self.n_sink},"
            f"covariance={int(self.use_covariance)},vnorm={int(self.use_vnorm)},epsilon={self.epsilon}"
        )


class KVzipPress(BasePress):
    """What the model looks at while it repeats its own context."""

    def __init__(self, compression_ratio: float = 0.0, layerwise: bool = False, chunk_size: int = 2048):
        self.compression_ratio = compression_ratio
        self.layerwise = layerwise
        self.chunk_size = chunk_size

    @property
    def recipe(self) -> str:
        return f"{'kvzip_uniform' if self.layerwise else 'kvzip'}:chunk={self.chunk_size}"


class _WrappedPress(BasePress):
    """A press around another one, whose compression_ratio it has."""

    def __init__(self, press: BasePress):
        self.press = press

    @property
    def compression_ratio(self) -> float:
        return self.press.compression_ratio

    @compression_ratio.setter
    def compression_ratio(self, value: float):
        self.press.compression_ratio = value


class AdaKVPress(_WrappedPress):
    """The heads of a layer compete for its entries; each keeps at least alpha_safeguard of an equal share."""

    def __init__(self, press: BasePress, alpha_safeguard: float = 0.20):
        super().__init__(press)
        self.alpha_safeguard = alpha_safeguard

    @property
    def recipe(self) -> str:
        return f"{self.press.recipe} alloc=ada:alpha={self.alpha_safeguard}"


class CriticalKVPress(_WrappedPress):
    """A part chosen by the press alone, the rest weighed by what values contribute to the output."""

    def __init__(self, press: BasePress, epsilon: float = 1e-4, first_stage_ratio: float = 0.5):
        super().__init__(press)
        self.epsilon = epsilon
        self.first_stage_ratio = first_stage_ratio

    @property
    def recipe(self) -> str:
        return f"{self.press.recipe} mod=criticalkv:first={self.first_stage_ratio},epsilon={self.epsilon}"


class CriticalAdaKVPress(CriticalKVPress):
    """Both."""

    def __init__(
        self, press: BasePress, alpha_safeguard: float = 0.20, epsilon: float = 1e-4, first_stage_ratio: float = 0.5
    ):
        super().__init__(press, epsilon, first_stage_ratio)
        self.alpha_safeguard = alpha_safeguard

    @property
    def recipe(self) -> str:
        return f"{super().recipe} alloc=ada:alpha={self.alpha_safeguard}"


def table() -> list:
    """All presses: [{"press": "SnapKVPress", "recipe": "snapkv:window=64,pool=5"}], wrappers around SnapKVPress."""
    rows = []
    for name, kind in sorted(globals().items()):
        if not inspect.isclass(kind) or not name.endswith("Press") or name != kind.__name__ or name.startswith("_"):
            continue
        if kind in (BasePress, ScorerPress, RecipePress):
            continue
        press = kind(SnapKVPress()) if issubclass(kind, _WrappedPress) else kind()
        rows.append({"press": name, "recipe": press.recipe})
    return rows


Knorm, KeyDiff, TOVA, ObservedAttention, Random = (
    KnormPress,
    KeyDiffPress,
    TOVAPress,
    ObservedAttentionPress,
    RandomPress,
)
StreamingLLM, SnapKV, PyramidKV, ExpectedAttention = (
    StreamingLLMPress,
    SnapKVPress,
    PyramidKVPress,
    ExpectedAttentionPress,
)
KVzip, AdaKV, CriticalKV, CriticalAdaKV, Recipe = (
    KVzipPress,
    AdaKVPress,
    CriticalKVPress,
    CriticalAdaKVPress,
    RecipePress,
)
