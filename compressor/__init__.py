"""Pictures to symbols to bytes to a table, and back. What most programs need is here, and loaded when it is named.

>>> from compressor import Archive
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressor.appending import NotAppended as NotAppended
    from compressor.archive import Archive as Archive
    from compressor.archive import Row as Row
    from compressor.codec import Codec as Codec
    from compressor.codec import load_codec as load_codec
    from compressor.errors import ArchiveError as ArchiveError
    from compressor.errors import CodecError as CodecError
    from compressor.errors import ImageError as ImageError
    from compressor.errors import LatentpackError as LatentpackError
    from compressor.errors import SourceError as SourceError
    from compressor.limits import Limits as Limits
    from compressor.sources import Source as Source

_MODULES = {
    "appending": ("NotAppended",),
    "archive": ("Archive", "Row"),
    "codec": ("Codec", "load_codec"),
    "errors": ("ArchiveError", "CodecError", "ImageError", "LatentpackError", "SourceError"),
    "limits": ("Limits",),
    "sources": ("Source",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


__all__ = [*_MODULE_OF]

if not TYPE_CHECKING:  # a checker is to notice a name that there is not

    def __getattr__(name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
