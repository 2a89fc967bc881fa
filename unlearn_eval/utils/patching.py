"""Changes to other packages at run time: each is registered with what it needs, and refused where that is missing.

A room that changes a package has one file `patching.py` with a list, `PATCHES`. Every change is a function under
`@PATCHES.add(...)`. Calling it checks its places first; `unlearn-eval env` lists all of them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeVar

from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.terminal import say

P = ParamSpec("P")
R = TypeVar("R")
FITS, MISFIT, ABSENT = "fits", "does not fit", "not installed"


class Expected(Protocol):
    """Something that a patch needs from another package."""

    def misfit(self) -> str | None:
        """The difference between what is expected and what is installed, or None."""


@dataclass(frozen=True)
class Place:
    """An object of another package that a patch changes or relies on.

    Attributes:
        path: `module:attribute.of.it`, or a module alone.
        takes: the first parameters of its signature, separated by commas; None accepts any object.
        mentions: texts that its source must contain.
    """

    path: str
    takes: str | None = None
    mentions: tuple[str, ...] = ()

    def misfit(self) -> str | None:
        """The difference between this and what is installed, or None."""
        module, _, names = self.path.partition(":")
        try:
            found: Any = importlib.import_module(module)
        except Exception as error:  # another package may fail in any way
            return f"{module} cannot be imported ({type(error).__name__}: {' '.join(str(error).split())[:150]})"
        for name in filter(None, names.split(".")):
            if not hasattr(found, name):
                return f"{module} has no {names}"
            found = getattr(found, name)
        if self in _fitting and _fitting[self] is found:
            return None
        reason = self._other_signature(found) or self._other_source(found)
        if reason is None:
            _fitting[self] = found
        return reason

    def _other_signature(self, found: Any) -> str | None:
        if self.takes is None:
            return None
        expected = [name.strip() for name in self.takes.split(",")]
        try:
            parameters = list(inspect.signature(found).parameters)
        except (TypeError, ValueError):
            return f"{self.path} has no signature; expected ({self.takes})"
        if parameters[: len(expected)] != expected:
            return f"{self.path} takes ({', '.join(parameters)}); expected ({self.takes})"
        return None

    def _other_source(self, found: Any) -> str | None:
        if not self.mentions:
            return None
        try:
            source = inspect.getsource(inspect.unwrap(found))
        except (OSError, TypeError):
            return f"{self.path} has no source to compare"
        missing = [text for text in self.mentions if text not in source]
        return f"{self.path} does not contain {missing[0]!r}" if missing else None


_fitting: dict[Place, Any] = {}  # what was found at a place and fits: a source is read once


@dataclass(frozen=True)
class OneOf:
    """Places of several versions of a package, of which one must fit.

    Attributes:
        places: the newest version's last; its misfit is the one that is reported.
    """

    places: tuple[Place, ...]

    def misfit(self) -> str | None:
        """None if one of them fits."""
        found = [place.misfit() for place in self.places]
        return None if None in found else found[-1]


@dataclass(frozen=True)
class Status:
    """One patch and the package that is installed.

    Attributes:
        name, package, changes: as in `Patch`.
        tested: the versions with which it was tested.
        version: the installed version, or None.
        status: `fits`, `does not fit` or `not installed`.
        reason: the difference, if it does not fit.
    """

    name: str
    package: str
    changes: str
    tested: tuple[str, ...]
    version: str | None
    status: str
    reason: str | None


@dataclass(frozen=True)
class Patch:
    """A change of another package at run time.

    Attributes:
        name: a short name.
        package: the package's import name.
        changes: what it changes and why, in one sentence.
        tested: versions with which it was tested.
        expects: what must be as expected.
        distributions: names under which the package is distributed.
    """

    name: str
    package: str
    changes: str
    tested: tuple[str, ...]
    expects: tuple[Expected, ...]
    distributions: tuple[str, ...]

    @property
    def version(self) -> str | None:
        """The installed version, or None."""
        for name in self.distributions:
            try:
                return importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        return None

    def misfit(self) -> str | None:
        """The first difference between what is expected and what is installed, or None."""
        return next((reason for place in self.expects if (reason := place.misfit()) is not None), None)

    def check(self) -> None:
        """Refuse a package that is not as expected.

        Raises:
            UserError: the difference, the installed version, and the versions to install.
        """
        if reason := self.misfit():
            installed = f"{self.package} {self.version or '(unknown version)'}"
            raise UserError(
                f"cannot apply the patch '{self.name}' to {installed}: {reason}",
                f"install a tested version ({self.distributions[0]} {' or '.join(self.tested)}); "
                "`unlearn-eval env` lists all patches",
            )

    def status(self) -> Status:
        """Whether the patch fits what is installed. This imports the package."""
        installed = importlib.util.find_spec(self.package) is not None
        reason = self.misfit() if installed else None
        status = ABSENT if not installed else MISFIT if reason else FITS
        return Status(self.name, self.package, self.changes, self.tested, self.version, status, reason)


class Patches:
    """The patches that a room applies to one package.

    Args:
        package: the package's import name.
        tested: versions with which all of them were tested.
        distributions: names under which the package is distributed; the package's name by default.
    """

    def __init__(self, package: str, tested: tuple[str, ...], distributions: tuple[str, ...] = ()) -> None:
        self._package, self._tested = package, tested
        self._distributions = distributions or (package,)
        self._known: dict[str, Patch] = {}

    def add(
        self, name: str, changes: str, *expects: Expected, package: str | None = None, tested: tuple[str, ...] = ()
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Register the decorated function as a patch; calling it checks first that the patch fits.

        Args:
            name: a short name.
            changes: what it changes and why, in one sentence.
            expects: what must be as expected.
            package: another package than the room's, with its own `tested` versions.
            tested: versions of that package.
        """
        if name in self._known:
            raise AssertionError(f"two patches are called {name}")
        own = package is None
        patch = self._known[name] = Patch(
            name,
            package or self._package,
            changes,
            self._tested if own else tested,
            expects,
            self._distributions if own else (str(package),),
        )

        def decorate(function: Callable[P, R]) -> Callable[P, R]:
            @functools.wraps(function)
            def checked(*args: P.args, **kwargs: P.kwargs) -> R:
                patch.check()
                return function(*args, **kwargs)

            return checked

        return decorate

    def __iter__(self) -> Iterator[Patch]:
        """The patches, in the order in which they were registered."""
        return iter(self._known.values())

    def __getitem__(self, name: str) -> Patch:
        """A patch by its name."""
        return self._known[name]


