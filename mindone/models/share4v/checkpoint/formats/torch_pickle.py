"""Interpreter for the pickles inside torch's files. It builds descriptions of tensors and nothing else.

Python's own unpickler is not used, not even a restricted one: it sets attributes of objects, hashes what a file nests,
and reserves what a file asks for. This interpreter knows only the opcodes that `torch.save` writes for a mapping of
names to tensors. It never imports, calls or changes anything that a file names, its values are plain data of its own,
and size, depth and numbers are bounded.

Opcodes are documented in CPython's `Lib/pickletools.py`, the content in torch's `_utils.py` and `serialization.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CheckpointError, UnsafeCheckpointError

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
# torch writes about 150 bytes per tensor, so this is enough for some 400,000 tensors.
MAX_PICKLE_BYTES = 64 << 20
MAX_DEPTH = 16  # torch nests five levels: mapping, arguments, storage
MAX_INTEGER_BYTES = 8


class StorageType(NamedTuple):
    """Stands for a class such as torch.FloatStorage."""

    dtype: str


class Storage(NamedTuple):
    """A run of `numel` elements, stored in the archive's member `data/<key>`."""

    dtype: str
    key: str
    numel: int


class TensorRecord(NamedTuple):
    """A tensor as the pickle describes it: a view of a storage, in elements.

    The numbers are whatever the file says; `checked_layout` in formats/tensor.py decides whether they make sense.
    """

    storage: Storage
    offset: Any
    shape: Any
    stride: Any


class _Damaged(Exception):
    pass


class _Global(NamedTuple):
    """A name that a pickle may mention. `value` is set if it stands for a value, `call` if it can be applied."""

    value: Any = None
    call: Callable[[tuple[Any, ...]], Any] | None = None


class _Value(NamedTuple):
    """A value on the stack, with the number of containers nested inside it."""

    content: Any
    depth: int = 0


class _Mark:
    """Where an opcode such as TUPLE or SETITEMS starts."""


_MARK = _Value(_Mark())


def _new_mapping(arguments: tuple[Any, ...]) -> dict[str, Any]:
    if arguments:
        raise _Damaged("a mapping is created from arguments")
    return {}


def _rebuild_tensor(arguments: tuple[Any, ...]) -> TensorRecord:
    """Arguments of torch._utils._rebuild_tensor_v2: storage, offset, size, stride, requires_grad, hooks[, metadata]."""
    if len(arguments) not in (6, 7) or not isinstance(arguments[0], Storage) or (len(arguments) == 7 and arguments[6]):
        raise _Damaged("a tensor is described in a way that is not supported")
    return TensorRecord(*arguments[:4])


def _rebuild_parameter(arguments: tuple[Any, ...]) -> TensorRecord:
    """Arguments of torch._utils._rebuild_parameter: data, requires_grad, hooks."""
    if len(arguments) != 3 or not isinstance(arguments[0], TensorRecord):
        raise _Damaged("a parameter is described in a way that is not supported")
    return arguments[0]


