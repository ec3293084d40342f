"""Open and save ONNX models, with their external data."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Any, BinaryIO

import onnx
import onnx_ir as ir

from .edit import Edits

_SWAP = "mishkit.swap"
_LARGEST_FILE = 2_000_000_000
"""More bytes of weights than this go into a separate file: protobuf stops at 2 GiB."""
_LARGE = 1 << 20
"""Tensors with at least this many bytes begin at a page, so that runtimes can map them."""


@dataclass(frozen=True)
class Opened:
    """A model to be rewritten, and what it came from."""

    model: ir.Model
    proto: onnx.ModelProto | None = None
    """What the model was read from, if it was not given in its intermediate form."""
    edits: Edits | None = None
    folder: str | None = None
    """The folder of the model's file; None for a model in memory."""

    @property
    def has_external(self) -> bool:
        """Whether the values of a tensor are in another file."""
        if self.proto is not None:
            return any(True for _ in _external_protos(self.proto))
        return any(True for _ in external_tensors(self.model))

    def update(self) -> None:
        """Write what has changed into the ModelProto, if there is one."""
        if self.edits is not None:
            self.edits.apply()


def opened(model: Any) -> Opened:
    """Read a model, without its external data."""
    if isinstance(model, (str, os.PathLike)):
        path = os.fspath(model)
        return _read(_loaded(path), os.path.dirname(os.path.abspath(path)))
    if isinstance(model, onnx.ModelProto):
        return _read(model, None)
    parsed = model if isinstance(model, ir.Model) else getattr(model, "model", None)
    if not isinstance(parsed, ir.Model):
        raise TypeError(f"{_SWAP}: an ONNX model is needed, not {type(model).__name__}")
    for tensor in external_tensors(parsed):
        _check_external(tensor, os.fspath(tensor.base_dir) or os.curdir)
    return Opened(parsed)


