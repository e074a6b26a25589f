"""Addresses of streams and web services, as they may be shown and stored: without user, password and tokens.

Every address that leaves the process (terminal, logs, CSV, JSON, HTML, file names) goes through `shown`, `origin` or
`scrub`. Where it is unclear what is a secret, more is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

from iefvad.utils.errors import UserError

REMEDY = "in user and password write # as %23, / as %2F, ? as %3F, [ as %5B, ] as %5D, @ as %40 and a space as %20"
"""What to do about characters that end the user or the password too early."""

HIDDEN = "***"
"""What stands in place of a secret."""

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]+"  # two letters at least: C:/ is a drive
_ADDRESS = re.compile(rf"({_SCHEME}):(/+)(.*)", re.DOTALL)
_IN_TEXT = re.compile(rf"(?<![A-Za-z0-9+.-]){_SCHEME}:/+\S+")
_AT = re.compile(r"@|%(?:25)*40")
_USER_FIRST = re.compile(r"(?![A-Za-z]:[/\\])[^/\\\s:@]+:[^@]*@")  # user:password@host without a protocol
_WORDS = "pass|pwd|psw|token|auth|key|secret|sign|sig|credential|session|jwt|user|usr|login|account"
_SECRET = re.compile(rf"(?<![A-Za-z0-9.%-])([\w.-]*?(?:{_WORDS})[\w.-]*|pw|p|u)(=|%(?:25)*3d)", re.IGNORECASE)
_SECRET_IN_TEXT = re.compile(
    r"\b([\w.-]*(?:passw|passphrase|pwd|token|secret|api_?key|signature|credential)[\w.-]*=)\S+", re.IGNORECASE
)
_AUTHORIZATION = re.compile(r"\b(Bearer|Basic|Digest)(\s+)(?!auth)\S+", re.IGNORECASE)
# What tells two views of one recorder apart. The rest of a query is never shown.
_HARMLESS = re.compile(
    r"(?:^|[&;_?/#])((?:channel|ch|chn|cam|camera|cameraid|stream|streamtype|subtype|profile|resolution|quality|fps|track"
    r"|trackid|unicast|proto|linkif|id)=[A-Za-z0-9.:-]{1,24})(?=$|[&;_?/#])",
    re.IGNORECASE,
)


def shown(address: str) -> str:
    """Return an address without user, password, tokens and all else in its query that may be secret.

    A password may contain characters that should have been escaped, so the user and the password reach to the last `@`.

    Args:
        address: Address of a stream, number of a camera, device or file. A file and a device stay as they are.
    """
    match = _ADDRESS.fullmatch(address.strip())
    if match is None:
        if address.isdigit():
            return f"camera {address}"
        if _USER_FIRST.match(address):
            return _AT.split(address)[-1]
        return scrub(address) if _IN_TEXT.search(address) else address
    scheme, slashes, rest = match.groups()
    if scheme.lower() == "file" and not _SECRET.search(rest):
        return address
    return f"{scheme}:{slashes}{_printable(_without_secrets(_from_host(rest)))}"


def origin(address: str) -> str:
    """Return the protocol and the host of an address. The path of a webhook is a secret, too."""
    match = _ADDRESS.fullmatch(address.strip())
    if match is None:
        return HIDDEN
    host = re.split(r"[/?#\\]", _from_host(match[3]))[0]
    return f"{match[1]}://{_printable(host)}"


def scrub(text: str, addresses: Iterable[str] = ()) -> str:
    """Return a text, such as the message of a library, with each address in it as `shown` returns it.

    Args:
        text: The text.
        addresses: Addresses that are known to occur in it. They may contain spaces.
    """
    for address in sorted(set(addresses), key=len, reverse=True):
        if _is_address(address):
            for form in (address, re.sub("/+", "/", address), repr(address)[1:-1]):
                text = text.replace(form, shown(address))
    text = _IN_TEXT.sub(lambda match: shown(match[0]), text)
    text = _SECRET_IN_TEXT.sub(rf"\1{HIDDEN}", text)
    return _AUTHORIZATION.sub(rf"\1\2{HIDDEN}", text)


def check_address(address: str) -> None:
    """Check that user and password of an address have no characters that must be escaped.

    Raises:
        UserError: They have some, so that another host would be contacted, or none.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or match[1].lower() == "file":
        return
    authority = re.split(r"[/?#]", match[3])[0]
    user, at, host = authority.rpartition("@")
    port = re.search(r":([^:\]]*)$", host)
    no_port = port is not None and not re.fullmatch(r"\d{1,5}", port[1])
    if re.search(r"[\[\]\s]", user) or (not at and no_port and "@" in match[3]):
        raise UserError(f"{shown(address)}: the user or the password has a character with a meaning: {REMEDY}.")


def hint(address: str) -> str:
    """Return what may be wrong with an address that cannot be reached, as the end of a sentence, or an empty text."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        return ""
    authority = re.split(r"[/?#]", match[3])[0]
    return f"; {REMEDY}" if "@" in match[3][len(authority) :] else ""


def file_stem(address: str) -> str:
    """Return the name of the result files of live input, such as `camera.lan_554_stream` or `camera_0`."""
    place = shown(address).partition("://")[2] or shown(address)
    return re.sub(r"[^A-Za-z0-9.]+", "_", place).strip("_.")[:100].rstrip("_.") or "stream"


def _from_host(rest: str) -> str:
    """Leave out user and password."""
    begin = re.split(r"[/?#]", rest)[0]
    found, last = _SECRET.search(rest, len(begin)), [match.start() for match in _AT.finditer(rest)][-1:]
    if _AT.search(begin) or not found or not last or last[0] < found.start():
        return _AT.split(rest)[-1]
    # The last @ is in the value of password=..., or password= is itself in a password. Then the host is unclear.
    return rest if re.fullmatch(r"[\w-]+(\.[\w-]+)+(:\d*)?|\[[0-9a-fA-F:.]+\](:\d*)?", begin) else HIDDEN


def _without_secrets(rest: str) -> str:
    """Return host, path and the harmless part of the query."""
    path, mark, query = re.match(r"([^?#]*)([?#]?)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    host, slash, path = path.partition("/")
    plain = path
    for _ in range(3):  # a whole address may have been escaped, even twice
        plain = unquote(plain)
    if plain != path and _SECRET.search(plain):
        path = plain
    kept = ""
    if found := _SECRET.search(path):
        # The secret may contain any character, so only what is known to be harmless is kept of the rest.
        kept = f"{found[1]}={HIDDEN}" + "".join(f"&{pair}" for pair in _HARMLESS.findall(path[found.end() :]))
        path = path[: found.start()]
    path = re.sub(r"(?<![^/])[^/:]+:[^/]+", HIDDEN, path)  # user:password or a bot's token as a part of the path
    harmless = [] if kept and mark == "" else _HARMLESS.findall(mark + query)
    return host + slash + path + kept + (f"?{'&'.join(harmless)}" if harmless else "")


def _is_address(text: str) -> bool:
    return bool(_ADDRESS.fullmatch(text.strip()) or _USER_FIRST.match(text)) and "/" in text


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