GLOBALS: dict[tuple[str, str], _Global] = {
    ("collections", "OrderedDict"): _Global(call=_new_mapping),
    ("torch._utils", "_rebuild_tensor_v2"): _Global(call=_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Global(call=_rebuild_parameter),
    **{("torch", name): _Global(value=StorageType(dtype)) for name, dtype in STORAGES.items()},
}


class _Interpreter:
    """Runs one pickle. Each opcode is a method in OPCODES; everything it can build is plain data."""

    def __init__(self, data: bytes, path: Path) -> None:
        self.data, self.path = data, path
        self.position = 0
        self.stack: list[_Value] = []
        self.memo: dict[int, _Value] = {}  # a dict: a file's index does not reserve memory

    def run(self) -> Any:
        while True:
            opcode = self.take(1)
            if opcode == b".":
                return self.pop().content
            action = OPCODES.get(opcode)
            if action is None:
                raise _Damaged(f"opcode {opcode!r} at byte {self.position - 1} is not one that torch.save writes")
            action(self)

    # Reading bytes

    def take(self, size: int) -> bytes:
        taken = self.data[self.position : self.position + size]
        if len(taken) < size:
            raise _Damaged("it ends in the middle of an opcode")
        self.position += size
        return taken

    def number(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def line(self) -> str:
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise _Damaged("it ends in the middle of a name")
        text = self.data[self.position : end].decode("utf-8")
        self.position = end + 1
        return text

    # The stack

    def push(self, content: Any, depth: int = 0) -> None:
        if depth > MAX_DEPTH:
            raise _Damaged(f"values are nested more than {MAX_DEPTH} levels deep")
        self.stack.append(_Value(content, depth))

    def pop(self) -> _Value:
        if not self.stack or self.stack[-1] is _MARK:
            raise _Damaged("an opcode finds nothing to work on")
        return self.stack.pop()

    def pop_to_mark(self) -> list[_Value]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise _Damaged("a mark is missing")

    # Opcodes

    def protocol(self) -> None:
        self.take(1)

    def frame(self) -> None:
        self.take(8)

    def mark(self) -> None:
        self.stack.append(_MARK)

    def real_number(self) -> None:
        """Skip a float; floats occur only in metadata, which no tensor needs."""
        self.take(8)
        self.push(None)

    def integer(self) -> None:
        size = self.number(1)
        if size > MAX_INTEGER_BYTES:
            raise _Damaged(f"an integer of {size} bytes")
        self.push(self.number(size, signed=True))

    def text(self, length_bytes: int) -> None:
        self.push(self.take(self.number(length_bytes)).decode("utf-8", "strict"))

    def make_tuple(self, items: list[_Value]) -> None:
        self.push(tuple(item.content for item in items), 1 + max((item.depth for item in items), default=0))

    def tuple_of(self, count: int) -> None:
        self.make_tuple([self.pop() for _ in range(count)][::-1])

    def set_items(self, items: list[_Value]) -> None:
        target = self.pop()
        if not isinstance(target.content, dict) or len(items) % 2:
            raise _Damaged("an item is set on something that is not a mapping")
        depth = target.depth
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key.content) is not str:
                raise _Damaged(f"a mapping has a key of type {type(key.content).__name__}, expected text")
            if key.content in target.content:
                raise _Damaged(f"the name {key.content!r:.200} appears twice")
            target.content[key.content] = value.content
            depth = max(depth, 1 + value.depth)
        self.push(target.content, depth)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def named(self, module: str, name: str) -> None:
        found = GLOBALS.get((module, name))
        if found is None:
            raise UnsafeCheckpointError(
                f"{self.path} asks for {module}.{name}, which tensors do not need. A file that does so can run code in "
                "other programs, so it is rejected. Get the checkpoint as safetensors, or save only its tensors"
            )
        self.push(found if found.value is None else found.value)

    def stack_named(self) -> None:
        name, module = self.pop().content, self.pop().content
        if type(name) is not str or type(module) is not str:
            raise _Damaged("a global is not named by text")
        self.named(module, name)

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        is_call = isinstance(function.content, _Global) and function.content.call is not None
        if not is_call or type(arguments.content) is not tuple:
            raise _Damaged("something other than a tensor is built")
        self.push(function.content.call(arguments.content))

    def build(self) -> None:
        """A state dict's attributes (`_metadata`) are read and ignored: nothing takes a state from a file."""
        self.pop()
        if not self.stack or not isinstance(self.stack[-1].content, dict):
            raise _Damaged("a state is set on something that is not a mapping")

    def persistent(self) -> None:
        """A storage: ("storage", type, key, location, numel)."""
        identity = self.pop().content
        if type(identity) is not tuple or len(identity) != 5 or identity[0] != "storage":
            raise _Damaged("a storage is described in a way that is not supported")
        _, storage_type, key, _, numel = identity
        if not isinstance(storage_type, StorageType) or type(key) is not str or type(numel) is not int or numel < 0:
            raise _Damaged("a storage is described in a way that is not supported")
        self.push(Storage(storage_type.dtype, key, numel))

    def put(self, index: int) -> None:
        if not self.stack or self.stack[-1] is _MARK:
            raise _Damaged("an opcode finds nothing to remember")
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise _Damaged(f"value {index} is used before it is defined")
        self.stack.append(self.memo[index])


OPCODES: dict[bytes, Callable[[_Interpreter], None]] = {
    b"\x80": _Interpreter.protocol,
    b"\x95": _Interpreter.frame,
    b"(": _Interpreter.mark,
    b"N": lambda self: self.push(None),
    b"\x88": lambda self: self.push(True),
    b"\x89": lambda self: self.push(False),
    b"K": lambda self: self.push(self.number(1)),
    b"M": lambda self: self.push(self.number(2)),
    b"J": lambda self: self.push(self.number(4, signed=True)),
    b"\x8a": _Interpreter.integer,
    b"G": _Interpreter.real_number,
    b"X": lambda self: self.text(4),
    b"\x8c": lambda self: self.text(1),
    b"}": lambda self: self.push({}),
    b")": lambda self: self.push(()),
    b"t": lambda self: self.make_tuple(self.pop_to_mark()),
    b"\x85": lambda self: self.tuple_of(1),
    b"\x86": lambda self: self.tuple_of(2),
    b"\x87": lambda self: self.tuple_of(3),
    b"s": _Interpreter.set_item,
    b"u": lambda self: self.set_items(self.pop_to_mark()),
    b"c": lambda self: self.named(self.line(), self.line()),
    b"\x93": _Interpreter.stack_named,
    b"R": _Interpreter.reduce,
    b"b": _Interpreter.build,
    b"Q": _Interpreter.persistent,
    b"q": lambda self: self.put(self.number(1)),
    b"r": lambda self: self.put(self.number(4)),
    b"\x94": lambda self: self.put(len(self.memo)),
    b"h": lambda self: self.get(self.number(1)),
    b"j": lambda self: self.get(self.number(4)),
}


def read_tensor_records(data: bytes, path: Path) -> dict[str, TensorRecord]:
    """Read the pickle of a torch file: a mapping of names to tensors, or one with such a mapping at "state_dict".

    Args:
        data: the archive's data.pkl, at most MAX_PICKLE_BYTES.
        path: the file that it came from, for messages.

    Raises:
        UnsafeCheckpointError: the pickle asks for anything that tensors do not need; the message names it.
        CheckpointError: the pickle is damaged or holds something else.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise CheckpointError(f"{path} has a pickle of {len(data)} bytes inside, expected at most {MAX_PICKLE_BYTES}")
    try:
        content = _Interpreter(data, path).run()
    except (_Damaged, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} has a damaged or unsupported pickle inside: {error}") from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a mapping of names to tensors")
    for name, value in content.items():
        if not isinstance(value, TensorRecord):
            raise CheckpointError(
                f"{path} holds {name!r:.200}, a {type(value).__name__}; expected only names and tensors"
            )
    return dict(content)
