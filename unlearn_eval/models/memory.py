"""How much memory code takes that runs a model, from the model's configuration: the code runs without numbers.

A model is built without weights, and its weights are `Hollow`: tensors of the right shape and type that hold nothing
and look like tensors on a CPU. Whatever runs the model then runs on it unchanged, and tensors are counted as they come
and go. Ids, masks and positions are ordinary tensors, so that the code may look at them; a question about numbers that
are not there is answered by 0, or False.

PyTorch's fake tensors do the same, at half a millisecond for an operation: an 8B model's pass took seconds. Here the
shapes that an operation gives are remembered by those that it is given, and operations in place do nothing.

An allocator takes somewhat more than its tensors, and kernels have work space of their own; neither is counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from unlearn_eval.models.arguments import accepts, cache_argument, cache_of
from unlearn_eval.models.load import skeleton

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ACTIVATIONS, LOGITS, GRADIENTS, CACHE = "activations", "logits", "gradients", "key-value cache"
ORIGINALS, EDIT = "originals", "edit"
_NUMBER, _INDEX, _COPY = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.index.Tensor,
    torch.ops.aten._to_copy.default,
)
Args = tuple[Any, ...]
_DEVICE = torch.ops.prim.device.default
_CPU, _META = torch.device("cpu"), torch.device("meta")


@dataclass(frozen=True)
class Phase:
    """Part of a command's work, and the most memory that it takes beside the weights.

    Attributes:
        name: of the part.
        held: what is in memory at the moment at which most is -> bytes.
        left: what of it stays while the edit is in the model.
        disk: what is written.
    """

    name: str
    held: Mapping[str, int]
    left: Mapping[str, int] = field(default_factory=dict)
    disk: Mapping[str, int] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """All of it."""
        return sum(self.held.values())

    def beside(self, more: Mapping[str, int]) -> Phase:
        """The same while something else is in memory."""
        return replace(self, held={**more, **{kind: n + more.get(kind, 0) for kind, n in self.held.items()}})


class Hollow(Tensor):
    """A tensor that holds nothing and says that it is on a CPU.

    Args:
        plain: the same on the meta device; views of either share its storage.
        requires_grad: whether it is trained.
    """

    plain: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, plain: Tensor, requires_grad: bool = False) -> Hollow:
        """The tensor."""
        own: Hollow = Tensor._make_subclass(
            cls, plain, requires_grad, dispatch_device=True, device_for_backend_keys=_CPU
        )
        own.plain = plain
        return own

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where it seems to be."""
        return _CPU

    def tolist(self) -> Any:
        """Zeros, in lists."""
        return _zeros(self.shape, _nothing(self.dtype))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: OpOverload, types: object, args: Args = (), kwargs: Mapping[str, object] | None = None
    ) -> Any:
        """Run an operation, outside a count."""
        return _hollow_run(function, args, kwargs or {}, None)


_results: dict[Any, Any] = {}  # what operations give that make new tensors
_KEEPS, _VIEWS, _MAKES = "changes its first argument", "shows it", "makes a new one"


@cache
def _manner(function: OpOverload) -> str:
    """What an operation does with memory, by its schema."""
    schema = function._schema
    written = [own.alias_info for own in schema.returns if own.alias_info is not None]
    if any(own.is_write for own in written) or (not schema.returns and schema.is_mutable):
        return _KEEPS
    return _VIEWS if written or function is torch.ops.aten._unsafe_view.default else _MAKES


def _hollow_run(
    function: OpOverload, args: Args, kwargs: Mapping[str, Any], fresh: Callable[[Tensor], None] | None
) -> Any:
    """An operation on tensors of which some hold nothing.

    Args:
        function, args, kwargs: the operation.
        fresh: called with each tensor that is made.
    """
    if function is _DEVICE:
        return _CPU
    if function is _NUMBER:
        return _nothing(args[0].dtype)
    manner = _manner(function)
    if manner is _KEEPS:
        return kwargs.get("out", args[0] if function._schema.returns else None)
    if manner is _VIEWS:
        return _wrapped(function(*map(_plain, args), **{name: _plain(own) for name, own in kwargs.items()}), None)
    if function is _COPY and kwargs.get("dtype") in (None, args[0].dtype) and isinstance(args[0], Hollow):
        if kwargs.get("device") is not None and kwargs.get("memory_format") is None:  # it seems to be there already
            return Hollow(args[0].plain.detach())
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": _META}
    key = (function, *map(_key, args), *((name, _key(own)) for name, own in kwargs.items()))
    if key not in _results:
        found = function(*map(_plain, args), **{name: _plain(own) for name, own in kwargs.items()})
        _results[key] = _shape(found)
    return _wrapped(_made(_results[key]), fresh)


