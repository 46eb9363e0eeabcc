"""What is wrong with the variables of a process: misspelt, unusable, or without effect."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from stagetrace import log, settings
from stagetrace.guard import guarded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PREFIX: Final = f"{settings.SWITCH.name}_"
_KNOWN: Final = [name for name in settings.SETTINGS if name.startswith(settings.SWITCH.name)]
_ENDINGS: Final = [name.removeprefix(PREFIX) for name in _KNOWN if name.startswith(PREFIX)]
# As Kubernetes and Docker set them in each container beside a service that is named `stagetrace`, or begins so.
_INJECTED: Final = r".*_SERVICE_(HOST|PORT(_.*)?)|.*_PORT_\d+_(TCP|UDP|SCTP)(_.*)?"
_ADDRESS: Final = r"(tcp|udp|sctp)://"
_ALIKE: Final = 0.6
_ALIKE_WITH_PREFIX: Final = 0.85


def misspelt(variables: Mapping[str, str]) -> list[tuple[str, str | None]]:
    """Return the variables that look like ours and are not in the table, each with the one that was probably meant."""
    names = [name for name in variables if name.startswith("STA") and name not in settings.SETTINGS]
    found = [(name, _meant(name)) for name in sorted(names) if not _is_injected(name, variables[name])]
    return [(name, meant) for name, meant in found if meant is not None or name.startswith(PREFIX)]


def _is_injected(name: str, value: str) -> bool:
    return bool(re.fullmatch(_INJECTED, name) or (name.endswith("_PORT") and re.match(_ADDRESS, value)))


def _meant(name: str) -> str | None:
    import difflib

    if not name.startswith(PREFIX):
        return next(iter(difflib.get_close_matches(name, _KNOWN, 1, _ALIKE_WITH_PREFIX)), None)
    rest = name.removeprefix(PREFIX).upper()
    longer = (known for known in _ENDINGS if rest.startswith(f"{known}_"))  # LOG_LEVEL
    near = next(iter(difflib.get_close_matches(rest, _ENDINGS, 1, _ALIKE)), None) or next(longer, None)
    return None if near is None else PREFIX + near


def misspelt_text(found: Iterable[tuple[str, str | None]]) -> str:
    """Return in a line what is wrong with misspelt variables."""
    each = (
        f"{name} is no variable of stagetrace" + (f": did you mean {meant}?" if meant else "") for name, meant in found
    )
    return "; ".join(each)


@guarded
def log_misspelt() -> None:
    """Log the misspelt variables of this process."""
    found = misspelt(settings.environment())
    if found:
        log.warning(misspelt_text(found))


def without_switch(variables: Mapping[str, str]) -> list[str]:
    """Return the variables of recording that are set where STAGETRACE is not, and so have no effect."""
    if settings.SWITCH.name in variables:
        return []
    return [
        name
        for name in _KNOWN
        if (setting := settings.SETTINGS[name]).side == settings.RECORDING
        and not (isinstance(setting, settings.Switch) and setting.default)  # which asks for nothing
        and variables.get(name, "").strip()
    ]


def without_switch_text(names: list[str]) -> str:
    """Return in a line that these variables have no effect, and how to change that."""
    which = f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} set and {settings.SWITCH.name} is not"
    return f"{which}: services started from here are not recorded; {settings.SWITCH.name}=1 records them"


def whole_number(setting: settings.Number) -> int:
    """Return a variable's value; log it once, and return the default, if it is no whole number from 1 on."""
    text = setting.text()
    if not text:
        return setting.default
    if text.isdecimal() and int(text):
        return int(text)
    log.once(setting.name, f"{setting.name}={text} is not a whole number from 1 on; using {setting.default}.")
    return setting.default


def limit(setting: settings.Limit, default: int | None) -> int | None:
    """Return a limit, None where there is to be none; log it once, and return the default, if it is no whole number."""
    text = setting.raw()
    if text is None:
        return default
    if not (text := text.strip()):
        return None
    if text.isdecimal() and text.isascii():
        return int(text)
    log.once(setting.name, f"{setting.name}={text[:40]} is not a whole number from 0 on; using {default}.")
    return default


def one_of(setting: settings.OneOf) -> str:
    """Return a variable's value in lower case; log it once, and return the default, if it is none of its words."""
    text = setting.text().lower()
    if text in setting.words or not text:
        return text or setting.words[0]
    words = ", ".join(setting.words)
    log.once(setting.name, f"{setting.name}={text[:40]} is none of: {words}; using {setting.words[0]}.")
    return setting.words[0]
