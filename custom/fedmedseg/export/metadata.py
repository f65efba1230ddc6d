"""metadata.json of a MONAI bundle, as the bundle specification asks for it [0], and the check against a schema.

[0] https://docs.monai.io/en/stable/mb_specification.html
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from importlib import metadata, resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fedmedseg
from fedmedseg.core.errors import ConfigurationError, FedMedSegError, Reason
from fedmedseg.export.monai_log import quiet_monai
from fedmedseg.export.network import Exportable
from fedmedseg.export.run_facts import RunFacts
from fedmedseg.segmentation.predicted_files import NOTICE

SCHEMA = "metadata_schema.json"
OFFICIAL = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
"""MONAI's own schema, which the metadata names; it is a download, and nothing here downloads."""
NOT_GIVEN = "Not given."
STRUCTURES = "Segmentation of {structures} in {modality}"
LANDMARKS = "Landmarks {structures} in {modality}, as {marks}"
MODALITIES = {"mr": "MR", "ct": "CT"}


def metadata_of(source: Exportable, *, facts: RunFacts | None, licences: str | None) -> dict[str, Any]:
    """All that metadata.json holds. Nothing in it comes from a patient or names a site or a path."""
    modality = MODALITIES[source.data.modality]
    structures = ", ".join(source.labels.values())
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": modality,
        "num_channels": len(source.channels),
        "spatial_shape": list(source.shape),
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": not source.whole,
        "channel_def": {str(number): name for number, name in enumerate(source.channels)},
    }
    prediction = image | {
        "format": "labels",
        "num_channels": source.classes,
        "channel_def": {"0": "background"} | {str(number): name for number, name in source.labels.items()},
    }
    return {
        "schema": OFFICIAL,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by fedmedseg {fedmedseg.__version__}"},
        "name": f"{source.origin.study}-{source.origin.model}",
        "monai_version": metadata.version("monai"),
        "pytorch_version": metadata.version("torch"),
        "numpy_version": metadata.version("numpy"),
        "required_packages_version": _required(source),
        "task": (STRUCTURES if source.marks == "structures" else LANDMARKS).format(
            structures=structures, modality=modality, marks=source.marks
        ),
        "description": (
            f"Trained by fedmedseg's system {source.origin.system}, study {source.origin.study}, model "
            f"{source.origin.model}; the model card, README.md, says what that is. The network gives logits; "
            f"{source.activation} makes probabilities of them."
        ),
        "authors": "Those who trained the model; the model card, README.md, says how",
        "copyright": "Those who trained the model",
        "intended_use": NOTICE,
        "data_type": modality,
        "data_source": f"Data of role {source.data.role}, of study {source.origin.study}",
        "data_license": licences or NOT_GIVEN,
        "image_classes": ", ".join(source.channels),
        "label_classes": {"0": "background"} | {str(number): name for number, name in source.labels.items()},
        "eval_metrics": _metrics(facts.about(source.labels.values())) if facts else {},
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": prediction}},
        "fedmedseg": {
            "experiment_sha256": source.origin.experiment,
            "tensors_sha256": source.digest,
            "preparation": {
                "spacing_mm": list(source.data.spacing),
                "longest_edge": source.data.longest_edge,
                "intensity": source.data.intensity,
                "window_hu": list(source.data.window) if source.data.modality == "ct" else None,
                "orientation": "RAS" if source.data.spatial_dims == 3 else "in-plane towards RAS, slices last",
            },
            "window_overlap": source.overlap,
            "activation": source.activation,
        },
    }


def _metrics(facts: RunFacts) -> dict[str, float]:
    figures = {f"dice/{one.structure}": one.dice for one in facts.measured}
    figures |= {f"distance/median/{one.point}": one.median for one in facts.points if one.median is not None}
    if facts.calcium:
        errors = {"volume": facts.calcium.volume, "agatston": facts.calcium.agatston}
        figures |= {f"calcium/{what}_error": value for what, value in errors.items() if value is not None}
    return {name: round(value, 4) for name, value in figures.items()}


def shipped_schema() -> dict[str, Any]:
    """The schema of this package, written from the bundle specification."""
    content: dict[str, Any] = json.loads(
        resources.files("fedmedseg.export").joinpath(SCHEMA).read_text(encoding="utf-8")
    )
    return content


def require_valid(file: Path, *, schema: Path | None = None) -> None:
    """MONAI's own ``verify_metadata`` of ``file``, against ``schema`` or the one of this package.

    Raises:
        ConfigurationError: ``schema`` is no schema, or jsonschema is not installed.
        FedMedSegError: the metadata does not follow it.
    """
    require_package("jsonschema")
    from jsonschema.exceptions import SchemaError
    from monai.bundle import verify_metadata

    with tempfile.TemporaryDirectory() as folder:
        # MONAI downloads what the metadata names, unless it finds it where it would put it
        local = Path(folder) / SCHEMA
        if schema is None:
            local.write_text(json.dumps(shipped_schema()), encoding="utf-8")
        else:
            _copied(schema, local)
        try:
            with quiet_monai():
                verify_metadata(meta_file=str(file), filepath=str(local))
        except SchemaError:
            raise ConfigurationError("--schema", got=str(schema), expected="a JSON schema") from None
        except ValueError as error:
            raise FedMedSegError(
                "metadata.json",
                got=" ".join(str(error).split())[:300],
                expected=f"metadata that follow {schema.name if schema else 'the bundle specification'}",
                reason=Reason.INTERNAL,
            ) from None


def require_package(name: str) -> None:
    """Refuse what needs a package that is not installed.

    Raises:
        ConfigurationError: it is not.
    """
    if find_spec(name) is None:
        raise ConfigurationError(
            "--to",
            got=f"a format that needs {name}, which is not installed",
            expected="the optional packages of exports",
            remedy="pip install 'fedmedseg[export]'",
        )


def _copied(schema: Path, local: Path) -> None:
    try:
        shutil.copyfile(schema, local)
        content = json.loads(local.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, Mapping):
        raise ConfigurationError("--schema", got=str(schema), expected="a JSON schema")


def _required(source: Exportable) -> dict[str, str]:
    """What a bundle's configuration needs: this package to build the network where MONAI alone cannot, and to run."""
    versions = {"nibabel": metadata.version("nibabel")}
    if source.settings or not source.by_monai:
        versions["fedmedseg"] = fedmedseg.__version__
    if source.definition["_target_"].endswith(("SwinUNETR", "UNETR")):
        versions["einops"] = metadata.version("einops")
    return versions
