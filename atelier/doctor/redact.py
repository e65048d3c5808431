"""Remove secrets from text: those that this computer knows by value in every form they may take, all others by shape."""

import base64
import html
import ipaddress
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote, urlsplit

from atelier import paths
from atelier.credentials import Credentials
from atelier.settings import Settings

HIDDEN = "[hidden]"
SHORTEST = 6  # characters; anything shorter would blank words of ordinary text
SECRET_NAMES = re.compile(r"(?i)(password|passwd|secret|token|api_?key|access_?key|private_?key|credential)")


def known_secrets(
    credentials: Credentials | None, folder: Path, settings: Settings, environment: Mapping[str, str] = os.environ
) -> frozenset[str]:
    """Every secret that this computer holds for a host: stored credentials, all else in its folder, keys, environment."""
    found: set[str] = set()
    if credentials:
        for account in (credentials.comfyui, credentials.forge):
            digest = account.password_bcrypt
            # Mangled by a shell or by compose, a hash loses its head; salt and digest tell as much.
            found |= {account.password or "", digest, digest[7:], digest[29:], f"{account.user}:{account.password}"}
        found.add(credentials.comfyui_cookie_key)
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    files += [
        paths.PROJECT / Path(name).expanduser() for name in (settings.tls.key, settings.models.token_file) if name
    ]
    for path in files:
        found |= _values(path)
    found |= {value for name, value in environment.items() if SECRET_NAMES.search(name)}
    for url in (settings.proxy, *settings.models.mirrors):
        found.add(unquote(urlsplit(url or "").password or ""))
    return frozenset(secret for secret in found if len(secret) >= SHORTEST)