def _plain(own: object) -> Any:
    """An argument on the meta device."""
    if isinstance(own, Hollow):
        return own.plain
    if isinstance(own, Tensor):
        return torch.empty_strided(own.shape, own.stride(), dtype=own.dtype, device=_META)
    return [_plain(each) for each in own] if isinstance(own, (list, tuple)) else own


def _key(own: object) -> Any:
    if isinstance(own, Tensor):
        return own.shape, own.stride(), own.dtype
    return tuple(map(_key, own)) if isinstance(own, (list, tuple)) else (type(own), own)


def _shape(found: object) -> Any:
    if isinstance(found, Tensor):
        return found.shape, found.stride(), found.dtype
    return [_shape(own) for own in found] if isinstance(found, (list, tuple)) else None


def _made(shape: Any) -> Any:
    if isinstance(shape, tuple):
        size, stride, dtype = shape
        return torch.empty_strided(size, stride, dtype=dtype, device=_META)
    return None if shape is None else tuple(map(_made, shape))


def _wrapped(found: object, fresh: Callable[[Tensor], None] | None) -> Any:
    if isinstance(found, Tensor):
        own = Hollow(found)
        if fresh is not None:
            fresh(own)
        return own
    return type(found)(_wrapped(own, fresh) for own in found) if isinstance(found, (list, tuple)) else found


def _is_hollow(args: Iterable[Any]) -> bool:
    return any(isinstance(own, Hollow) or (isinstance(own, (list, tuple)) and _is_hollow(own)) for own in args)


