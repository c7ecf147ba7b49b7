"""A model family: how config.json tells of its attention, and, where models/ can run it, of all the rest."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minibeft.families.attention import Keys, Site
from minibeft.families.body import Body
from minibeft.families.reading import ATTENTION, Reader


@dataclass(frozen=True)
class Family:
    """One model_type. body None: certify judges its attention, and load_model does not run it."""

    model_type: str
    attention: Keys
    body: Body | None = None

    def sites(self, raw: Mapping[str, Any], where: str) -> list[Site]:
        """The kinds of attention of a configuration; Unclear when it is not understood."""
        c = Reader(raw, where)
        found = self.attention.read(c)
        c.finish(ATTENTION)
        return found
