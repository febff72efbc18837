"""Why a request failed: the file's own fault, or a fault of its surroundings. Torch-free.

No protocol's package is imported here: exceptions are recognised by their attributes. Anything unknown is never the
file's fault: the work stops, and no image is left out.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable, Iterator
from enum import Enum
from http import HTTPStatus
from typing import TypeVar

from byol.files.regular import SourceUnavailable
from byol.text import on_one_line, printable, reason_of, without_secrets

T = TypeVar("T")

PAUSES = (1.0, 4.0, 15.0)  # seconds before the second, third and fourth try
MOST_WORDS = 300  # characters of a reason: a server may write what it likes
MOST_PAUSE = 60.0  # seconds, whatever a server asks for
WHOLE_ONLY = "its server sends whole files only; download it first"
NO_BYTES = "it is empty, or shorter than before"
AGAIN = "run the same command again later"

# Error codes of S3 and Azure that blame the client: every further image would be refused, too.
WRONG_ASKER = {
    *("ExpiredToken", "InvalidToken", "TokenRefreshRequired", "RequestExpired", "RequestTimeTooSkewed"),
    *("InvalidAccessKeyId", "InvalidClientTokenId", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed"),
    *("AuthFailure", "InvalidSecurity", "AccountProblem", "NotSignedUp"),
    *("AuthenticationFailed", "InvalidAuthenticationInfo", "NoAuthenticationInformation"),
}
_WRONG_NAME = {"KeyTooLongError", "InvalidURI", "ParamValidationError"}  # no such file can exist


class Fault(Enum):
    """Whose fault a failure is, and so what follows."""

    ITS_OWN = "this file is left out"
    DENIED = "this file is left out, if its folder is still readable"
    FINAL = "the work stops"
    PASSING = "it is retried, then the work stops"


class Refusal(OSError):
    """A server's refusal, in words without the URL. `after`: seconds that it asks us to wait."""

    def __init__(self, reason: str, fault: Fault = Fault.ITS_OWN, after: float = 0.0):
        self.reason, self.fault, self.after = reason[:MOST_WORDS], fault, after
        super().__init__(self.reason)


def patiently(place: str, call: Callable[[], T], advice: str = AGAIN) -> T:
    """The result of `call`, retried after pauses while the failure may be temporary.

    Raises `Refusal` when the file itself is at fault, else `SourceUnavailable` naming `place`.
    """
    pauses = iter(PAUSES)
    while True:
        try:
            return call()
        except SourceUnavailable:
            raise
        except Exception as error:
            fault, reason = fault_of(error), words_for(error)[:MOST_WORDS]
            if fault in (Fault.ITS_OWN, Fault.DENIED):
                raise Refusal(reason, fault) from error
            pause = next(pauses, None)
            if fault is Fault.FINAL or pause is None:
                raise SourceUnavailable(f"{printable(place)} cannot be read now: {reason}; {advice}") from error
            time.sleep(min(max(pause, _asked_pause(error)), MOST_PAUSE))


def fault_of(error: BaseException) -> Fault:
    """Whose fault an exception of any protocol is."""
    links = list(_chain(error))
    for link in links:
        if isinstance(link, Refusal):
            return link.fault
    codes = {_code(link) for link in links} | {type(link).__name__ for link in links}
    if codes & WRONG_ASKER:
        return Fault.FINAL
    if codes & _WRONG_NAME:
        return Fault.ITS_OWN
    status = next(filter(None, map(_status, links)), None)
    return fault_of_status(status) if status else _fault_of_kind(links[-1])


def fault_of_status(status: int) -> Fault:
    """Whose fault an HTTP status is. Unknown ones stop the work."""
    if status in (404, 410, 416):
        return Fault.ITS_OWN
    if status == 403:
        return Fault.DENIED
    return Fault.PASSING if status in (408, 425, 429) or status >= 500 else Fault.FINAL


def _fault_of_kind(error: BaseException) -> Fault:
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return Fault.ITS_OWN
    if isinstance(error, PermissionError) or str(error).startswith("Forbidden: "):  # so gcsfs says 403
        return Fault.DENIED
    return Fault.FINAL if isinstance(error, ImportError) else Fault.PASSING


def words_for(error: BaseException) -> str:
    """What went wrong, in one line without the URL."""
    for link in _chain(error):
        if isinstance(link, Refusal):
            return link.reason
        if (status := _status(link)) == 416:
            return NO_BYTES
        if (code := _code(link)) and not code.isdigit():
            return on_one_line(without_secrets(f"{code}: {reason_of(error)}"))
        if status:
            return phrase(status)
    if isinstance(error, FileNotFoundError) and not error.strerror:
        return "no such file"
    if isinstance(error, TimeoutError) and not str(error):
        return "it does not answer in time"
    return reason_of(error)


def phrase(status: int) -> str:
    """An HTTP status in the words of the standard."""
    known = status in HTTPStatus._value2member_map_
    return f"HTTP {status}{f' ({HTTPStatus(status).phrase})' if known else ''}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception, what it was raised from, and so on: fsspec wraps those of the protocols."""
    link: BaseException | None = error
    for _ in range(10):
        if link is not None:
            yield link
            link = link.__cause__


def _code(error: BaseException) -> str:
    """The code of an error of S3 or Azure."""
    if isinstance(code := getattr(error, "error_code", None), str):
        return str(getattr(code, "value", code))
    response = getattr(error, "response", None)
    details = response.get("Error") if isinstance(response, dict) else None
    return str(details.get("Code") or "") if isinstance(details, dict) else ""


def _status(error: BaseException) -> int | None:
    """The HTTP status in an exception of aiohttp, gcsfs, Azure or botocore."""
    if type(error).__module__ == "aiohttp.http_exceptions":  # reports a truncated body as status 400
        return None
    response = getattr(error, "response", None)
    facts = response.get("ResponseMetadata") if isinstance(response, dict) else None
    candidates = [getattr(error, name, None) for name in ("status", "code", "status_code")]
    candidates.append(facts.get("HTTPStatusCode") if isinstance(facts, dict) else None)
    return next((value for value in candidates if isinstance(value, int) and 100 <= value <= 599), None)


def _asked_pause(error: BaseException) -> float:
    """The seconds that a server asks us to wait (`Retry-After`), 0 if it does not."""
    for link in _chain(error):
        if isinstance(link, Refusal):
            return link.after
        response = getattr(link, "response", None)
        facts = response.get("ResponseMetadata") if isinstance(response, dict) else None
        if isinstance(facts, dict):
            return seconds_of(str((facts.get("HTTPHeaders") or {}).get("retry-after", "")))
    return 0.0


def seconds_of(retry_after: str) -> float:
    """The header `Retry-After`, seconds or a date, in seconds from now; 0 for what is neither."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0
