"""A site's page with scores worked out by hand and small pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedmedseg.cardiac_ct.evaluation import CaseResult
from fedmedseg.cardiac_ct.site_page import model_table
from fedmedseg.core.jobs import find_job, read_settings
from fedmedseg.reporting.metrics import CaseScore, StructureScore
from fedmedseg.reporting.site_page import CaseRow, ModelTable, Picture, SitePage, structure_cell
from fedmedseg.segmentation.overlay import overlay_png
from fedmedseg.segmentation.pictures import PLACES, standing

NEITHER = StructureScore(math.nan, math.nan)
SCORES = {
    "a": (0.9, StructureScore(0.92, 1.0)),
    "b": (0.7, StructureScore(0.0, 88.0, 1)),
    "c": (0.8, NEITHER),
}


def table(model: str, scores: Mapping[str, tuple[float, StructureScore]], *, patient: str = "") -> ModelTable:
    """Of every case the left ventricle's Dice and the right one's score."""
    rows = []
    for name, (left, right) in scores.items():
        structures = {"left": StructureScore(left, round(20 * (1 - left)) - 2.0), "right": right}
        whose = patient or ("Bea" if name == "c" else "Ada")
        rows.append(
            CaseRow(
                case=f"images/{name}.nii.gz",
                patient=whose,
                standing=standing(CaseScore(name, whose, structures)),
                cells=[structure_cell(one) for one in structures.values()],
            )
        )
    return ModelTable(model=model, columns=["left ventricle", "right ventricle"], rows=rows)


def picture(place: str) -> Picture:
    """A disc on a ramp, and the same disc a little aside."""
    x, y = np.meshgrid(np.arange(60), np.arange(50), indexing="ij")
    truth, found = ((((x - at) ** 2 + (y - 25) ** 2) < 150).astype(np.uint8) for at in (28, 31))
    png = overlay_png(x + 40.0 * truth, truth, {"personal": found}, spacing=(1.0, 1.4))
    return Picture(place=place, case=f"images/{place}.nii.gz", standing=0.5, png=png, outlined=["personal"])


def page(**changes: Any) -> SitePage:
    """A page of two models, three cases, three pictures and one case set aside."""
    content = {
        "site": "hospital-1",
        "experiment": read_settings(find_job("fedata"), [{"study": "heart"}])[1],
        "tables": [table("personal", SCORES), table("scratch", SCORES)],
        "pictures": [picture(place) for place in PLACES] if "pictures" not in changes else [],
        "aside": [("training", "images/d.nii.gz", "image without contrast")],
    }
    return SitePage(**{**content, **changes})


def cardiac_ct_page() -> SitePage:
    """A page of two models with points, points invented, masks and calcium, some of which a case does not hold."""
    calcium = {"volume": 512.0, "agatston": 430.0, "true_volume": 620.0, "true_agatston": 555.0}
    cases = [
        CaseResult("a", "p", {"RCC": 1.2, "LCC": math.inf}, 1, {"calcification": SCORES["a"][1]}, calcium),
        CaseResult("b", "q", {"RCC": 14.0}, 0, {"calcification": SCORES["b"][1]}, {}),
        CaseResult("c", "q", {}, 0, {"calcification": NEITHER}, calcium),
    ]
    names = [(f"images/a-scan-with-a-rather-long-name-{one.key}.nii.gz", one.patient) for one in cases]
    return page(
        experiment=read_settings(find_job("cardiac_ct"), [{"study": "hearts-in-ct"}])[1],
        tables=[model_table(model, cases, names) for model in ("student", "cnn")],
        pictures=[picture(place) for place in PLACES],
        points=True,
    )
