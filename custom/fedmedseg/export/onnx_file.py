"""ONNX: the network as a graph, with the metadata inside, held by onnxruntime against what torch says."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fedmedseg.core.compute import ComputeChoice
from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.export.metadata import require_package
from fedmedseg.export.network import Exportable, require_agreement
from fedmedseg.networks.compute import applied

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
INPUT, OUTPUT = "image", "logits"
LARGEST = 1_900_000_000
"""Bytes of weights that one ONNX file holds: protobuf ends at 2 GiB."""


def write_onnx(path: Path, source: Exportable, metadata: Mapping[str, Any]) -> float:
    """Write ``model.onnx``, and run it by onnxruntime on the CPU; the largest difference of a probability.

    Its input is one window of fixed shape. Attention is written out: the graph then has no kernel of its own for it.

    Raises:
        ConfigurationError: a package is not installed.
        FedMedSegError: the network is too large, has no such graph, or does not answer as torch does.
    """
    for name in PACKAGES:
        require_package(name)
    import onnx

    size = sum(tensor.numel() * tensor.element_size() for tensor in source.network.state_dict().values())
    if size > LARGEST:
        raise FedMedSegError(
            path.name,
            got=f"{size} bytes of weights",
            expected=f"at most {LARGEST}, which fit one ONNX file",
            remedy="export a MONAI bundle or TorchScript",
        )
    with applied(source.network, ComputeChoice(attention="explicit")), _quietly():
        try:
            torch.onnx.export(
                source.network,
                (source.example(),),
                str(path),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise FedMedSegError(
                path.name,
                got=f"{type(error).__name__} from torch.onnx",
                expected="a network with an ONNX graph",
                remedy="export a MONAI bundle or TorchScript",
                reason=Reason.INTERNAL,
            ) from error
    graph = onnx.load(str(path))
    for name, value in metadata.items():
        entry = graph.metadata_props.add()
        entry.key, entry.value = name, value if isinstance(value, str) else json.dumps(value)
    onnx.save(graph, str(path))
    onnx.checker.check_model(str(path))
    return require_agreement(source, _session(path), what=path.name)


def _session(path: Path) -> Any:
    """The file as onnxruntime runs it: from images to logits."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: torch.Tensor) -> torch.Tensor:
        (logits,) = session.run([OUTPUT], {INPUT: images.numpy()})
        return torch.from_numpy(logits)

    return run


@contextlib.contextmanager
def _quietly() -> Any:
    """Without what torch's exporter tells of its own progress."""
    told = logging.getLogger("torch.onnx")
    level = told.level
    told.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        told.setLevel(level)
