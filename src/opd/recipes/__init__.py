"""The shape of a config: the one place that knows it.

A config names recipes: prompt sets, SFT data (``pairs``), models, generations, evaluations, tables
and figures. ``resolve`` checks them; ``opd.plan`` works out the artifacts that they describe.
Stages never import this package: they get resolved settings.
"""

from opd.recipes.answers import PROTOCOLS, IndicatorsProbe, TaskData
from opd.recipes.base import references, unknown
from opd.recipes.config import Config, schema
from opd.recipes.models import Hub, Kept
from opd.recipes.prompts import HubPrompts
from opd.recipes.resolve import merge, read, resolve, settings, typed
from opd.recipes.shown import Figure, Series, Shown, Table

__all__ = [
    "PROTOCOLS",
    "Config",
    "Figure",
    "Hub",
    "HubPrompts",
    "IndicatorsProbe",
    "Kept",
    "Series",
    "Shown",
    "Table",
    "TaskData",
    "merge",
    "read",
    "references",
    "resolve",
    "schema",
    "settings",
    "typed",
    "unknown",
]
