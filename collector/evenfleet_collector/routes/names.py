"""How devices, releases, tags and artifacts are named in paths and queries; a name that is none is told its rule."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Final

from pydantic import AfterValidator, WithJsonSchema

from evenfleet_collector.resources import DIGEST_PATTERN, RELEASE_RULE, TAG_PATTERN, TAG_RULE
from evenfleet_shared.topics import DEVICE_ID_RULE

_DEVICE: Final = "[a-z0-9][a-z0-9-]{0,62}"
_DIGEST_RULE: Final = "a sha256 of 64 hexadecimal digits in lower case"
_KEY_RULE: Final = "a key's name, the 64 hexadecimal digits of its sha256 in lower case"
_RELEASE: Final = f"{DIGEST_PATTERN}|{TAG_PATTERN}"
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
ReleaseName = Annotated[str, AfterValidator(_follows(_RELEASE, RELEASE_RULE)), _shown(f"({_RELEASE})", RELEASE_RULE)]
TagName = Annotated[str, AfterValidator(_follows(TAG_PATTERN, TAG_RULE)), _shown(TAG_PATTERN, TAG_RULE)]
KeyName = Annotated[str, AfterValidator(_follows("[0-9a-f]{64}", _KEY_RULE)), _shown("[0-9a-f]{64}", _KEY_RULE)]
DigestName = Annotated[
    str, AfterValidator(_follows("[0-9a-f]{64}", _DIGEST_RULE)), _shown("[0-9a-f]{64}", _DIGEST_RULE)
]
