"""States of prompts that were read, to be taken up again."""

import os
import pickle
import tempfile
from abc import ABC, abstractmethod
from collections import OrderedDict
from hashlib import sha256
from pathlib import Path


def longest_token_prefix(a, b) -> int:
    """Tokens that both begin with."""
    count = 0
    for one, other in zip(a, b):
        if one != other:
            break
        count += 1
    return count


class BaseLlamaCache(ABC):
    """What a Llama looks into before it reads a prompt: {tokens: LlamaState}."""

    def __init__(self, capacity_bytes: int = (2 << 30)):
        self.capacity_bytes = capacity_bytes

    @property
    @abstractmethod
    def cache_size(self) -> int:
        raise NotImplementedError

    @abstractmethod
    def _keys(self):
        raise NotImplementedError

    def _find_longest_prefix_key(self, key):
        best, longest = None, 0
        for own in self._keys():
            length = longest_token_prefix(own, key)
            if length > longest:
                best, longest = own, length
        return best

    @abstractmethod
    def __getitem__(self, key):
        raise NotImplementedError

    def __contains__(self, key) -> bool:
        return self._find_longest_prefix_key(tuple(key)) is not None

    @abstractmethod
    def __setitem__(self, key, value) -> None:
        raise NotImplementedError


class LlamaRAMCache(BaseLlamaCache):
    """In memory; what was used longest ago goes first."""

    def __init__(self, capacity_bytes: int = (2 << 30)):
        super().__init__(capacity_bytes)
        self.cache_state = OrderedDict()

    @property
    def cache_size(self) -> int:
        return sum(state.llama_state_size for state in self.cache_state.values())

    def _keys(self):
        return self.cache_state.keys()

    def __getitem__(self, key):
        found = self._find_longest_prefix_key(tuple(key))
        if found is None:
            raise KeyError("Key not found")
        self.cache_state.move_to_end(found)
        return self.cache_state[found]

    def __setitem__(self, key, value):
        key = tuple(key)
        self.cache_state.pop(key, None)
        self.cache_state[key] = value
        while self.cache_size > self.capacity_bytes and self.cache_state:
            self.cache_state.popitem(last=False)


LlamaCache = LlamaRAMCache


class LlamaDiskCache(BaseLlamaCache):
    """In files of a folder that only its owner should be able to write: they are pickles."""

    def __init__(self, cache_dir: str = ".cache/llama_cache", capacity_bytes: int = (2 << 30)):
        super().__init__(capacity_bytes)
        self.folder = Path(cache_dir)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _files(self):
        return sorted(self.folder.glob("*.state"), key=lambda path: path.stat().st_mtime)

    @property
    def cache_size(self) -> int:
        return sum(path.stat().st_size for path in self._files())

    def _path(self, key):
        return self.folder / (sha256(",".join(map(str, key)).encode()).hexdigest() + ".state")

    def _keys(self):
        for path in self._files():
            with open(path, "rb") as file:
                yield pickle.load(file)

    def __getitem__(self, key):
        found = self._find_longest_prefix_key(tuple(key))
        if found is None:
            raise KeyError("Key not found")
        with open(self._path(found), "rb") as file:
            pickle.load(file)
            state = pickle.load(file)
        os.utime(self._path(found))
        return state

    def __setitem__(self, key, value):
        key = tuple(int(token) for token in key)
        with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
            pickle.dump(key, file)
            pickle.dump(value, file)
        os.replace(file.name, self._path(key))
        for path in self._files():
            if self.cache_size <= self.capacity_bytes:
                break
            path.unlink()
