"""Errors of a request: status, message and the machine-readable parts that every API's format is made from."""

from __future__ import annotations

# Status -> the type in OpenAI's and in Anthropic's format.
_TYPES = {
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("authentication_error", "authentication_error"),
    403: ("permission_error", "permission_error"),
    404: ("not_found_error", "not_found_error"),
    405: ("invalid_request_error", "invalid_request_error"),
    408: ("timeout_error", "timeout_error"),
    409: ("invalid_request_error", "invalid_request_error"),
    413: ("invalid_request_error", "request_too_large"),
    415: ("invalid_request_error", "invalid_request_error"),
    429: ("rate_limit_error", "rate_limit_error"),
    500: ("server_error", "api_error"),
    503: ("unavailable_error", "overloaded_error"),
    504: ("timeout_error", "timeout_error"),
}
STATUSES = tuple(_TYPES)


class ApiError(Exception):
    """A request that gets an error as its answer.

    Args:
        status: of HTTP.
        message: what was received, what was expected, and what to do.
        param: the field that caused it.
        code: for programs, such as "model_not_found".
        retry_after: seconds after which the same request may succeed; None tells clients not to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after = retry_after

    @property
    def type(self) -> str:
        """Its type in OpenAI's format."""
        return _TYPES[self.status][0]

    @property
    def anthropic_type(self) -> str:
        """Its type in Anthropic's format."""
        return _TYPES[self.status][1]

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer. Clients repeat requests that failed with 408, 429 or 5xx, unless told not to."""
        if self.retry_after is not None:
            return {"Retry-After": str(self.retry_after)}
        return {"x-should-retry": "false"} if self.status in (408, 429) or self.status >= 500 else {}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error of a request that is wrong in itself."""
    return ApiError(400, message, param, code)


def no_memory() -> ApiError:
    """Return the error of a request for which the server has no memory at the moment."""
    message = "the server has not enough memory for this request now: try again later, or send less"
    return ApiError(503, message, code="out_of_memory", retry_after=10)


def restarting() -> ApiError:
    """Return the error of a request that comes between the end of an engine and the start of the next one."""
    return ApiError(503, "the model is being restarted: try again in a few seconds", retry_after=5)


def shutting_down() -> ApiError:
    """Return the error of a request that comes, or is not complete, when the server ends."""
    return ApiError(503, "the server is shutting down", code="draining", retry_after=5)


def openai_error(error: ApiError) -> dict[str, object]:
    """Return the body of an error in OpenAI's format; all routes but Anthropic's and Ollama's use it."""
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}
