"""The header of a GGUF file, version 2 or 3: metadata and where its tensors lie, without the weights.

Metadata values stay the bytes that the file has. A vocabulary of 262,144 words is then skipped or copied in a
fraction of a second; the reader of the package `gguf` makes an array of every word, which took 14 s and 0.7 GB.
"""

import math
import mmap
import struct
from dataclasses import dataclass

MAGIC = b"GGUF"
ALIGNMENT = 32

# Types of metadata values: what `struct` calls them, their id in the file.
UINT32, FLOAT32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

F32, BF16 = 0, 30
# Tensor types: name, weights in a block, bytes of a block.
TENSOR_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}

EMBEDDING = "token_embd.weight"
HEAD = "output.weight"


class GgufError(Exception):
    """The file is not a GGUF file that this module reads."""


@dataclass
class Value:
    """A metadata value: its type and its bytes as the file has them."""

    type: int
    raw: bytes


@dataclass
class Tensor:
    """A tensor's place: `shape` with the contiguous dimension first, `offset` from the start of the data."""

    name: str
    shape: tuple
    type: int
    offset: int = 0

    @property
    def size_bytes(self):
        if self.type not in TENSOR_TYPES:
            raise GgufError(f"tensor `{self.name}` has type {self.type}, which is not known here")
        _, block, block_bytes = TENSOR_TYPES[self.type]
        return math.prod(self.shape) // block * block_bytes


@dataclass
class Header:
    """All before the weights."""

    metadata: dict
    tensors: list

    def weight_bytes_per_token(self):
        """Bytes of the matrices that a decode step reads once each.

        Norms are left out. The embedding counts once, as the head that it is tied to; beside a head of its own it
        counts not at all, since a step reads a single row of it.
        """
        matrices = {tensor.name: tensor for tensor in self.tensors if len(tensor.shape) > 1}
        if HEAD in matrices:
            matrices.pop(EMBEDDING, None)
        return sum(tensor.size_bytes for tensor in matrices.values())


class _Cursor:
    def __init__(self, data):
        self.data = data
        self.at = 0

    def take(self, code):
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def text(self):
        length = self.take("Q")
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8")

    def skip(self, value_type):
        if value_type in SCALARS:
            self.at += struct.calcsize("<" + SCALARS[value_type])
        elif value_type == STRING:
            self.at += 8 + struct.unpack_from("<Q", self.data, self.at)[0]
        elif value_type == ARRAY:
            item, count = self.take("I"), self.take("Q")
            if item in SCALARS:
                self.at += count * struct.calcsize("<" + SCALARS[item])
            else:
                for _ in range(count):
                    self.skip(item)
        else:
            raise GgufError(f"metadata of the unknown type {value_type}")


def read_header(path):
    """Reads the header of the file at `path`."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(data)
    except (GgufError, struct.error, ValueError) as error:
        raise GgufError(f"{path} is damaged or no GGUF file: {error}") from error


def _parse(data):
    if data[:4] != MAGIC:
        raise GgufError("it does not begin with GGUF")
    cursor = _Cursor(data)
    cursor.at = len(MAGIC)
    version = cursor.take("I")
    if version not in (2, 3):
        raise GgufError(f"GGUF version {version}; 2 and 3 are read here")
    n_tensors, n_values = cursor.take("Q"), cursor.take("Q")
    metadata = {}
    for _ in range(n_values):
        key, value_type = cursor.text(), cursor.take("I")
        start = cursor.at
        cursor.skip(value_type)
        metadata[key] = Value(value_type, data[start : cursor.at])
    tensors = []
    for _ in range(n_tensors):
        name = cursor.text()
        shape = tuple(cursor.take("Q") for _ in range(cursor.take("I")))
        tensors.append(Tensor(name, shape, cursor.take("I"), cursor.take("Q")))
    return Header(metadata, tensors)


def uint32(value):
    return Value(UINT32, struct.pack("<I", value))


def float32(value):
    return Value(FLOAT32, struct.pack("<f", value))


def string(text):
    return Value(STRING, _packed(text))


def write_header(file, header):
    """Writes the header in version 3, up to where the first tensor's data begin.

    Gives the tensors their offsets: in order, each at a multiple of the alignment. The caller writes the data of each
    tensor in that order, followed by `padding` of its size.
    """
    offset = 0
    for tensor in header.tensors:
        tensor.offset = offset
        offset += tensor.size_bytes + len(padding(tensor.size_bytes))
    file.write(MAGIC + struct.pack("<IQQ", 3, len(header.tensors), len(header.metadata)))
    for key, value in header.metadata.items():
        file.write(_packed(key) + struct.pack("<I", value.type) + value.raw)
    for tensor in header.tensors:
        file.write(_packed(tensor.name) + struct.pack("<I", len(tensor.shape)))
        file.write(struct.pack(f"<{len(tensor.shape)}QIQ", *tensor.shape, tensor.type, tensor.offset))
    file.write(padding(file.tell()))


def padding(size):
    """Zeros from `size` to the next multiple of the alignment."""
    return bytes(-size % ALIGNMENT)


def _packed(text):
    encoded = text.encode("utf-8")
    return struct.pack("<Q", len(encoded)) + encoded
