"""What each flow may be told: one pydantic model a flow, one field an option of the command line.

Not the meaning of the options to an encoder (see compressor.encoding): here are their ranges and their words.
"""

import os
import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from compressor.addresses import ADVICE, PASSWORD, has_password, shown
from compressor.defaults import (
    CODEC,
    FAMILY,
    HIGHEST_TARGET,
    LEAST_TARGET,
    MAX_BYTES,
    MAX_PIXELS,
    MOST_EFFORT,
    TARGET_PSNR,
)
from flows.keys import STANDARD_INPUT

Family = Literal["v1", "v2", "v3", "v4", "v5", "v6"]
HYPERPRIORS = ("v5", "v6")  # which effort refines, and which store int8 alone
Packer = Literal["auto", "entropy", "lzma", "gzip"]
Latents = Literal["fp32", "fp16", "int8"]  # of families v1 to v4
Part = Literal["ladder", "ablations", "weights", "elsewhere"]  # of the experiments; the ladder always
Optimizer = Literal["adamw", "muon"]
Weights = Literal["int8", "fp16"]
Strips = Literal["samples", "measured"]
PictureFormat = Literal["png", "jpeg", "webp", "tiff", "bmp", "avif"]


def _without_password(url: str) -> str:
    if has_password(url):
        raise ValueError(ADVICE)
    return url


def _unpadded(url: str) -> str:
    if url != url.strip():
        raise ValueError("it begins or ends with a space: a run would make a second archive of nearly the same name")
    return url


def _is_local(path: str) -> str:
    if "://" in path:
        raise ValueError("it must be a local path (copy what is written there to the bucket afterwards)")
    return os.path.expanduser(path)  # behind a form there is no shell that would


def _is_destination(address: str) -> str:
    if not re.match(_PLACE, address):
        raise ValueError("it must be a local path or an s3:// address")
    if not (path := address.removeprefix("file://")):
        raise ValueError("it is empty")
    return os.path.expanduser(path)


def _is_file(path: str) -> str:
    if path == STANDARD_INPUT:
        raise ValueError("only the command line has a standard input, a run would wait for it for ever: name a file")
    return path


# Prefect's server holds new runs and deployments against patterns, before it stores a parameter or runs it at night.
_LOCAL, _UNPADDED = "^(?!.*://)", r"^(?!\s)(?!.*\s$)"
_PLACE = "^(?!s3a?:/(?!/))(?!(?!(file|s3a?)://).*://)"
Address = Annotated[str, AfterValidator(_without_password), Field(json_schema_extra={"pattern": f"^(?!.*{PASSWORD})"})]
SourceUrl = Annotated[
    Address,
    Field(min_length=1, description="folder, bucket prefix, glob or file of pictures, at any URL that fsspec opens"),
]
ArchiveUrl = Annotated[
    Address,
    AfterValidator(_unpadded),
    Field(
        min_length=1,
        description="folder or URL of the archive",
        json_schema_extra={"pattern": f"{_UNPADDED}(?!.*{PASSWORD})"},
    ),
]
LocalPath = Annotated[str, Field(min_length=1, json_schema_extra={"pattern": _LOCAL}), AfterValidator(_is_local)]
Destination = Annotated[
    Address,
    Field(
        min_length=1,
        description="folder, which is created, or s3://bucket/prefix that files are written below",
        json_schema_extra={"pattern": f"{_PLACE}(?!.*{PASSWORD})"},
    ),
    AfterValidator(_is_destination),
]
KeysFile = Annotated[LocalPath, AfterValidator(_is_file), Field(json_schema_extra={"pattern": f"{_LOCAL}(?!-$)"})]
KEYS_FILE = "one on a line or, where it ends in .parquet, in its column key"
CodecAddress = Annotated[
    Address,
    Field(description="codec by name, path, s3:// address, or id in the archive (8 digits or more)"),
]
TargetPsnr = Annotated[
    float,
    Field(
        ge=LEAST_TARGET,
        le=HIGHEST_TARGET,
        title="Target PSNR",
        description="dB of PSNR that every picture reaches, from 10 to 60",
    ),
]
Quality = Annotated[
    int | None,
    Field(
        ge=0,
        le=100,
        description="fixed quality step instead of a target, from 0 to 63 for families v5 and v6, such as faces, from "
        "1 to 99 or 100 for standard formats; higher is better",
    ),
]
Resize = Annotated[
    int | None,
    Field(
        ge=1,
        le=16_384,
        description="crop and resize to this side in pixels, except pictures kept as their own bytes (alpha, "
        "16 bits, animations): they keep their size",
    ),
]
MaxBytes = Annotated[int, Field(ge=1, description="largest file that is read, in bytes")]
MaxPixels = Annotated[int, Field(ge=1, description="largest picture that is decoded, in pixels")]
Workers = Annotated[
    int | None,
    Field(
        ge=1,
        le=4096,
        description="processes to work with, from 1 to 4096 (default: one for each core and GiB of memory)",
    ),
]
Scheduler = Annotated[
    Address | None,
    Field(description="address of a running Dask scheduler, such as tcp://host:8786 (default: this machine)"),
]
BatchSize = Annotated[
    int,
    Field(
        ge=1,
        le=100_000,
        description="most pictures in one task, and in one commit to an archive; fewer where their files are large",
    ),
]
Limit = Annotated[int | None, Field(ge=1, description="take at most this many pictures")]
SHARE = r"^(100(\.0+)?|\d{1,2}(\.\d+)?)%$|^\d+$"  # of pictures, or a number of them
Price = Annotated[
    float,
    Field(
        ge=0,
        allow_inf_nan=False,
        title="Price per TB",
        description="USD for a terabyte and month, to tell what is saved",
    ),
]


