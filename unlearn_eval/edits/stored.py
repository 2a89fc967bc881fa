"""What may stand in the files of an edit's folder; `info` is as results have it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from unlearn_eval.results.stored import EditSaid
from unlearn_eval.utils.schemas import (
    Count,
    Digest,
    NameInside,
    OpenTable,
    PlainName,
    Size,
    Table,
    Whole,
    expected,
)

ModuleName = Annotated[str, Field(pattern=r"^\w+(\.\w+)*$", max_length=500)]
Ids = list[Count]


class Description(Table):
    """`edit.json`."""

    schema_version: Whole
    kind: Annotated[str, Field(min_length=1, max_length=100)]
    info: EditSaid
    texts: list[PlainName] = []
    files: dict[NameInside, Digest]

    @model_validator(mode="after")
    def listed(self) -> Self:
        """Texts are among the files."""
        if other := sorted(set(self.texts) - self.files.keys()):
            raise expected(f"with the text {other[0]} among its files")
        return self


class Version(OpenTable):
    """What every version of `edit.json` has."""

    schema_version: Count


class Adapter(OpenTable):
    """`adapter_config.json`: PEFT's, whose scale has to be 1."""

    peft_type: Literal["LORA"]
    fan_in_fan_out: bool
    r: Size
    lora_alpha: Size
    use_rslora: Literal[False] = False
    use_dora: Literal[False] = False

    @model_validator(mode="after")
    def plain(self) -> Self:
        """The factors' product is the change itself."""
        if self.r != self.lora_alpha:
            raise expected("with lora_alpha equal to r")
        return self


class DenseIndex(Table):
    """`dense.json`."""

    tensors: dict[ModuleName, PlainName]


class AnyMemory(OpenTable):
    """What every `memory.json` has."""

    mechanism: str
    module: str


class MemorySettings(Table):
    """`memory.json`; each mechanism has its own beside its reader."""

    module: ModuleName
    owners: list[list[str]]
    positions: Literal["onward", "last", "prompt", "all"]