def weightless(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The causal language model of a configuration, in eval mode, on tensors that hold nothing."""
    model = skeleton(config).to(dtype).eval().requires_grad_(False)
    hollow(model)
    return model


def hollow(model: nn.Module) -> None:
    """Make a model's tensors on the meta device hollow; tied ones stay tied."""
    made: dict[int, Tensor] = {}

    def hollowed(tensor: Tensor) -> Tensor:
        if isinstance(tensor, Hollow):
            return tensor
        if id(tensor) not in made:
            own = Hollow(tensor.detach())
            is_weight = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(own, tensor.requires_grad) if is_weight else own
            made[id(tensor)].plain = own.plain  # type: ignore[attr-defined]
        return made[id(tensor)]

    for module in model.modules():
        stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for own in stores:
            own.update({name: hollowed(tensor) for name, tensor in own.items() if tensor is not None})


def set_data(parameter: Tensor, data: Tensor) -> None:
    """Give a hollow parameter another hollow tensor's data."""
    parameter.data = data
    parameter.plain = data.plain  # type: ignore[attr-defined]


def n_bytes(tensors: Iterable[Tensor]) -> int:
    """The bytes of some tensors, those that share their storage once."""
    return sum({id(own): own.nbytes() for own in (tensor.untyped_storage() for tensor in tensors)}.values())


def weights_bytes(model: nn.Module) -> int:
    """The bytes of a model's parameters and buffers."""
    return n_bytes([*model.parameters(), *model.buffers()])


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The tensors that are in memory; made by `counting`.

    Attributes:
        now, peak: kind -> bytes, now and when they were most.
    """

    def __init__(self, vocabulary: int | None, held: Iterable[Tensor], gradients: Iterable[torch.Size]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: dict[str, int] = {}
        self.peak: dict[str, int] = {}
        self._most = self._total = 0
        self._kind: str | None = None
        self._hollow = False
        self._vocabulary, self._gradients = vocabulary, set(gradients)
        self._known: dict[int, Any] = {own.untyped_storage()._cdata: None for own in held}

    def restart(self) -> None:
        """Look for the peak from here on."""
        self._most, self.peak = self._total, dict(self.now)

    @contextmanager
    def kind(self, name: str) -> Iterator[None]:
        """Tensors that are made in a `with` block are of this kind."""
        self._kind = name
        try:
            yield
        finally:
            self._kind = None

    @contextmanager
    def without_numbers(self) -> Iterator[None]:
        """Tensors that are made of nothing in a `with` block hold nothing either."""
        self._hollow = True
        try:
            yield
        finally:
            self._hollow = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled, and being skipped takes longer than most operations

    def __torch_dispatch__(  # type: ignore[override]
        self, function: OpOverload, types: object, args: Args = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation, and count what it makes."""
        kwargs = kwargs or {}
        if function is _INDEX:  # how much a mask chooses is known, since masks hold numbers
            args = (args[0], [place for own in args[1] for place in _places(own)], *args[2:])
        if function is _DEVICE or _is_hollow(args) or (self._hollow and not any(isinstance(a, Tensor) for a in args)):
            return _hollow_run(function, args, kwargs, self._add)
        found = function(*args, **kwargs)
        for own in found if isinstance(found, (list, tuple)) else (found,):
            if isinstance(own, Tensor):
                self._add(own)
        return found

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place in self._known:
            return
        kind, size = self._kind or self._kind_of(tensor), storage.nbytes()
        self._known[place] = weakref.ref(storage, lambda _: self._remove(place, kind, size))
        self.now[kind] = self.now.get(kind, 0) + size
        self._total += size
        if self._total > self._most:
            self._most, self.peak = self._total, dict(self.now)

    def _remove(self, storage: int, kind: str, size: int) -> None:
        self._known.pop(storage, None)
        self.now[kind] -= size
        self._total -= size

    def _kind_of(self, tensor: Tensor) -> str:
        if tensor.ndim and tensor.shape[-1] == self._vocabulary and tensor.is_floating_point():
            return LOGITS
        return GRADIENTS if tensor.shape in self._gradients else ACTIVATIONS


def _nothing(dtype: torch.dtype) -> float | int | bool:
    return False if dtype is torch.bool else 0.0 if dtype.is_floating_point else 0


def _zeros(shape: Sequence[int], zero: float | int | bool) -> Any:
    return [_zeros(shape[1:], zero) for _ in range(shape[0])] if len(shape) else zero


def _places(index: Tensor | None) -> Sequence[Tensor | None]:
    """An index as numbers: those of a mask, where it holds numbers."""
    if index is None or index.dtype is not torch.bool or isinstance(index, Hollow):
        return [index]
    return index.nonzero(as_tuple=True)


@contextmanager
def counting(model: nn.Module, there: Sequence[Tensor] = ()) -> Iterator[Counted]:
    """Count the tensors that code makes in a `with` block.

    Args:
        model: weightless; its weights do not count, and the gradients of those that need them are a kind of their own.
        there: what is there already and does not count either.
    """
    config: Any = getattr(model, "config", None)
    vocabulary = None if config is None else config.get_text_config().vocab_size
    held = [*model.parameters(), *model.buffers(), *there]
    counted = Counted(vocabulary, held, (own.shape for own in model.parameters() if own.requires_grad))
    with counted:
        yield counted


def taken(model: nn.Module, run: Callable[[], object]) -> dict[str, int]:
    """The most that `run` has in memory beside the weights, by kind."""
    with counting(model) as counted:
        run()
    return counted.peak


def largest(*moments: Mapping[str, int]) -> dict[str, int]:
    """Of several moments the one at which most is in memory."""
    most = max(range(len(moments)), key=lambda i: sum(moments[i].values()))
    return dict(moments[most])


def edited(originals: int, edit: int, device: str) -> dict[str, int]:
    """What is in memory beside a model with an edit in it: what the edit replaced, and on a CPU the edit itself."""
    return {ORIGINALS: originals, **({EDIT: edit} if device == "cpu" else {})}


def ids_of(rows: int, length: int) -> Tensor:
    """Tokens (rows, length), whichever."""
    return torch.ones((rows, max(1, length)), dtype=torch.long)


@torch.no_grad()
def generation(model: PreTrainedModel, rows: int, prompt: int, new: int, sampled: bool = False) -> dict[str, int]:
    """The most that is in memory while a model generates: as it reads the prompts, or at the last token.

    Args:
        model: weightless.
        rows: how many are generated at once.
        prompt, new: tokens of each prompt, and tokens generated.
        sampled: whether they are drawn from a part of the vocabulary.
    """
    keep = {"logits_to_keep": 1} if accepts(model, "logits_to_keep") else {}

    def choose(logits: Tensor) -> None:
        """As transformers does: a copy in float32, and of that what the processors leave, and its probabilities."""
        scores = logits[:, -1].to(torch.float32, copy=True)
        if sampled:
            p = scores.softmax(-1)
            left = scores.masked_fill(p > 0, 0.0)
            del p
            left.softmax(-1)
        scores.argmax(-1)

    def read(length: int) -> Any:
        ids = ids_of(rows, length)
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, **keep)

    first = taken(model, lambda: choose(read(prompt).logits))
    before, one = torch.ones((rows, prompt + new - 1), dtype=torch.long), ids_of(rows, 1)
    with counting(model, [before, one]) as counted:
        cache = cache_of(read(prompt + new - 2))
        counted.restart()
        given = cache_argument(model, cache)
        output = model(input_ids=one, attention_mask=before, use_cache=True, **given, **keep)
        held = counted.now[ACTIVATIONS]
        choose(output.logits)
    last = dict(counted.peak)
    last[ACTIVATIONS] -= (held := min(held, last[ACTIVATIONS]))  # when a token is made little else is
    return largest(first, {CACHE: held, **last})
