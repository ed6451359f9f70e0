"""A pickle reader that cannot call anything.

Whole modules lie pickled in the authors' checkpoints, and a pickle is a program: what Python's own machine reads
it also runs. Here the standard library's disassembler (`pickletools`) reads the opcodes, and a machine of its
own gives each the least meaning that is needed to find tensors. Nothing is imported by name, nothing is called,
no attribute of a real object is set: an object of whatever class comes out as a `Stub`.
"""

import pickletools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from stage_rt import errors
from stage_rt.errors import CheckpointError

MAX_STEPS = 1_000_000
"""A pickle of 1,500 tensors has some 50,000 opcodes. A step is an opcode, or as much work as one."""
MAX_BITS = 128
"""Of an integer; the magic number of older files has 77."""
MAX_NAME = 1000
NAME_STEP = 16
"""Characters of a made up name that are a step: two texts in the memo can be joined again and again."""

_ROOTS = sys.stdlib_module_names | {"__builtin__", "nt", "posix"}
_HARMLESS = {
    "_codecs.encode",
    "argparse.Namespace",
    "collections.OrderedDict",
    "collections.defaultdict",
    "copyreg._reconstructor",
    "copy_reg._reconstructor",
    "datetime.datetime",
    "datetime.timedelta",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    *(
        f"{module}.{name}"
        for module in ("builtins", "__builtin__")
        for name in ("set", "frozenset", "bytearray", "complex", "object", "range", "slice")
    ),
}
"""Names of the standard library that data are pickled with; a call of any other is there to do harm."""

_CONSTANTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_SETS = {"builtins.set", "__builtin__.set", "builtins.frozenset", "__builtin__.frozenset"}
_KEYS = (str, int, float, bytes, type(None))


def printable(text: str) -> str:
    """``text`` of a file that may be hostile, fit for a message: no control characters, and not for ever."""
    return errors.printable(text[:200])


@dataclass(frozen=True, eq=False, slots=True)
class Name:
    """A class or function as a pickle names it; it may exist here or not."""

    path: str

    def __str__(self) -> str:
        return printable(self.path)


@dataclass(eq=False, slots=True)
class Stub:
    """An object of a class that is not looked for; ``state`` is what it would have had in its ``__dict__``."""

    of: Name
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pickle:
    """What a pickle holds: dicts, lists, tuples, strings, numbers, what ``rebuild`` made, and stubs.

    ``calls`` are the names it asks to call beyond those known, sorted.
    """

    value: Any
    calls: tuple[str, ...]


Rebuild = Callable[[str, tuple[Any, ...]], Any]


def read_pickle(stream: IO[bytes], *, where: str, storage: Callable[[Any], Any], rebuild: Rebuild) -> Pickle:
    """Read one pickle from ``stream``, which is left behind its last opcode.

    Args:
        stream: the pickle.
        where: what the pickle is, for messages.
        storage: a persistent id to what stands for it.
        rebuild: called as ``rebuild(name, arguments)`` for every call the pickle asks for; returns what stands for
            the result, or NotImplemented for a name it does not know.

    Raises:
        CheckpointError: the pickle is damaged, uses an opcode that no checkpoint needs, is too long, or asks
            for a call that would do harm if it were made.
    """
    machine = _Machine(storage, rebuild)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            machine.execute(opcode.name, argument)
    except _TooLongError:
        raise CheckpointError(f"{where} asks for more than {MAX_STEPS} steps, no checkpoint does") from None
    except CheckpointError:
        raise
    except Exception as error:  # Whatever a damaged pickle trips over, from its text to the machine's stack.
        raise CheckpointError(
            f"{where} is damaged ({type(error).__name__}: {printable(str(error))})"
        ) from None
    harmful = sorted(call for call in machine.calls if call.partition(".")[0] in _ROOTS)
    if harmful:
        raise CheckpointError(
            f"{where} would run `{printable(harmful[0])}` when loaded: it was not run, but get the file from a "
            "source you trust"
        )
    return Pickle(machine.stack[-1], tuple(sorted(map(printable, machine.calls))))


class _TooLongError(Exception):
    """The pickle asks for more work than any checkpoint."""