def _in_order(schema: dict[str, Any]) -> None:
    """Number a form's fields: PostgreSQL, where Prefect keeps the schema, sorts names by their length."""
    for position, field in enumerate(schema.get("properties", {}).values()):
        field["position"] = position


class Parameters(BaseModel):
    """Base of all parameter models: unknown names are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False, json_schema_extra=_in_order
    )

    @property
    def subject(self) -> str:
        """The source that a run is of, or else the archive, as it may be shown: for names of runs."""
        return shown(getattr(self, "source", "") or getattr(self, "archive", ""))


class TrainingParameters(Parameters):
    """How long and how fast to train."""

    steps: int = Field(default=0, ge=0, description="steps to train; 0: as many as fit into the minutes")
    minutes: float | None = Field(
        default=None, gt=0, le=100_000, description="minutes to train (default: 15, or no limit where steps are given)"
    )
    batch: int = Field(default=16, ge=1, le=65_536, description="pictures in one training step")
    optimizer: Optimizer = Field(default="muon", description="how steps are taken; muon learns in fewer of them")
    learning_rate: float | None = Field(
        default=None, gt=0, le=1, description="peak learning rate (default: 0.003, or 0.0002 from a codec)"
    )
    patience: int = Field(default=0, ge=0, description="stop after this many validations without improvement; 0: never")
    side: int = Field(
        default=128,
        ge=32,
        le=4096,
        multiple_of=32,
        description="side in pixels that training pictures are cropped and resized to, a multiple of 32",
    )
    max_pictures: int = Field(
        default=100_000,
        ge=2,
        description="learn from at most this many pictures, drawn at random; all are in memory at once",
    )
    seed: int = Field(default=1, ge=0, description="seed of every random draw")
    compile: bool = Field(
        default=False,
        description="compile the network first, for a minute or two: steps are several times as fast on a GPU",
    )


class CodecTrainingParameters(TrainingParameters):
    """How to train and store a codec."""

    crops: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="learn from so many squares of each picture at its own size, such as 8, instead of the whole of it "
        "shrunk; for codecs of pictures that are archived at their own size",
    )
    weights: Weights = Field(
        default="int8", description="type that the codec's weights are stored in; fp16 takes twice the room"
    )


class PipelineParameters(Parameters):
    """Archive a source: ingest, preprocess, (train), encode, report."""

    source: SourceUrl
    archive: ArchiveUrl
    codec: CodecAddress = CODEC
    train: Family | None = Field(
        default=None, description="first train a codec of this family on the source, and use it"
    )
    target_psnr: TargetPsnr = TARGET_PSNR
    quality: Quality = None
    min_psnr: float | None = Field(
        default=None,
        title="Min PSNR",
        ge=0,
        le=100,
        description="lowest dB of any picture; the higher of this and the target counts; also with a quality and v1 "
        "to v4; what misses it gets a standard format",
    )
    packer: Packer = Field(
        default="auto",
        description="how latents become bytes; auto takes about the smallest for each picture, of v1 to v4 lzma",
    )
    effort: int = Field(
        default=0,
        ge=0,
        le=MOST_EFFORT,
        description="rounds of refinement of each picture, families v5 and v6, from 0 to 100: fewer bytes, more time; "
        "1 takes twice as long, 5 four times",
    )
    latents: Latents = Field(default="int8", description="type of stored latents, families v1 to v4")
    resize: Resize = None
    keep_metadata: bool = Field(
        default=False,
        description="store EXIF and XMP too, and when pictures were taken; restored JPEG, PNG and WebP have them",
    )
    batch_size: BatchSize = 1000
    scheduler: Scheduler = None
    workers: Workers = None
    limit: Limit = Field(default=None, description="archive at most this many new pictures")
    max_failures: str | None = Field(
        default=None,
        pattern=SHARE,
        examples=["1%", "100"],
        description="stop when more than this many pictures fail, or this share of them, such as 1%",
    )
    mirror: bool = Field(
        default=False,
        description="delete pictures that the source no longer lists; for archives with one source only",
    )
    mirror_limit: str = Field(
        default="10%",
        pattern=SHARE,
        examples=["1%", "100"],
        description="delete nothing if more pictures than this, or this share of the archive, are gone",
    )
    wave: int = Field(
        default=1_000_000,
        ge=1,
        description="pictures to list before they are archived; a larger source goes in several waves",
    )
    max_bytes: MaxBytes = MAX_BYTES
    max_pixels: MaxPixels = MAX_PIXELS
    price_per_tb: Price = 23.0
    training: CodecTrainingParameters = Field(
        default=CodecTrainingParameters(), description="of the codec trained first"
    )

    @field_validator("train")
    @classmethod
    def _is_the_codec(cls, train: Family | None, before: ValidationInfo) -> Family | None:
        if train and before.data.get("codec") != cls.model_fields["codec"].default:
            raise ValueError("it does not go with --codec, which `latentpack train --start` would go on from")
        return train

    @field_validator("quality")
    @classmethod
    def _instead_of_a_target(cls, quality: int | None, before: ValidationInfo) -> int | None:
        # A form may send a target that nobody gave, the default
        if quality is not None and before.data.get("target_psnr") != cls.model_fields["target_psnr"].default:
            raise ValueError("it does not go with a target PSNR: give --min-psnr, a floor, or leave one out")
        return quality

    @field_validator("effort")
    @classmethod
    def _refines(cls, effort: int, before: ValidationInfo) -> int:
        family = before.data.get("train")
        if effort and family not in (None, *HYPERPRIORS):
            raise ValueError(f"a codec of family {family}, which --train makes, knows no effort but 0")
        return effort

    @field_validator("latents")
    @classmethod
    def _stores(cls, latents: Latents, before: ValidationInfo) -> Latents:
        family = before.data.get("train")
        if latents != "int8" and family in HYPERPRIORS:
            raise ValueError(f"a codec of family {family}, which --train makes, stores int8 alone")
        return latents

    @field_validator("mirror")
    @classmethod
    def _lists_all(cls, mirror: bool, before: ValidationInfo) -> bool:
        if mirror and before.data.get("limit") is not None:
            raise ValueError("it needs the whole listing, so it does not go with --limit")
        return mirror


class _WhatToTrain(Parameters):
    """What a form asks for first."""

    source: SourceUrl
    family: Family | None = Field(
        default=None, description=f"family of codecs to train (default: {FAMILY}, or that of the codec it starts from)"
    )
    start: Address | None = Field(
        default=None,
        min_length=1,
        description="codec to go on from, by name, path or s3:// address (default: none, learn from nothing)",
    )
    out: Destination = Field(
        default="codec.safetensors", description="file or s3:// address that the codec is written to"
    )


class TrainParameters(CodecTrainingParameters, _WhatToTrain):
    """Train a codec on a source and freeze it into one file."""

    limit: Limit = None
    batch_size: int = Field(default=1000, ge=1, le=100_000, description="pictures that one task prepares for training")
    scheduler: Address | None = Field(
        default=None,
        description="address of a running Dask scheduler; a worker with a GPU trains (default: this machine)",
    )
    workers: Workers = None

    @property
    def what(self) -> str:
        """What is trained, in the name of a run."""
        return f"on from {self.start}" if self.start else self.family or FAMILY


class BenchmarkParameters(Parameters):
    """Measure rate and distortion against JPEG, WebP, AVIF and JPEG XL; of a picture above 4 megapixels, its middle."""

    source: SourceUrl
    report: Destination = Field(default="report", description="folder or s3:// address that the report is written to")
    codec: list[Address] = Field(default=[CODEC], description="codecs by name or path, beside the standard ones")
    effort: int = Field(
        default=0,
        ge=0,
        le=MOST_EFFORT,
        description="measure these codecs a second time, with this many rounds of refinement, up to 100",
    )
    limit: int = Field(
        default=50, ge=1, description="measure at most this many pictures, drawn from the first 100,000 files"
    )
    workers: Workers = None


class RestoreParameters(Parameters):
    """Pictures of an archive back as files."""

    archive: ArchiveUrl
    destination: Destination
    key: list[str] = Field(default=[], description="keys to restore (default: all)")
    keys_from: KeysFile | None = Field(default=None, description=f"file of more keys to restore, {KEYS_FILE}")
    format: PictureFormat = Field(
        default="png",
        description="file format; jpeg and avif lose some 0.1 to 0.5 dB more (jpeg up to 1.6 where the archive has "
        "over 42 dB); originals keep their own bytes",
    )
    overwrite: bool = Field(
        default=False, description="replace files of the same names whose bytes differ, which else are left alone"
    )
    workers: Workers = None


class SheetParameters(Parameters):
    """Pictures of an archive on one HTML page, to look at: a contact sheet."""

    archive: ArchiveUrl
    pattern: str | None = Field(
        default=None,
        min_length=1,
        description="only matching keys; quote it: * is any text, even /, ? any character, [abc] one of these",
    )
    out: Destination = Field(
        default="sheet.html", description="file or s3:// address that the page is written to; it ends in .html"
    )
    worst: bool = Field(default=False, description="those of the lowest PSNR, instead of evenly spread ones")
    keys_from: KeysFile | None = Field(
        default=None, description=f"file of the keys to show, in that order, {KEYS_FILE}"
    )
    beside: Address | None = Field(
        default=None, min_length=1, description="where the pictures came from: show each beside its file there"
    )
    limit: int = Field(default=200, ge=1, le=2_000, description="show at most this many pictures")

    @field_validator("out")
    @classmethod
    def _is_a_page(cls, out: str) -> str:
        if not out.endswith(".html"):
            raise ValueError("it must end in .html, so that nothing else is overwritten")
        return out

    @field_validator("keys_from")
    @classmethod
    def _alone(cls, keys_from: str | None, info: ValidationInfo) -> str | None:
        if keys_from and (info.data.get("pattern") or info.data.get("worst")):
            raise ValueError("it says which pictures, so neither a pattern nor --worst goes with it")
        return keys_from


class VerifyParameters(Parameters):
    """Re-read every row of an archive: checksum, decode, dimensions."""

    archive: ArchiveUrl
    workers: Workers = None


class MaintainParameters(Parameters):
    """Care of an archive: verify every row, merge small files, delete files that no row needs."""

    archive: ArchiveUrl
    older_than: int = Field(
        default=24,
        ge=1,
        le=8760,
        description="hours that a file which no row needs is kept, for readers that have it open",
    )
    price_per_tb: Price = 23.0


class RepairParameters(Parameters):
    """Mend what verify finds: from the archive itself, and from the source where that still has the picture."""

    archive: ArchiveUrl
    source: Address | None = Field(
        default=None, min_length=1, description="where the pictures came from; they are encoded again"
    )
    codec: Address | None = Field(
        None,
        min_length=1,
        description="codec by name, path of an artifact, or id in the archive, 8 digits or more (default: that of the "
        "other pictures); a file also replaces its damaged or missing copy",
    )
    target_psnr: float | None = Field(
        None,
        title="Target PSNR",
        ge=LEAST_TARGET,
        le=HIGHEST_TARGET,
        description="dB of PSNR that every picture reaches, from 10 to 60 (default: the lowest of the other pictures "
        "by the codec; exact where all are)",
    )
    quality: Quality = None
    resize: Resize = None
    keep_metadata: bool = Field(
        default=False,
        description="store EXIF and XMP of all that is encoded again, also where their damaged file no longer shows "
        "that they were stored",
    )
    max_bytes: MaxBytes = MAX_BYTES
    max_pixels: MaxPixels = MAX_PIXELS
    drop: bool = Field(default=False, description="also remove bad or unreadable rows whose pictures the source lacks")
    workers: Workers = None

    @property
    def subject(self) -> str:
        """The archive, wherever its pictures come from."""
        return shown(self.archive)


class ExperimentsParameters(TrainingParameters):
    """Repeat the experiments: train and measure families on more and more pictures, beside what was reported."""

    source: SourceUrl
    report: Destination = Field(
        default="experiments", description="folder or s3:// address that the report is written to"
    )
    family: list[Family] = Field(
        default=["v1", "v2", "v3", "v4"], min_length=1, description="families to train and measure"
    )
    ladder: str = Field(
        default="30,300,3000,all",
        pattern=r"^([1-9]\d{0,8}|all)(,([1-9]\d{0,8}|all))*$",
        examples=["30,300,all"],
        description="numbers of pictures to train on",
    )
    parts: list[Part] = Field(default=list(get_args(Part)), description="what to do; the ladder always")
    steps: int = Field(
        default=0, ge=0, description="steps to train each cell of the ladder; 0: as many as fit into the minutes"
    )
    minutes: float | None = Field(
        default=None,
        gt=0,
        description="minutes to train each cell (default: 2, or no limit where steps are given); "
        "ablations and fine-tuning take half",
    )
    batch: int = Field(default=4, ge=1, le=65_536, description="pictures in one training step")
    learning_rate: float = Field(default=1e-2, gt=0, le=1, description="peak learning rate")
    evaluation: Address | None = Field(
        default=None,
        min_length=1,
        description="pictures to measure on (default: some of SRC); what SRC lists of them is kept from training",
    )
    held_out: int = Field(default=100, ge=2, le=1000, description="how many pictures to measure on")
    other: list[Address] = Field(default=[], description="more sources to measure on, with and without fine-tuning")
    codec: list[Address] = Field(
        default=[CODEC], description="codecs by name or path to measure beside, not trained here"
    )
    strips: Strips = Field(
        default="samples",
        description="pictures that the report shows: scikit-image's photographs, or measured ones",
    )
    limit: Limit = None
    workers: Workers = None


class DemoParameters(Parameters):
    """The whole chain on bundled sample pictures."""

    folder: LocalPath = Field(default="latentpack-demo", description="folder that everything is written below")
    workers: Workers = None
