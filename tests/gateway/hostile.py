"""Hostile requests as bytes: rows of the table of who gets what, and noise, mutated. The same seed makes the same again.

None carries a valid credential: tokens and passwords are nearly right, of the other application, or right and shown
where no credential is read.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Header = tuple[bytes, bytes]

METHODS = b"GET HEAD POST PUT PATCH DELETE OPTIONS".split()
ODD_METHODS = [
    *b"TRACE CONNECT PROPFIND get Get GETT PRI M-SEARCH * /".split(),
    b"",
    b"GET\t",
    b"G ET",
    b"\x16\x03\x01",
]
VERSIONS = [*b"HTTP/1.0 HTTP/2.0 HTTP/0.9 HTTP/1.2 HTTP/9 http/1.1 HTTP/1.1.1 HTTP".split(), b"", b"HTTP/1.1 x"]
PIECES = [
    *b"/ // /./ /../ /%2e%2e/ /%2E/ %2f %2F %252f %5c %255c %00 %0a %0d%0a %20 %09 %c0%af %ff %7f % %zz %u002f".split(),
    *b"; ;a=1 ;.js ? ?? # . .. ... ~ * + , = @ : & $ ! ' ( ) [ ] { } | ^ ` < > \" \\ \\..\\ \xc3\xa9 \xff \x01".split(),
    *b".js .css .css.map .ico .js/ ?.js #.js /.js %2ejs .JS /login /login/ /theme.css /assets/a.js /static/img/a.svg".split(),
    *b"/old_css/style.css /api /internal/logs /prompt /config /sdapi/v1/samplers /healthz /file= /proxy= ?token=".split(),
    b" ",
    b"\t",
    b"\x00",
    b" HTTP/1.1",
    b"/" * 3000,
    b"a" * 9000,
    b"?" + b"a=1&" * 3000,
]
OURS = b"X-Atelier-Route X-Atelier-Purpose X-Atelier-Application X-Atelier-Who X-Atelier-Cookie".split()
OURS_SAY = b"application guard serve judge alive health comfyui-qwen forge-turbo owner basic:forge-owner".split()
FORWARDED = [
    *b"X-Forwarded-Uri X-Forwarded-Method X-Forwarded-For X-Forwarded-Proto X-Forwarded-Host X-Forwarded-Prefix".split(),
    *b"X-Original-URL X-Rewrite-URL X-Original-URI X-HTTP-Method-Override X-Real-IP X-Request-Id Forwarded".split(),
]
FORWARDED_SAY = [
    *b"/ /login /theme.css /healthz /prompt GET POST https http evil.example 127.0.0.1 ::1 unknown 8.8.8.8,127.0.0.1".split(),
    b"for=127.0.0.1;host=x",
]
DROPPED = b"Authorization Cookie Host Origin Content-Length Transfer-Encoding X-Forwarded-For Upgrade close keep-alive".split()
ENCODINGS = [
    b"chunked",
    b"Chunked",
    b"\tchunked",
    b"chunked, identity",
    b"identity, chunked",
    b"xchunked",
    b"gzip, chunked",
]
LENGTHS = [*b"0 5 +5 -1 0x5 5,5 5,6 00005 18446744073709551616 1e3 999999999".split(), b"5 5", b""]
ODD_HEADERS: list[bytes] = [
    b"no colon",
    b": no name",
    b"Space : before",
    b" folded: at once",
    b"Folded: one\r\n two",
    b"Folded: one\r\n\ttwo",
    b"Bare: line\nFeed: x",
    b"Bare: return\rX: y",
    b"Nul: a\x00b",
    b"Latin: \xe9\xff",
    b"\xff\xfe: name",
    b"Under_score: x",
    b"Content_Length: 3",
    b"Transfer_Encoding: chunked",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding\x0b: chunked",
    b"Content-Length: 5\r\n\t",
    b"Long: " + b"x" * 5000,
    b"Longer: " + b"x" * 40000,
    b"\r\n".join(b"Many-%d: x" % number for number in range(300)),
    b"\r\n".join([b"Same: x"] * 150),
    b"Expect: 100-continue",
    b"Expect: 200-maybe",
    b"Range: bytes=0-",
    b"If-None-Match: *",
    b"Te: trailers",
    b"Trailer: Authorization",
    b"Accept: text/html",
    b"Accept-Encoding: gzip, br, zstd",
    b"Origin: null",
    b"Origin: https://evil.example",
    b"Referer: http://127.0.0.1/login",
    b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    b"Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 8",
    b"Content-Type: application/json",
    b"Content-Type: application/x-www-form-urlencoded",
    b"Content-Type: multipart/form-data; boundary=b",
    b"Content-Encoding: gzip",
    b"Access-Control-Request-Method: POST\r\nOrigin: https://evil.example",
]
FORM_TYPES = [
    b"Content-Type: application/x-www-form-urlencoded",
    b"Content-Type: application/x-www-form-urlencoded; charset=none",
    b"Content-Type: multipart/form-data",
    b"Content-Type: multipart/form-data; boundary=b",
    b"Content-Type: multipart/form-data; boundary=" + b"b" * 100,
    b"Content-Type: application/x-www-form-urlencoded\r\nContent-Encoding: gzip",
]
H2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"


@dataclass(frozen=True)
class Secrets:
    """What the owner of one application shows, and what belongs to the other one."""

    authorization: Header
    right: tuple[bytes, ...]
    foreign: tuple[Header, ...]
    misplaced: tuple[Header, ...]


class Hostile:
    """Makes hostile requests to one application."""

    def __init__(self, rows: Sequence[tuple[str, str]], secrets: Secrets, port: int, seed: str) -> None:
        self._rows = [(method.encode(), target.encode()) for method, target in rows]
        self._secrets, self._port = secrets, port
        self._random = random.Random(seed)

    def requests(self) -> list[bytes]:
        """Some requests, or what looks like them, to be sent one behind the other."""
        number = self._random.randint(1, 24)
        # Never behind a mutated one, whose last header could take up the request line and leave the right credential.
        if self._one_in(20):
            return [self._misplaced() for _ in range(number)]
        return [raw for raw in (self._mutated() for _ in range(number)) if raw is not None]

    def _misplaced(self) -> bytes:
        method, target = self._random.choice(self._rows)
        headers = [(b"Host", b"x"), self._random.choice(self._secrets.misplaced)]
        if self._one_in(4):
            target += (
                (b"&" if b"?" in target else b"?")
                + b"token="
                + self._secrets.right[0]
                + self._random.choice((b"", b"&\xff"))
            )
        elif self._one_in(4):  # what is right is refused where the target is not a path
            form = self._random.choice(
                (b"http://x", b"https://127.0.0.1", b"file://x", b"http:", b"//x", b"http://x%C0%AF")
            )
            target, headers = form + target, [(b"Host", b"x"), self._secrets.authorization]
        return self._write(method, target, b"HTTP/1.1", headers)

    def _mutated(self) -> bytes | None:
        choice = self._random.choice
        if self._one_in(200):
            return H2_PREFACE + self._random.randbytes(self._random.randrange(60))
        if self._one_in(100):
            return self._random.randbytes(self._random.randrange(1, 300)) + b"\r\n\r\n"
        method, target = choice(self._rows)
        if self._one_in(4):
            method = choice(METHODS) if self._one_in(2) else choice(ODD_METHODS)
        for _ in range(choice((0, 0, 1, 1, 2, 4))):
            target = self._mutate_target(target)
        version = choice(VERSIONS) if self._one_in(25) else b"HTTP/1.1"
        headers: list[Header | bytes] = [(b"Host", self._host())] if not self._one_in(40) else []
        for _ in range(choice((0, 1, 1, 2, 3))):
            headers.append(choice(self._makers())())
        body = b""
        if self._one_in(4):
            framing, body = self._body()
            headers += framing
        self._random.shuffle(headers)
        raw = self._write(method, target, version, headers, body)
        for _ in range(choice((0, 0, 0, 0, 0, 1, 3))):
            raw = self._mutate_bytes(raw)
        # A mutation must not make a right credential by accident.
        return None if any(right in raw for right in self._secrets.right) else raw

    def _write(
        self, method: bytes, target: bytes, version: bytes, headers: Sequence[Header | bytes], body: bytes = b""
    ) -> bytes:
        end = b"\n" if self._one_in(50) else b"\r\n"
        lines = [b" ".join((method, target, version))]
        lines += [header if isinstance(header, bytes) else header[0] + b": " + header[1] for header in headers]
        return end.join((*lines, b"", b"")) + body

    def _one_in(self, number: int) -> bool:
        return self._random.randrange(number) == 0

    def _host(self) -> bytes:
        choice = self._random.choice
        usual = b"127.0.0.1:%d" % self._port
        odd = [
            b"",
            b"x",
            b"evil.example",
            b"a b",
            b"/",
            b"x/prompt",
            b"x@y",
            b"[::1]",
            usual + b"\r\nHost: evil.example",
            b"\xff",
        ]
        return choice(odd) if self._one_in(10) else usual

    def _makers(self) -> list[Callable[[], Header | bytes]]:
        choice = self._random.choice
        return [
            lambda: choice(ODD_HEADERS),
            lambda: (choice(OURS), choice(OURS_SAY)),
            lambda: (choice(FORWARDED), choice(FORWARDED_SAY)),
            lambda: (b"Connection", b", ".join(self._random.choices(DROPPED + OURS + FORWARDED, k=3))),
            self._credential,
        ]

    def _credential(self) -> Header | bytes:
        choice, right = self._random.choice, self._random.choice(self._secrets.right)
        at = self._random.randrange(len(right))
        near = choice((right[:-1], right + b"a", right[:at] + b"." + right[at + 1 :], right.swapcase(), b"", right[1:]))
        scheme = choice(b"Bearer Basic bearer Digest Token".split())
        made: list[Header | bytes] = [
            (b"Authorization", scheme + b" " + near),
            (b"Authorization", scheme),
            (b"Authorization", near),
            (b"authorization", b"Basic Zm9yZ2Utb3duZXI6"),
            (b"Cookie", b"AIOHTTP_SESSION=" + near + b"; access-token-x=" + near),
            (b"Cookie", b"AIOHTTP_SESSION=gAAAA-guest"),
            (b"Cookie", b"; =; ,;AIOHTTP_SESSION; access-token-\xff=1"),
            choice(self._secrets.foreign),
            b"Authorization: Bearer a\r\nAuthorization: Basic YTpi",
        ]
        return choice(made)

    def _body(self) -> tuple[list[Header | bytes], bytes]:
        choice = self._random.choice
        inner = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % choice(self._rows)[1]
        content = choice(
            (
                inner,
                b"username=forge-owner&password=wrong",
                b"password=" + b"x" * choice((1, 72, 73, 5000)),
                b"password=%00&guest_mode=1",
                b'--b\r\nContent-Disposition: form-data; name="password"\r\n\r\nwrong\r\n--b--\r\n',
                b"--b\r\n\r\n",
                b'{"prompt": {}}',
                self._random.randbytes(50),
                b"",
            )
        )
        form: list[Header | bytes] = [choice(FORM_TYPES)] if self._one_in(2) else []
        length = (b"Content-Length", b"%d" % len(content))
        chunk = b"%x%s\r\n%s\r\n" % (len(content), choice((b"", b";a=b", b";" + b"x" * 300, b" ", b"\n")), content)
        chunked = (
            chunk * bool(content) + b"0\r\n" + choice((b"", b"Authorization: Bearer x\r\n", b"X: y\r\n")) + b"\r\n"
        )
        encoding = (b"Transfer-Encoding", b"chunked")
        odd_encoding = (b"Transfer-Encoding", choice(ENCODINGS))
        shapes: list[tuple[list[Header | bytes], bytes]] = [
            ([length], content),
            ([encoding], chunked),
            ([length, encoding], chunked),
            ([(b"Content-Length", b"4"), odd_encoding], chunked + inner),
            ([encoding, odd_encoding], chunked + inner),
            ([odd_encoding], chunked),
            ([(b"Content-Length", choice(LENGTHS))], content),
            ([length, (b"Content-Length", choice(LENGTHS))], content + inner),
            ([encoding], choice((b"zz\r\n", b"-1\r\n", b"ffffffffffffffffff\r\n", b"5\r\nab")) + inner),
        ]
        framing, body = choice(shapes)
        return [*framing, *form], body

    def _mutate_target(self, target: bytes) -> bytes:
        choice, at = self._random.choice, self._random.randrange(len(target) + 1)
        piece = choice(PIECES)
        if len(piece) > 1000 and not self._one_in(10):
            piece = b"/"
        host = b"127.0.0.1:%d" % self._port
        return choice(
            (
                target[:at] + piece + target[at:],
                target[:at] + piece + target[at:],
                target + piece,
                piece + target,
                target[:at] + b"%%%02x" % target[at] + target[at + 1 :] if at < len(target) else target,
                re.sub(rb"%", b"%25", target),
                target.swapcase(),
                choice(self._rows)[1] + target,
                target[:at],
                target.lstrip(b"/"),
                choice((b"http://", b"https://", b"HTTP://u:p@", b"http:", b"//", b"unix://", b"file://"))
                + host
                + target,
                host,
                b"*",
            )
        )

    def _mutate_bytes(self, raw: bytes) -> bytes:
        at, length = self._random.randrange(len(raw) + 1), self._random.randrange(1, 12)
        return self._random.choice(
            (
                raw[:at] + self._random.randbytes(1) + raw[at + 1 :],
                raw[:at] + raw[at + length :],
                raw[:at] + raw[at : at + length] * 2 + raw[at + length :],
                raw[:at] + self._random.choice((b"\r\n", b"\n", b"\r", b" ", b"\x00", b":")) + raw[at:],
                raw[:at],
            )
        )
