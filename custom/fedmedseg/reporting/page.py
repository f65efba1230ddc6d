"""What the run report and a site's own page have in common: templates, pictures within the page, strict JSON."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any


def render_page(template: str, context: Mapping[str, Any]) -> str:
    """The HTML text of one of this package's templates. Every value is escaped.

    Raises:
        jinja2.UndefinedError: the template asks for what ``context`` lacks.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fedmedseg.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**context)


def svg_uri(svg: str) -> str:
    """A drawing as an address that holds it."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def png_uri(png: bytes) -> str:
    """A picture as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def jsonable(value: Any) -> Any:
    """``value`` as strict JSON: a number that is not finite becomes null, as no JSON reader takes NaN."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