def wrap(owner: Any, name: str, around: Callable[[Any], Any]) -> None:
    """Replace `owner.name` by `around(owner.name)`, once: a second call changes nothing.

    The replacement keeps the name, the documentation and (for `inspect`) the signature of the original. A static method
    stays one.
    """
    original = getattr(owner, name)
    if getattr(original, _MARK, None) == around.__qualname__:
        return
    replacement = functools.wraps(original)(around(original))
    setattr(replacement, _MARK, around.__qualname__)
    static = isinstance(inspect.getattr_static(owner, name), staticmethod)
    setattr(owner, name, staticmethod(replacement) if static else replacement)


def warn_of_misfit(apply: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
    """Apply a patch that only saves time; where it does not fit, one line on stderr says so, and None comes back."""
    try:
        return apply(*args, **kwargs)
    except UserError as error:
        say(f"unlearn-eval: slower than it could be: {' '.join(str(error).split())}")
        return None


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` within a `with` block, and what it was afterwards; `value` keeps its signature."""
    before = inspect.getattr_static(owner, name)  # a descriptor is put back as it was
    setattr(owner, name, functools.wraps(getattr(owner, name))(value))
    try:
        yield
    finally:
        setattr(owner, name, before)


_MARK = "_unlearn_eval_patched_by"