def _loaded(path: str) -> onnx.ModelProto:
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe or a device may never end
        raise ValueError(f"{_SWAP}: {path} is not a file")
    try:
        return onnx.load_model(path, load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # whatever the parser of its format raises
        raise _unreadable(error) from error


def _read(proto: onnx.ModelProto, folder: str | None) -> Opened:
    try:
        if not proto.HasField("graph"):
            raise ValueError("there is no graph in it")
        _check_extents(proto)
        with _quiet():
            model = ir.from_proto(proto)
        edits = Edits(proto, model)
        external = list(_external_protos(proto))
    except Exception as error:  # a malformed model can fail anywhere
        raise _unreadable(error) from error
    # A model in memory has no folder, so none of its external data is read.
    if folder is not None:
        for _, tensor in external:
            _check_external(tensor, folder)
        for tensor in external_tensors(model):
            tensor.base_dir = folder
    return Opened(model, proto, edits, folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings about invalid parts: these stay as they are, or an error names them."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _unreadable(error: Exception) -> ValueError:
    cause = str(error.__cause__ or error).strip() or type(error).__name__
    return ValueError(f"{_SWAP}: the ONNX model can't be read: {one_line(cause)}")


def one_line(text: str) -> str:
    """The beginning of the text, in printable characters."""
    line = " ".join(text.split())[:200]
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Every tensor of the model whose values are in another file."""
    return (
        tensor for tensor in (*_initializers(model), *_attributes(model)) if _is_external(tensor)
    )


def _is_external(tensor: Any) -> bool:
    return isinstance(tensor, ir.ExternalTensor)


def _initializers(model: ir.Model) -> Iterator[Any]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            yield value.const_value


def _attributes(model: ir.Model) -> Iterator[Any]:
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in ir.traversal.RecursiveGraphIterator(graph):
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    yield attribute.value
                elif attribute.type == ir.AttributeType.TENSORS and not attribute.is_ref():
                    yield from attribute.value


def _check_external(tensor: ir.ExternalTensor, folder: str) -> None:
    """Reject external data that isn't wholly inside one file in the model's folder."""
    location = os.fspath(tensor.location)
    # PureWindowsPath splits at both kinds of separators; the model may come from either system.
    parts = PureWindowsPath(location)
    wrong = None
    if not location or "\0" in location:
        wrong = "that is no path"
    elif parts.anchor or ".." in parts.parts:
        wrong = "outside of the model's folder"
    else:
        root = os.path.realpath(folder)
        path = os.path.realpath(os.path.join(folder, location))
        if os.path.commonpath([root, path]) != root:
            wrong = "a link to outside of the model's folder"
        elif not os.path.exists(path):
            return  # missing data matters only to those who need it
        elif not os.path.isfile(path):
            wrong = "where there is no file"
        elif os.stat(path).st_nlink > 1:
            wrong = "a hard link, which may be to a file outside of the model's folder"
        else:
            wrong = _wrong_extent(tensor, os.path.getsize(path))
    if wrong is not None:
        raise ValueError(
            f"{_SWAP}: the external data of {one_line(repr(tensor.name))} can't be read from "
            f"{one_line(repr(location))}, {wrong}"
        )


def _wrong_extent(tensor: ir.ExternalTensor, size: int) -> str | None:
    offset, length = tensor.offset or 0, tensor.length
    if length is not None and length != tensor.nbytes:
        return f"as its length is {length} bytes and its shape and type need {tensor.nbytes}"
    if offset + tensor.nbytes > size:
        return f"as bytes {offset} to {offset + tensor.nbytes} are needed and it has {size}"
    return None


def check_can_be_saved(model: Opened, output: str) -> None:
    """Raise ValueError unless `save` can write the model to this file."""
    folder = os.path.dirname(os.path.abspath(output))
    if not os.path.isdir(folder):
        raise ValueError(f"{_SWAP}: there is no folder {folder}")
    if os.path.exists(output) and not os.path.isfile(output):
        raise ValueError(f"{_SWAP}: output={output!r} is not a file")
    if model.folder is not None or not model.has_external:
        return
    if model.proto is not None:
        raise ValueError(
            f"{_SWAP}: a model in memory without its external data can't be written to a file; "
            "give the model's path, or load it with its data"
        )
    if any(_is_external(tensor) for tensor in _attributes(model.model)):
        raise ValueError(
            f"{_SWAP}: a model with external data in a node's attribute can't be written to a file"
        )


def save(model: Opened, output: str) -> dict[str, str]:
    """Write complete files, then move them into place. External data in the output's folder stays
    where it is; other external data goes beside the model. Returns the tensors whose data is
    missing, each with the reason.
    """
    folder, name = os.path.split(os.path.abspath(output))
    data = f"{name}.data"
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix=".mishkit-", dir=folder) as temporary:
        new_file, new_data = os.path.join(temporary, name), os.path.join(temporary, data)
        if model.proto is None:
            weights = sum(getattr(tensor, "nbytes", 0) for tensor in _initializers(model.model))
            is_apart = model.has_external or weights > _LARGEST_FILE
            ir.save(model.model, new_file, external_data=data if is_apart else None)
        else:
            if model.folder is not None and not _is_same_folder(model.folder, folder):
                missing = _copy_data(model.proto, model.folder, new_data, data)
            onnx.save_model(model.proto, new_file)
        # There is no data file if all tensors were small enough for the model's own file.
        if os.path.exists(new_data):
            _move(new_data, os.path.join(folder, data))
        _move(new_file, os.path.join(folder, name))
    return missing


def _is_same_folder(first: str, second: str) -> bool:
    return os.path.realpath(first) == os.path.realpath(second)


def _move(source: str, place: str) -> None:
    """Put a file in its place, whole even if the machine loses power."""
    with open(source, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(source, place)


def _copy_data(proto: onnx.ModelProto, folder: str, new: str, name: str) -> dict[str, str]:
    """Copy all external data, which has been checked, into one file called `name`."""
    missing: dict[str, str] = {}
    copied: dict[tuple[str, int, int], int] = {}
    external = list(_external_protos(proto))
    if not external:
        return missing
    with open(new, "wb") as file:
        for entry, tensor in external:
            place = os.path.realpath(os.path.join(folder, tensor.location))
            if not os.path.isfile(place):
                location = one_line(repr(os.fspath(tensor.location)))
                missing[one_line(entry.name)] = f"its data in {location} is not there"
                continue
            extent = (place, tensor.offset or 0, tensor.nbytes)
            if extent not in copied:
                copied[extent] = _append(file, *extent)
            moved = {"location": name, "offset": copied[extent], "length": tensor.nbytes}
            unchanged = {
                pair.key: pair.value for pair in entry.external_data if pair.key not in moved
            }
            del entry.external_data[:]
            for key, value in {**moved, **unchanged}.items():
                entry.external_data.add(key=key, value=str(value))
    return missing


def _append(file: BinaryIO, place: str, offset: int, length: int) -> int:
    """Append bytes of another file to this one; returns where they begin."""
    size = 4096 if length >= _LARGE else 64
    file.write(bytes(-file.tell() % size))
    begin = file.tell()
    with open(place, "rb") as source:
        source.seek(offset)
        while length > 0 and (part := source.read(min(length, _LARGE))):
            file.write(part)
            length -= len(part)
    return begin


def _check_extents(proto: onnx.ModelProto) -> None:
    for entry in _protos(proto):
        if entry.data_location != entry.EXTERNAL:
            continue
        extent = {pair.key: pair.value for pair in entry.external_data}
        numbers = [extent.get(key, "0") for key in ("offset", "length")]
        if min(entry.dims, default=0) < 0 or not all(
            number.isascii() and number.isdigit() for number in numbers
        ):
            raise ValueError(f"shape, offset or length of {entry.name!r} is no number from 0 on")


def _external_protos(
    proto: onnx.ModelProto,
) -> Iterator[tuple[onnx.TensorProto, ir.ExternalTensor]]:
    """Every tensor, anywhere in the model, whose values are in another file."""
    for entry in _protos(proto):
        if entry.data_location == entry.EXTERNAL:
            tensor = ir.serde.deserialize_tensor(entry)
            assert isinstance(tensor, ir.ExternalTensor)
            yield entry, tensor


def _protos(proto: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model, graph, function or node."""
    if isinstance(proto, onnx.TensorProto):
        yield proto
        return
    for field, value in proto.ListFields():
        if field.message_type is None or field.name == "metadata_props":
            continue
        for part in value if field.is_repeated else (value,):
            yield from _protos(part)
