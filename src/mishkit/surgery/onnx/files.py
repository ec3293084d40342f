"""Open, check and save ONNX models, with their external data."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import PureWindowsPath
from typing import Any

import onnx
import onnx_ir as ir

_SWAP = "mishkit.swap"


def opened(model: Any) -> ir.Model:
    if isinstance(model, (str, os.PathLike)):
        proto = onnx.load(model, load_external_data=False)
        folder = os.path.dirname(os.path.abspath(model))
    elif isinstance(model, onnx.ModelProto):
        proto, folder = model, ""
    else:
        found = model if isinstance(model, ir.Model) else getattr(model, "model", None)
        if not isinstance(found, ir.Model):
            raise TypeError(f"{_SWAP}: an ONNX model is needed, not {type(model).__name__}")
        for tensor in external_tensors(found):
            _check_external(tensor, os.fspath(tensor.base_dir) or os.curdir)
        return found
    try:
        opened = ir.from_proto(proto)
    except (ValueError, ir.serde.SerdeError) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(f"{_SWAP}: the ONNX model can't be read: {cause}") from error
    for tensor in external_tensors(opened):
        # A model in memory has no folder, so none of its external data is read.
        if folder:
            _check_external(tensor, folder)
            tensor.base_dir = folder
    return opened


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Every tensor of the model whose values are in another file."""
    return (one for one in (*_initializers(model), *_attributes(model)) if _is_external(one))


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
        elif not os.path.isfile(path):
            wrong = "where there is no file"
        elif os.stat(path).st_nlink > 1:
            wrong = "a hard link, which may be to a file outside of the model's folder"
        else:
            wrong = _wrong_extent(tensor, os.path.getsize(path))
    if wrong is not None:
        raise ValueError(
            f"{_SWAP}: the external data of {tensor.name!r} can't be read from {location!r}, "
            f"{wrong}"
        )


def _wrong_extent(tensor: ir.ExternalTensor, size: int) -> str | None:
    offset, length = tensor.offset or 0, tensor.length
    if length is not None and length != tensor.nbytes:
        return f"as its length is {length} bytes and its shape and type need {tensor.nbytes}"
    if offset + tensor.nbytes > size:
        return f"as bytes {offset} to {offset + tensor.nbytes} are needed and it has {size}"
    return None


def check_can_be_saved(model: ir.Model, in_memory: bool) -> None:
    if in_memory:
        raise ValueError(
            f"{_SWAP}: a model in memory without its external data can't be written to a file; "
            "give the model's path, or load it with its data"
        )
    if any(_is_external(tensor) for tensor in _attributes(model)):
        raise ValueError(
            f"{_SWAP}: a model with external data in a node's attribute can't be written to a file"
        )


def save(model: ir.Model, output: str, has_external: bool) -> None:
    """Write complete files, then move them into place; external data goes beside the model."""
    if os.path.exists(output) and not os.path.isfile(output):
        raise ValueError(f"{_SWAP}: output={output!r} is not a file")
    folder, name = os.path.split(output)
    data = f"{name}.data"
    with tempfile.TemporaryDirectory(prefix=".mishkit-", dir=folder or os.curdir) as new:
        written = os.path.join(new, name)
        ir.save(model, written, external_data=data if has_external else None)
        if has_external:
            onnx.checker.check_model(written)
            # There is no data file if all tensors were small enough for the model's own file.
            if os.path.exists(os.path.join(new, data)):
                os.replace(os.path.join(new, data), os.path.join(folder, data))
        os.replace(written, output)