def _values(path: Path) -> set[str]:
    """What a file of the secrets' folder holds: whole lines, and the values of `key: value` and `key='value'`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return set()
    harmless = re.compile(r"^\s*(#.*|-----.*|[\w.-]+:|instance: .*|user: .*|\w+_USER=.*)?\s*$")
    lines = [line.strip() for line in lines if not harmless.match(line)]
    values = {match[1] for line in lines if (match := re.match(r"[\w.-]+(?:: |=)['\"]?(.+?)['\"]?$", line))}
    return values | {line for line in lines if not re.match(r"[\w.-]+(: |=)", line)}


def forms(secret: str) -> frozenset[str]:
    """A secret as it may stand in a log: plain, escaped for JSON (twice as well), URLs, HTML, shells and compose, in hex,
    and inside anything that was encoded in base64.
    """
    escaped = json.dumps(secret)[1:-1]
    plain = {
        secret,
        escaped,
        json.dumps(secret, ensure_ascii=False)[1:-1],
        json.dumps(escaped)[1:-1],
        quote(secret, safe=""),
        quote(secret),
        quote_plus(secret),
        quote(quote(secret, safe=""), safe=""),
        html.escape(secret),
        secret.replace("$", "$$"),
        secret.replace("$", "\\$"),
        secret.replace("'", "'\\''"),
        secret.encode().hex(),
        secret.encode().hex().upper(),
    }
    plain |= {re.sub(r"%[0-9A-F]{2}", lambda m: m[0].lower(), form) for form in plain}
    return frozenset(plain | _base64_cores(secret.encode()))


def _base64_cores(secret: bytes) -> set[str]:
    """The characters that a secret becomes within a longer text in base64, at each of the three alignments."""
    cores: set[str] = set()
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + secret).decode().rstrip("=")
        # The first and last characters hold bits of the neighbours too.
        first, last = -(-shift * 8 // 6), (shift + len(secret)) * 8 // 6
        core = encoded[first:last]
        if len(core) >= SHORTEST:
            cores |= {core, core.replace("+", "-").replace("/", "_")}
    return cores


_CALLED = r"(?:pass(?:word|wd|wort|phrase|code)|kennwort)"
_KEY = rf"(?:{_CALLED}|pwd|secret|token(?!iz)|api[_-]?key|access[_-]?key|private[_-]?key|credentials?|session|cookie)"
_STATE = r"(?!(?:\(?null\)?|none|true|false|unset)\b)"
_ORDINARY = (
    r"(?!(?:a|an|and|as|at|auth|authentication|be|been|before|by|can|cannot|changed?|changes|checks?|could|database|denied|do|does|empty"
    r"|entry|error|expired|expires|expiry|failed|fails|failure|fields?|files?|for|from|has|hash|hashe[ds]|hashing|have|if|in|incorrect"
    r"|invalid|is|ist|it|length|less|login|logon|manager|may|method|mismatch|missing|must|needed|new|no|not|now|of|off|ok|on|only|or"
    r"|policy|prompts?|protected|quality|read|received|recovery|rejected|requests?|required|requires|reset|rules?|set|shall|should"
    r"|storage|stored?|sufficient|that|the|this|to|too|type|unknown|updated?|used?|uses|valid|validation|was|were|when|which|will|with"
    r"|without|wrong|you|your)(?![\w+/=@$%!-]))"
)
"""Words that follow `password` in ordinary messages. What is none of them may be one."""
_WORD = rf"{_ORDINARY}{_STATE}[^\s,;:&\"'<>()\[\]}}{{=][^\s,;&\"'<>)\]}}]*"
_OPAQUE = r"(?=[\w+/=-]*\d)(?=[\w+/=-]*[A-Za-z])(?!(?:0x)?(?:[0-9A-F]{8}|[0-9A-F]{16}|[0-9A-F]{40})\b)"
"""Letters and digits, and no fingerprint of a public key as gpg writes it."""
_VALUE = rf"(?:{re.escape(HIDDEN)}|\\*\"[^\"\n]*\"|\\*'[^'\n]*'|[^\s,;&\"'<>)\]}}]+)"

SHAPES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?i)((?:proxy-)?authorization\\*[\"']?\s*[:=]\s*)[^\r\n]*", rf"\1{HIDDEN}"),
        (r"(?i)((?:set-)?cookie2?\\*[\"']?\s*:\s*)[^\r\n]*", rf"\1{HIDDEN}"),
        (r"(?i)\b(x-[a-z-]*(?:key|token|auth|secret)[a-z-]*\\*[\"']?\s*[:=]\s*)[^\r\n]*", rf"\1{HIDDEN}"),
        (r"(?i)\b(bearer|basic|digest|negotiate)\s+[A-Za-z0-9+/=._~$-]{8,}", rf"\1 {HIDDEN}"),
        # Whatever it consists of, with or without a scheme, up to where a value of JSON or a line ends.
        (
            r"(?i)((?<![a-z])(?:https?|ftp|all|socks\d?)?[:_.-]*proxy\\*[\"']?(?:\s*[:=]\s*\\*[\"']?|\s+\\*[\"']))"
            r"(?:(?!\\*[\"']\s*[,;}\]]|\\+n)[^\n])*@",
            rf"\1{HIDDEN}@",
        ),
        (r"\b([a-z][a-z0-9+.-]*://)[^\s\"'<>]*@", rf"\1{HIDDEN}@"),
        (
            r"(?i)([?&](?:[\w.-]*(?:token|key|sig|signature|credential|secret|password|auth|code|policy)[\w.-]*)=)[^&\s\"'<>]+",
            rf"\1{HIDDEN}",
        ),
        (r"(?i)(--[\w-]*(?:password|token|secret|auth|api-?key)[\w-]*(?:\s+|=))\S+", rf"\1{HIDDEN}"),
        (r"(\s(?:-u|--user|--proxy-user)\s+)[^\s:]+:\S+", rf"\1{HIDDEN}"),
        (rf"(?i)((?<![\w]){'[a-z0-9_.-]*'}{_KEY}[\w.-]*\\*[\"']?\s*(?:=>|[:=])\s*){_STATE}{_VALUE}", rf"\1{HIDDEN}"),
        # A unit's description: that of a unit of systemd-run is its command line.
        (r"(\bsystemd\[\d+\]: [^\n]*?\S+\.(?:service|scope|timer|path|socket|mount)) - [^\n]*", r"\1"),
        (r"(\[systemd-run\]) [^\n]*", rf"\1 {HIDDEN}"),
        (r"\$2[abxy]?\$\d\d\$[./A-Za-z0-9]{8,}", HIDDEN),
        (r"(?i)%242[abxy]?%24\d\d%24[./%A-Za-z0-9]{8,}", HIDDEN),
        (r"\$(?:1|5|6|7|y|gy|sha1|argon2\w*|scrypt|pbkdf2[\w-]*)\$[^\s:\"']{8,}", HIDDEN),
        (r"\b(?:hf|gh[pousr]|glpat|dckr_pat|nvapi|npm|pypi|rk_live|sk_live)[_-][A-Za-z0-9_-]{16,}", HIDDEN),
        (r"\bgithub_pat_\w{16,}", HIDDEN),
        (r"\bsk-[A-Za-z0-9_-]{16,}", HIDDEN),
        (r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}", HIDDEN),
        (r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}\b", HIDDEN),
        (r"\bAIza[\w-]{30,}", HIDDEN),
        (r"\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?", HIDDEN),
        (r"\bgAAAA[\w-]{20,}={0,2}", HIDDEN),
        (r"\b(?:ssh-(?:rsa|dss|ed25519)|ecdsa-sha2-\S+|sk-\S+@openssh\.com) AAAA[A-Za-z0-9+/=]+", HIDDEN),
        (r"-----BEGIN ([A-Z0-9 ]*PRIVATE KEY[A-Z ]*)-----.*?-----END \1-----", HIDDEN),
        (r"\bAGE-SECRET-KEY-1[A-Z0-9]+", HIDDEN),
        (r"\btskey-[a-z]+-[\w-]+", HIDDEN),
        (r"(?i)(\bhooks\.slack\.com/\w+/)[^\s\"'<>]+", rf"\1{HIDDEN}"),
        (r"(?i)(/api/webhooks/|\bwebhook\.office\.com/)[^\s\"'<>]+", rf"\1{HIDDEN}"),
        (r"(?i)(\bapi\.telegram\.org/bot)[^\s/\"'<>]+", rf"\1{HIDDEN}"),
        (r"(?i)(\b(?:mysql\w*|mariadb[\w-]*|7z[ar]?|rar|unrar)\s(?:[^\n|;]*?\s)?-p)[^\s\"']+", rf"\1{HIDDEN}"),
        (r"(?i)(\bsshpass\s+-p\s*)\S+", rf"\1{HIDDEN}"),
        (rf"(?i)((?<![a-z])key\\*[\"']?\s*[:=]\s*){_STATE}(?!/(?:etc|usr|var|srv|opt|run)/){_VALUE}", rf"\1{HIDDEN}"),
        (r"(?i)((?<![a-z])auth\\*[\"']?\s*[:=]\s*\\*[\"']?)[\w+/=-]{8,}", rf"\1{HIDDEN}"),
        (rf"(?i)((?<![a-z/.]){_CALLED}\s+(?:(?:is|was|ist|lautet)\s+)?){_WORD}", rf"\1{HIDDEN}"),
        (rf"(?i)(\b(?:with|and|using|user\s+\S+|login\s+\S+)\s+pass\s+){_WORD}", rf"\1{HIDDEN}"),
        (rf"(?i)(\bpass\s*[:=]\s*)(?!\d{{1,4}}\b){_VALUE}", rf"\1{HIDDEN}"),
        (rf"(?i)(\bregistry\s+auth\s+){_WORD}", rf"\1{HIDDEN}"),
        (
            rf"(?i)(\b(?:civitai|hugging\s?face|api|access)[\s_-]key\s+(?:is\s+)?){_WORD}",
            rf"\1{HIDDEN}",
        ),
        (rf"(?i)(\b(?:licen[cs]e|secret|private|with|using)\s+key\s+){_OPAQUE}[\w+/=-]{{6,}}", rf"\1{HIDDEN}"),
        (rf"(?i)(\bkey\s+){_OPAQUE}[A-Za-z0-9+/=-]{{16,}}(?![\w.:])", rf"\1{HIDDEN}"),
    )
)

E_MAIL = re.compile(r"\b[\w.+-]+@(?:[\w-]+\.)+[A-Za-z]{2,}\b")
ADDRESS = re.compile(r"(?<![\w.=-])(?:\d{1,3}(?:\.\d{1,3}){3}|(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4})(?![\w.-])")


class Redactor:
    """Removes secrets from one text after another. Public addresses get numbers that stay the same from text to text."""

    def __init__(self, secrets: Iterable[str]) -> None:
        every = {form for secret in secrets for form in forms(secret)}
        # The longest first, so that no part of a longer one stays behind.
        ordered = sorted(every, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        self._addresses: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        if self._known:
            text = self._known.sub(HIDDEN, text)
        text = _without_private_keys(text)
        for shape, replacement in SHAPES:
            text = shape.sub(replacement, text)
        text = E_MAIL.sub("[e-mail]", text)
        return ADDRESS.sub(self._pseudonym, text)

    def _pseudonym(self, found: re.Match[str]) -> str:
        try:
            address = ipaddress.ip_address(found[0])
        except ValueError:
            return found[0]
        if not address.is_global:
            return found[0]
        return self._addresses.setdefault(str(address), f"[address {len(self._addresses) + 1}]")


KEY_TEXT = re.compile(r"(^|[\s:>|])[A-Za-z0-9+/]{40,}={0,2}\s*$")
KEY_LINES = 100  # more than any private key has


def _without_private_keys(text: str) -> str:
    """Keys over several lines, each perhaps with a log's prefix; also one whose beginning or end was cut off."""
    lines = text.splitlines(keepends=True)
    kept: list[str] = []
    at = 0
    while at < len(lines):
        begin = re.search(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY", lines[at])
        if begin and not _ends_key(lines[at]):
            kept.append(f"{lines[at][: begin.start()]}{HIDDEN}\n")
            at += 1 + _key_length(lines[at + 1 : at + KEY_LINES])
        elif _ends_key(lines[at]) and not begin:
            if kept and not KEY_TEXT.search(kept[-1]):
                kept.pop()  # the last line of a key is short
            while kept and KEY_TEXT.search(kept[-1]):
                kept.pop()
            kept.append(f"{HIDDEN}\n")
            at += 1
        else:
            kept.append(lines[at])
            at += 1
    return "".join(kept)


def _ends_key(line: str) -> bool:
    return re.search(r"-----END [A-Z0-9 ]*PRIVATE KEY", line) is not None


def _key_length(rest: list[str]) -> int:
    """How many of the lines after the first belong to a private key, the last one included."""
    end = next((number for number, line in enumerate(rest) if _ends_key(line)), None)
    if end is not None:
        return end + 1
    return next((number for number, line in enumerate(rest) if not KEY_TEXT.search(line)), len(rest))
