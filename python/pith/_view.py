"""Arrays over memory that is not NumPy's, which end at a stated time."""

import numpy as np

from ._errors import InvalidArgument

_PLAIN = frozenset(
    (
        "_is_over",
        "__class__",
        "__array_finalize__",
        "__dict__",
        "__array_priority__",
        "__array_interface__",
        "__array_struct__",
        "__del__",
        "__new__",
        "__init__",
    )
)


class View(np.ndarray):
    """A read-only NumPy array of pith's memory, without a copy.

    It ends at a stated time: logits with the next call that reads tokens on their engine or with their sequence, what a
    scorer sees with its call. From then on every use raises `pith.InvalidArgument`, of slices of it, too. `copy()` or
    arithmetic give arrays that last. `numpy.asarray(view)` is a plain array of the same memory, for which nobody
    watches the time.
    """

    def __array_finalize__(self, source):
        self._is_over = getattr(source, "_is_over", None)

    def __getattribute__(self, name):
        if name not in _PLAIN:
            _check(self)
        return np.ndarray.__getattribute__(self, name)

    def __getitem__(self, key):
        _check(self)
        return np.ndarray.__getitem__(self, key)

    def __len__(self):
        _check(self)
        return np.ndarray.__len__(self)

    def __iter__(self):
        _check(self)
        return np.ndarray.__iter__(self)

    def __repr__(self):
        return "<pith.View that is over>" if _why_over(self) else "View(" + np.array_repr(plain(self)) + ")"

    __str__ = __repr__

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        inputs = [plain(one) for one in inputs]
        if "out" in kwargs:
            kwargs["out"] = tuple(plain(one) for one in kwargs["out"])
        return getattr(ufunc, method)(*inputs, **kwargs)

    def __array_function__(self, function, types, args, kwargs):
        return function(*_plain_all(args), **{name: _plain_all(value) for name, value in kwargs.items()})

    def copy(self, order="C"):
        """An array of its own that lasts."""
        _check(self)
        return np.array(plain(self), order=order, copy=True)

    def __reduce__(self):
        _check(self)
        return plain(self).copy().__reduce__()

    def __reduce_ex__(self, protocol):
        _check(self)
        return plain(self).copy().__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        return self.copy()


def _why_over(view):
    is_over = np.ndarray.__getattribute__(view, "__dict__").get("_is_over")
    return is_over() if is_over is not None else None


def _check(view):
    why = _why_over(view)
    if why:
        raise InvalidArgument(f"this array is over: {why}; keep a copy() of what must last", "invalid_argument")


def plain(array):
    """The array itself, or a view's memory as a plain array, if it is not over."""
    if type(array) is not View:
        return array
    _check(array)
    return np.ndarray.view(array, np.ndarray)


def _plain_all(value):
    if isinstance(value, (list, tuple)):
        return type(value)(_plain_all(one) for one in value)
    return plain(value)


def view_of(array, is_over):
    """array, read-only, until is_over() gives a reason."""
    view = np.ndarray.view(array, View)
    view._is_over = is_over
    return view