class _Machine:
    """The pickle machine, less everything that acts."""

    def __init__(self, storage: Callable[[Any], Any], rebuild: Rebuild) -> None:
        self.stack: list[Any] = []
        self.calls: set[str] = set()
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._steps = 0
        self._storage = storage
        self._rebuild = rebuild

    def execute(self, opcode: str, argument: Any) -> None:
        """Do one opcode."""
        self._count(1)
        if opcode in _CONSTANTS:
            if isinstance(argument, int) and argument.bit_length() > MAX_BITS:
                raise ValueError(f"an integer of {argument.bit_length()} bits has no place in a checkpoint")
            self.stack.append(argument)
        elif opcode in _VALUES:
            self.stack.append(_VALUES[opcode])
        elif opcode in _TUPLES:
            self._tuple(_TUPLES[opcode])
        elif act := getattr(self, f"_{opcode.lower()}", None):
            act(*([] if argument is None else [argument]))
        else:
            raise ValueError(f"opcode {opcode} has no place in a checkpoint")

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise _TooLongError

    def _proto(self, version: int) -> None:
        if version > 5:
            raise ValueError(f"pickle protocol {version} is unknown")

    def _frame(self, length: int) -> None:
        """Frames serve the reading, which is done elsewhere."""

    def _stop(self) -> None:
        if len(self.stack) != 1 or self._marks:
            raise ValueError("a pickle ends with one object")

    def _mark(self) -> None:
        self._marks.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self._marks.pop()
        return items

    def _pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._since_mark()

    def _pop_mark(self) -> None:
        self._since_mark()

    def _dup(self) -> None:
        self.stack.append(self.stack[-1])

    def _put(self, index: int) -> None:
        self._memo[index] = self.stack[-1]

    _binput = _long_binput = _put

    def _memoize(self) -> None:
        self._put(len(self._memo))

    def _get(self, index: int) -> None:
        self.stack.append(self._memo[index])

    _binget = _long_binget = _get

    def _tuple(self, size: int | None = None) -> None:
        if size is None:
            items = self._since_mark()
        else:
            if len(self.stack) < size:
                raise ValueError("the stack is too short for a tuple")
            items = self.stack[-size:]
            del self.stack[-size:]
        self.stack.append(tuple(items))

    def _empty_tuple(self) -> None:
        self.stack.append(())

    def _empty_list(self) -> None:
        self.stack.append([])

    # Sets are read as lists: a hash of hostile contents can take for ever.
    _empty_set = _empty_list

    def _list(self) -> None:
        self.stack.append(self._since_mark())

    _frozenset = _list

    def _append(self) -> None:
        item = self.stack.pop()
        self._extend([item])

    def _appends(self) -> None:
        self._extend(self._since_mark())

    _additems = _appends

    def _extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def _empty_dict(self) -> None:
        self.stack.append({})

    def _dict(self) -> None:
        items = self._since_mark()
        self.stack.append({})
        self._update(items)

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def _setitems(self) -> None:
        self._update(self._since_mark())

    def _update(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(_plain(zip(items[::2], items[1::2], strict=True)))

    def _global(self, words: str) -> None:
        module, _, name = words.partition(" ")
        self._named(module, name)

    def _stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._named(module, name)

    def _named(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > MAX_NAME:
            raise ValueError("a class has a short name")
        self._count((len(module) + len(name)) // NAME_STEP)
        self.stack.append(Name(f"{module}.{name}"))

    def _persid(self, key: Any) -> None:
        self.stack.append(self._storage(key))

    def _binpersid(self) -> None:
        self._persid(self.stack.pop())

    def _newobj(self) -> None:
        _, kind = self.stack.pop(), self.stack.pop()
        self.stack.append(Stub(_name(kind)))

    def _newobj_ex(self) -> None:
        self.stack.pop()
        self._newobj()

    def _inst(self, words: str) -> None:
        arguments = tuple(self._since_mark())
        self._global(words)
        self._call(self.stack.pop(), arguments)

    def _obj(self) -> None:
        kind, *arguments = self._since_mark()
        self._call(kind, tuple(arguments))

    def _reduce(self) -> None:
        arguments, callee = self.stack.pop(), self.stack.pop()
        self._call(callee, arguments if isinstance(arguments, tuple) else ())

    def _call(self, callee: Any, arguments: tuple[Any, ...]) -> None:
        path = _name(callee).path
        if path == "collections.OrderedDict":
            made: Any = self._ordered(*arguments)
        elif path in _SETS and arguments and isinstance(arguments[0], list):
            made = arguments[0]
        else:
            made = self._rebuild(path, arguments)
        if made is NotImplemented:
            if path not in _HARMLESS:
                self.calls.add(path)
            made = Stub(_name(callee))
        self.stack.append(made)

    def _ordered(self, pairs: Any = ()) -> dict[Any, Any]:
        # Python 2 wrote the items as an argument. It can be one long list in many calls.
        self._count(len(pairs))
        return dict(_plain(pairs))

    def _build(self) -> None:
        state = self.stack.pop()
        # The state of an object with slots is a pair of dicts.
        state = state[0] if isinstance(state, tuple) and state else state
        if isinstance(self.stack[-1], Stub) and isinstance(state, dict):
            self.stack[-1].state = state


def _name(callee: Any) -> Name:
    if isinstance(callee, Stub):
        return callee.of
    if not isinstance(callee, Name):
        raise ValueError(f"a {type(callee).__name__} is no class")
    return callee


def _plain(pairs: Any) -> Iterator[tuple[Any, Any]]:
    """Pairs with keys that are quick to hash; nothing that is looked for has another."""
    return ((key, value) for key, value in pairs if isinstance(key, _KEYS))
