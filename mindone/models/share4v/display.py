"""What people may be shown: text without characters that control a terminal, and URLs without their secrets."""

from __future__ import annotations

import re
from pathlib import Path

# C0 and C1 controls, DEL, line and paragraph separators, lone surrogates, and every character with the Unicode property
# Bidi_Control: those show `photo<U+202E>gpj.exe` as `photoexe.jpg`. Joiners (U+200C, U+200D), which emoji and many
# scripts need, are not among them.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_USER_INFO = re.compile(r"(?<=://)[^/\s]*@")
# A parameter of a query or fragment. The lengths are bounded so that the search takes linear time.
_PARAMETER = re.compile(r"([?&;#])([^=&;?#\s]{1,200})=([^&;#\s'\"<>()]+)")
_SECRET_NAME = re.compile(
    r"token|secret|passw|passphrase|pwd|auth|api.?key|access.?key|private.?key|signature|credential|session|jwt|bearer"
    r"|\A(?:key|sig|hmac|pass|sas|code)\Z",
    re.IGNORECASE,
)
_HIDDEN = "***"


def printable(text: str, keep: str = "\n\t") -> str:
    r"""Return text that is safe to print: characters that act on a terminal, or reorder text, become escapes.

    A byte of a file name that is not valid text (a lone surrogate of Python's) becomes the escape of the byte.

    Args:
        text: any text, such as a file name, a tensor's name or a caption.
        keep: control characters that are kept; pass "" for text on one line.

    Example:
        >>> from mindone.models.share4v.display import printable
        >>> print(printable("red\x1b[31m, caf\udce9, \u202egpj.exe"))
        red\x1b[31m, caf\xe9, \u202egpj.exe
    """
    return _UNSAFE.sub(lambda found: found[0] if found[0] in keep else _escape(ord(found[0])), text)


def shell_name(name: str) -> str:
    r"""Return a file name that is safe to print and can be pasted into a shell: unchanged, or in $'...' with escapes.

    Bash and zsh read these escapes. Names with spaces are not quoted, because people read them more often than shells.

    Example:
        >>> from mindone.models.share4v.display import shell_name
        >>> print(shell_name("my photo.jpg"), shell_name("caf\udce9.jpg"))
        my photo.jpg $'caf\xe9.jpg'
    """
    if _UNSAFE.search(name) is None:
        return name
    quoted = name.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + _UNSAFE.sub(lambda found: _shell_escape(ord(found[0])), quoted) + "'"


def json_printable(document: str) -> str:
    r"""Return a JSON document of the same value in which the characters that `printable` escapes are JSON escapes.

    Line breaks between values are kept; inside a string JSON has none.

    Example:
        >>> from mindone.models.share4v.display import json_printable
        >>> print(json_printable('{"name": "\u202egpj.exe"}'))
        {"name": "\u202egpj.exe"}
    """
    return _UNSAFE.sub(lambda found: found[0] if found[0] in "\n\t" else f"\\u{ord(found[0]):04x}", document)


def looked_in(path: str) -> str:
    """Return where a relative path was looked for, for messages about missing files; "" for an absolute path.

    Example:
        >>> from mindone.models.share4v.display import looked_in
        >>> looked_in("/photos/a.png")
        ''
    """
    return "" if Path(path).is_absolute() else f" (looked in {Path.cwd()})"


def redacted(text: str) -> str:
    """Return a URL, or a message that contains URLs, without user names, passwords and secret parameters.

    Values of parameters whose names tell that they are secrets (token, key, signature, ...) become `***`.

    Example:
        >>> from mindone.models.share4v.display import redacted
        >>> redacted("https://me:pass@example.org/a.jpg?size=2&token=1234")
        'https://example.org/a.jpg?size=2&token=***'
    """
    if "://" in text:
        text = _USER_INFO.sub("", text)
    return _PARAMETER.sub(_hide, text) if "=" in text else text


def _hide(found: re.Match[str]) -> str:
    return f"{found[1]}{found[2]}={_HIDDEN}" if _SECRET_NAME.search(found[2]) else found[0]


def _escape(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # Python's stand-in for a byte that is not text
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _shell_escape(code: int) -> str:
    r"""Return an escape that a shell turns into the same bytes: `\xHH` is a byte, and `\uHHHH` a character in UTF-8."""
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"
