"""Which model a name means: aliases, the catalogue, and what the neurons hold.

A name is compared with known ones and nothing else: it is never a path, an address or a pattern.
"""

from __future__ import annotations

import difflib
import re

import attrs

from cortex.config.catalogue import Catalogue, CatalogueEntry
from cortex.errors import CortexError, ModelNotFound, NoHealthyNode, clip
from cortex.gateway.fleet import Fleet
from cortex.gateway.metrics import UNKNOWN
from cortex.wire import neuron as wire

MAX_NAME = 200  # characters; longer ones are no model's, and comparing them would take long
NEAR_NAMES = 3
FIRST_RETRY = 2.0  # seconds; the first poll is under way
# Claude Code offers only models whose names look like its vendor's (`reference/api.md` 4.1), so
# that each model has a name like this too.
DISCOVERY = "claude-cortex-"


@attrs.frozen
class Resolved:
    """What *requested* means; ``entry`` is None for a model only a neuron knows of."""

    requested: str
    model: str
    entry: CatalogueEntry | None


@attrs.define(eq=False)
class ModelNames:
    """The merged view of catalogue and fleet. Owns the catalogue: a reload swaps it as a whole, so
    that nobody keeps it or an entry of it beyond the request at hand."""

    catalogue: Catalogue
    fleet: Fleet

    def configure(self, catalogue: Catalogue) -> None:
        """Have *catalogue* from here on; names that were resolved before stay as they are."""
        self.catalogue = catalogue

    def resolve(self, name: str) -> Resolved:
        """The model *name* stands for, by at most one alias.

        `ModelNotFound` with near names; `NoHealthyNode` as long as no neuron has ever been
        reached, since what they hold is then unknown rather than nothing.
        """
        model = self.target(name)
        entry = self.catalogue.models.get(model)
        if entry is None and not self.fleet.replicas(model):
            if self._fleet_unknown() and re.fullmatch(wire.MODEL_ID, model):
                raise NoHealthyNode("no neuron has been reached yet", retry_after=FIRST_RETRY)
            raise self._not_found(name, model)
        return Resolved(name, model, entry)

    def target(self, name: str) -> str:
        """The id that *name* stands for, whether there is such a model or not."""
        plain = self.plain(name)
        return self.catalogue.aliases.get(plain, plain)

    def plain(self, name: str) -> str:
        """*name* as the operator knows it: the alias or id that a name made for discovery is made
        of. It is this name that a key's list is about: every model has one that begins with
        `DISCOVERY`, and a list of ``claude-*`` does not mean them all."""
        if not name.startswith(DISCOVERY) or name in self.catalogue.aliases or self._known(name):
            return name
        return name.removeprefix(DISCOVERY)

    def label(self, name: str) -> str:
        """The resolved id for metrics, ``unknown`` for a name that resolves to nothing."""
        try:
            return self.resolve(name).model
        except CortexError:
            return UNKNOWN

    def model_ids(self) -> list[str]:
        """Every model that could be asked for, the catalogue's first."""
        return list(dict.fromkeys((*self.catalogue.models, *self.fleet.model_ids())))

    def _known(self, model: str) -> bool:
        return model in self.catalogue.models or bool(self.fleet.replicas(model))

    def _fleet_unknown(self) -> bool:
        nodes = self.fleet.nodes()
        return bool(nodes) and all(node.polled_at is None for node in nodes)

    def _not_found(self, name: str, model: str) -> ModelNotFound:
        text = f"the model '{clip(name)}' does not exist"
        if name in self.catalogue.aliases:
            text += f": it is an alias of '{clip(model)}', which no neuron has"
        if len(name) <= MAX_NAME:
            known = (*self.model_ids(), *self.catalogue.aliases)
            near = [
                other
                for other in difflib.get_close_matches(name, known, NEAR_NAMES + 1, cutoff=0.5)
                if other != name
            ]
            if near:
                text += f"; similar names: {', '.join(near[:NEAR_NAMES])}"
        return ModelNotFound(text, param="model")
