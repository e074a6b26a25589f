"""A trained network in one file that runs without this package: ONNX, torch.export or AOTInductor.

Source: `docs/export.md`.
"""

from __future__ import annotations

import importlib.util
import io
import json
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

import ief_kernels
from iefvad.checkpoints.calibration import CALIBRATION, Calibration, fingerprint
from iefvad.checkpoints.hub import IEFVAD
from iefvad.model.portable import START, PortableNetwork
from iefvad.utils.errors import UserError
from iefvad.utils.files import write_bytes, write_with

Format: TypeAlias = Literal["onnx", "torch-export", "aoti"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2", "aoti": ".pt2"}
KEY = "iefvad"
"""Name of the metadata in every format."""
_EXTRA = f"{KEY}.json"  # torch.export.load(path, extra_files={"iefvad.json": ""}) fills it
_LARGEST = (1 << 31) - (1 << 24)  # an ONNX file ends at 2 GiB
_PACKAGES = ("onnx", "onnxscript")


def export_model(model: nn.Module, path: Path, to: Format, *, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Write a trained network with its standardisation, its recursion as input and output, and its metadata.

    Batch and number of segments are free, up to the number of segments that the network sees at once. The released
    variant takes exactly this number, because its attention sees the padding.

    Args:
        model: A loaded model; it is not changed.
        path: The file that is written.
        to: Its format.
        device: Where an AOTInductor package will run. The others run anywhere.

    Returns:
        The metadata, JSON values: see `describe`.

    Raises:
        UserError: the network cannot be exported in this format, a package or compiler is missing, or the file cannot
            be written.
    """
    if not isinstance(model, IEFVAD):
        raise UserError(
            f"a {type(model).__name__} network cannot be exported: only IEF-VAD networks can, which carry a state on."
        )
    if to == "onnx" and (missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]):
        raise UserError(f"--to onnx needs {' and '.join(missing)}: pip install 'iefvad[export]'.")
    if to == "aoti" and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        raise UserError("--to aoti compiles C++, and no compiler was found: install g++ or clang++.")
    longest = int(model.provenance.get("chunk", 256))
    if to == "onnx" and (lacking := _lacking(model)):
        raise UserError(f"--to onnx cannot express {lacking}: use --to torch-export or aoti.")
    try:
        network = PortableNetwork(model, longest).to(device)
    except ValueError as error:
        raise UserError(f"this network cannot be exported: {error}. Train it with --temporal kalman.") from None
    metadata = describe(model, network, longest)
    if to == "onnx" and _size(network) > _LARGEST:
        raise UserError("the network is larger than 2 GiB, where an ONNX file ends: use --to torch-export.")
    with _quiet(), torch.no_grad():
        program = _traced(network, longest, fixed=model.config.released)
        if to == "onnx":
            write_bytes(path, _onnx(program, network, metadata))
        elif to == "torch-export":
            file = io.BytesIO()
            torch.export.save(program, file, extra_files={_EXTRA: json.dumps(metadata)})
            write_bytes(path, file.getvalue())
        else:
            write_with(path, lambda partial: _compile(program, partial, metadata))
    return metadata


def describe(model: IEFVAD, network: PortableNetwork, longest: int) -> dict[str, Any]:
    """Return the metadata of an exported file: what a program must know to use the network.

    Args:
        model: The loaded model.
        network: What is exported of it.
        longest: Maximum number of segments per call.

    Returns:
        Shapes of inputs and outputs by name, "width" of the features, "window" of the attention or None, "chunk",
        "threshold" and where it comes from, "standardize" (whether features are standardised inside), "classes" of the
        scores, "start" (mean and variance before the first segment), "encoder" (how features are made), "model"
        (fingerprint of the weights) and "version".
    """
    config = model.config
    segments: int | str = longest if config.released else "segments"
    shapes: dict[str, list[int | str]] = {name: ["batch", segments, config.dim] for name in network.streams}
    shapes |= {name: ["batch", network.width] for name in ("state_mean", "state_var", "next_mean", "next_var")}
    shapes |= {name: ["batch", segments] for name in ("scores", "image_weight")}
    encoder = dict(model.provenance.get("encoder") or {})
    for name in ("image_weights", "event_weights"):
        if isinstance(encoder.get(name), str):  # the file is made to be shared: names stay, folders do not
            encoder[name] = re.split(r"[\\/]", encoder[name])[-1]
    threshold, origin = _threshold(model)
    return {
        "version": ief_kernels.__version__,
        "model": fingerprint(model),
        "method": model.provenance.get("method", "unknown"),
        "inputs": {name: shapes[name] for name in network.inputs},
        "outputs": {name: shapes[name] for name in network.outputs},
        "width": config.dim,
        "chunk": longest,
        "window": config.window,
        "standardize": config.standardize,
        "classes": ["abnormal"],
        "threshold": threshold,
        "threshold_origin": origin,
        "start": dict(zip(("state_mean", "state_var"), START, strict=True)) if network.recursive else {},
        "encoder": encoder,
    }


def _threshold(model: IEFVAD) -> tuple[float, str]:
    """The threshold as detection chooses it: that of the calibration of these weights, else the model's, else 0.5."""
    path = None if model.folder is None else model.folder / CALIBRATION
    if path is not None and path.is_file():
        found = Calibration.read(path)
        if found.model == fingerprint(model):
            return found.threshold, f"calibration: at most {found.allowed:g} false alarms per hour allowed"
    known = model.provenance.get("threshold")
    if known is not None:
        return float(known), "the model's own: 1% of its held-out normal segments exceed it"
    return 0.5, "nothing is known about this model's scores"


def _lacking(model: IEFVAD) -> str:
    """Name what a network has and ONNX has no operator for; "" where there is nothing."""
    if model.config.repair:
        return "the repair of masked features (--repair), which factorises a matrix"
    if model.config.covariance_rank:
        return "low-rank covariances (--covariance-rank), which factorise a matrix"
    return ""


def _size(network: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in network.state_dict().values())


def _traced(network: PortableNetwork, longest: int, *, fixed: bool) -> torch.export.ExportedProgram:
    config, device = network.network.config, next(network.network.parameters()).device
    # 0 and 1 are special sizes for torch.export; a free size must be another.
    batch, segments = torch.export.Dim("batch", min=1, max=1 << 16), torch.export.Dim("segments", min=1, max=longest)
    free = longest > 2 and not fixed
    length = max(3, longest // 2 + 1) if free else longest
    length = min(length, longest)
    example: list[torch.Tensor] = []
    dynamic: list[dict[int, Any]] = []
    for name in network.inputs:
        if name in network.streams:
            example.append(torch.zeros(3, length, config.dim, device=device))
            dynamic.append({0: batch, 1: segments} if free else {0: batch})
        else:
            example.append(torch.ones(3, network.width, device=device))
            dynamic.append({0: batch})
    program = torch.export.export(network, tuple(example), dynamic_shapes=(tuple(dynamic),), strict=False)
    for graph in program.graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # lines of source with the folders of this machine
    return program


def _onnx(program: torch.export.ExportedProgram, network: PortableNetwork, metadata: dict[str, Any]) -> bytes:
    made = torch.onnx.export(
        program,
        (),
        dynamo=True,
        input_names=list(network.inputs),
        output_names=list(network.outputs),
        verbose=False,
    )
    assert made is not None
    made.model.metadata_props[KEY] = json.dumps(metadata)
    for graph in (made.model.graph, *(function.graph for function in made.model.functions.values())):
        for node in graph:
            node.metadata_props.clear()  # names of Python modules and lines of source
    proto = made.model_proto
    first = proto.graph.input[0].type.tensor_type.shape.dim
    names = {dim.dim_param: name for dim, name in zip(first, ("batch", "segments"), strict=False) if dim.dim_param}
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:  # torch calls them s26, and makes sums of them
                dim.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), dim.dim_param)
    data: bytes = proto.SerializeToString()
    return data


def _compile(program: torch.export.ExportedProgram, path: Path, metadata: dict[str, Any]) -> None:
    from torch._inductor import aoti_compile_and_package

    package = path.with_name(f"{path.name}.pt2")  # the name must end so
    try:
        settings = {"aot_inductor.metadata": {KEY: json.dumps(metadata)}}
        aoti_compile_and_package(program, package_path=str(package), inductor_configs=settings)
        package.replace(path)
    finally:
        package.unlink(missing_ok=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the notes of exporters on their own insides away from the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
