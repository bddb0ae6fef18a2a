"""A model's text side: tokenizer, chat template and generation defaults, read once and kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio

from cortex.engine.load.pooling import EmbeddingRecipe
from cortex.neuron.model_place import is_gguf

if TYPE_CHECKING:
    from cortex.engine.load.generation import GenerationDefaults
    from cortex.text.closing import Closing
    from cortex.text.infill import InfillFormat
    from cortex.text.reasoning import ReasoningMarkers
    from cortex.text.template import ChatTemplate
    from cortex.text.tokenizer import Tokenizer
    from cortex.text.tools.formats import ToolFormat

# Models whose text is kept: a large tokenizer takes some tens of megabytes.
KEPT = 16
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "config.json",
    "modules.json",
    "1_Pooling/config.json",
)


@attrs.frozen(eq=False)
class ModelText:
    """What turns messages into tokens for one model. ``template`` None: it has none."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    defaults: GenerationDefaults
    reasoning: bool = False
    tool_call: bool = False
    markers: ReasoningMarkers | None = None  # the ids around reasoning
    tool_format: ToolFormat | None = None  # how the model writes calls
    closing: Closing | None = None  # what ends its thinking
    infill: InfillFormat | None = None  # how it is asked to fill a gap
    embedding: EmbeddingRecipe = attrs.field(factory=EmbeddingRecipe)

    def writing(self, tool_format: ToolFormat) -> ModelText:
        """The same, of a model that writes its calls in *tool_format*."""
        shows_tools = self.template is not None and self.template.features.tools
        return attrs.evolve(self, tool_format=tool_format, tool_call=shows_tools)


ReadText = Callable[[Path], ModelText]


@attrs.define(eq=False)
class TextShelf:
    """Reads model texts in a thread, one at a time, and keeps the last `KEPT`."""

    _read: ReadText
    _texts: OrderedDict[tuple[Path, int], ModelText] = attrs.field(factory=OrderedDict, init=False)
    # Parsing a tokenizer takes a second of a core and much memory; two at once help nobody.
    _reader: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(1), init=False)

    async def text(self, place: Path) -> ModelText:
        """The text of the model at *place*, read again when its files have changed."""
        key = await trio.to_thread.run_sync(partial(_key, place), abandon_on_cancel=True)
        text = self._texts.get(key)
        if text is None:
            text = await trio.to_thread.run_sync(
                self._read, place, abandon_on_cancel=True, limiter=self._reader
            )
            self._texts[key] = text
            while len(self._texts) > KEPT:
                self._texts.popitem(last=False)
        self._texts.move_to_end(key)
        return text


def _key(place: Path) -> tuple[Path, int]:
    """*place* and the state of its files, or of it and the files beside it."""
    stamps: list[tuple[str, int, int]] = []
    directory, names = (place.parent, (place.name, *FILES)) if is_gguf(place) else (place, FILES)
    for name in names:
        try:
            status = (directory / name).stat()
        except OSError:
            continue
        stamps.append((name, status.st_mtime_ns, status.st_size))
    return place, hash(tuple(stamps))
