"""How devices, releases and artifacts are named in paths and queries; a name that is none is told its rule."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Final

from pydantic import AfterValidator, WithJsonSchema

from evenfleet_collector.resources import RELEASE_RULE
from evenfleet_shared.topics import DEVICE_ID_RULE

_DEVICE: Final = "[a-z0-9][a-z0-9-]{0,62}"
_DIGEST_RULE: Final = "a sha256 of 64 hexadecimal digits in lower case"
_ALL_RULE: Final = f"* or {DEVICE_ID_RULE}"


def _follows(pattern: str, rule: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(rule)
        return text

    return check


def _shown(pattern: str, rule: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": f"^{pattern}$", "description": rule})


DeviceName = Annotated[str, AfterValidator(_follows(_DEVICE, DEVICE_ID_RULE)), _shown(_DEVICE, DEVICE_ID_RULE)]
DeviceOrAll = Annotated[
    str, AfterValidator(_follows(rf"\*|{_DEVICE}", _ALL_RULE)), _shown(rf"(\*|{_DEVICE})", _ALL_RULE)
]
ReleaseName = Annotated[
    str, AfterValidator(_follows("[0-9a-f]{4,64}", RELEASE_RULE)), _shown("[0-9a-f]{4,64}", RELEASE_RULE)
]
DigestName = Annotated[
    str, AfterValidator(_follows("[0-9a-f]{64}", _DIGEST_RULE)), _shown("[0-9a-f]{64}", _DIGEST_RULE)
]
