"""The routes of `share4v review`: records, images and changes of a job, over one ReviewSession."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from ..dataset.review.index import SORTS, Filter
from ..dataset.review.publishing import publish
from ..dataset.review.session import Change, ConflictError, ReviewSession
from ..dataset.state.records import JobError, JobRunningError
from ..dataset.state.reviews import VERDICTS
from .caption_styles import APPLY_STYLE, styled
from .errors import ApiError, invalid
from .fields import Field, Fields
from .http import read_body
from .json_text import dumps, loads
from .options import ServerOptions
from .page import review_page
from .value_types import Boolean, Choice, Integer, Items, ListOf, Text

Result = TypeVar("Result")
_log = logging.getLogger(__name__)
_MAX_RECORDS = 1_000_000  # in one action
_MAX_ROWS = 200
_PAUSE_SECONDS = 3.0  # without an edit, after which the outputs are written
_RUNNING_SECONDS = 10.0  # after which a running job is asked again
_SIDE = 640  # pixels of an image on the page
_MAX_VALUES = 5 * _MAX_RECORDS  # in a body
_DIGITS = 15  # of the number of an input
_BODIES = 16  # that are in memory at a time; further requests wait
_CAPTIONS = ListOf(Text(1_000_000), 1000)
FIND = Fields(
    [
        Field("verdicts", "works", "only records with these verdicts", ListOf(Choice(VERDICTS), 10)),
        Field("failed", "works", "only records without captions", Boolean()),
        Field("breaks_rules", "works", "only captions that break a rule of the job", Boolean()),
        Field("duplicates", "works", "only captions that several inputs have", Boolean()),
        Field("min_words", "works", "least number of words", Integer(0)),
        Field("max_words", "works", "largest number of words", Integer(0)),
        Field("search", "works", "text in the captions or the source", Text(1000)),
        Field("sort", "works", "order of the records", Choice(SORTS)),
        Field("start", "works", "first row to return", Integer(0)),
        Field("count", "works", "number of rows to return", Integer(0, _MAX_ROWS)),
    ]
)
_LISTING = Field("listing", "works", "the `listing` of the rows that were shown", Text(100), (), True)
_REVIEWER = Field(
    "reviewer", "works", "any text that tells the reviewers apart, each of whom undoes their own actions", Text(100)
)
CHANGES = Fields([Field("changes", "works", "what to change", Items(_MAX_RECORDS), (), True), _LISTING, _REVIEWER])
CHANGE = Fields(
    [
        Field("number", "works", "of the record", Integer(0), (), True),
        Field("verdict", "works", "what a person decided", Choice(VERDICTS[1:]), (), True),
        Field("captions", "works", "the new captions", _CAPTIONS),
        Field("shown", "works", "the captions that the person saw", _CAPTIONS),
    ]
)
REPLACE = Fields(
    [
        Field("numbers", "works", "of the records", ListOf(Integer(0), _MAX_RECORDS), (), True),
        _LISTING,
        Field("find", "works", "text to find", Text(100_000, 1), (), True),
        Field("replacement", "works", "text in its place", Text(100_000), (), True),
        _REVIEWER,
    ]
)
UNDO = Fields([_REVIEWER])
ROWS = Fields([Field("numbers", "works", "of the records", ListOf(Integer(0), _MAX_ROWS), (), True), _LISTING])


class Problem(NamedTuple):
    """Why the outputs lack reviews, which are stored in any case.

    Attributes:
        text: for people.
        is_failure: whether somebody has to do something about it; False if the job itself will write the outputs.
    """

    text: str
    is_failure: bool


class Review:
    """A session behind routes. All work on it runs in one thread, so that its actions come one after another.

    Args:
        out: output of the job, its state directory, or the folder that it captioned.
        options: of the server.
        has_model: whether the server has a model that generates captions again.

    Attributes:
        state: the job's state directory.

    Raises:
        ReportError, JobError, ReviewError, OSError: as ReviewSession.
    """

    def __init__(self, out: str | Path, options: ServerOptions, has_model: bool) -> None:
        self._limits = options.limits
        self._page = review_page(options, has_model)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="share4v-review")
        self._images = ThreadPoolExecutor(2, thread_name_prefix="share4v-images")
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="share4v-read")  # a body can have a million changes
        self._bodies = asyncio.Semaphore(_BODIES)
        self._session: ReviewSession = self._worker.submit(ReviewSession, out).result()
        self.state = self._session.state
        self._published = -1  # changes that the outputs have; an earlier session may have left some
        self._problem: Problem | None = None  # why they lack the others
        self._is_running = False  # whether the job was when the outputs were last tried
        self._timer: asyncio.TimerHandle | None = None
        self._publishing: asyncio.Task[None] | None = None

    def routes(self) -> list[BaseRoute]:
        """Return all routes."""
        return [
            Route("/", self.page, methods=["GET"]),
            Route("/review/status", self.status, methods=["GET"]),
            Route("/review/image/{number}", self.image, methods=["GET"]),
            Route("/review/find", self.find, methods=["POST"]),
            Route("/review/rows", self.rows, methods=["POST"]),
            Route("/review/changes", self.change, methods=["POST"]),
            Route("/review/replace", self.replace, methods=["POST"]),
            Route("/review/undo", self.undo, methods=["POST"]),
            Route("/apply_style", self.apply_style, methods=["POST"]),  # in place of the server's own
        ]

    def close(self) -> Problem | None:
        """Publish what is not published and close the session; return why the outputs are not up to date, if so."""
        if self._timer is not None:
            self._timer.cancel()
        for pool in (self._images, self._readers):
            pool.shutdown(cancel_futures=True)
        self._worker.submit(self._publish).result()
        self._worker.submit(self._session.close).result()
        self._worker.shutdown()
        return self._problem

    async def page(self, request: Request) -> Response:
        """The web page."""
        return HTMLResponse(self._page.content, headers=dict(self._page.headers))

    async def status(self, request: Request) -> Response:
        """Counts, and whether the outputs have all reviews."""

        def read() -> dict[str, Any]:
            pending = self._session.changed - max(self._published, 0)
            status = self._session.status(request.query_params.get("reviewer"))
            return {**status, "unpublished": pending, "problem": self._problem and self._problem.text}

        return _json(await self._run(read))

    async def image(self, request: Request) -> Response:
        """An input's image; small, or with `?full=1` as it is."""
        given, is_full = request.path_params["number"], request.query_params.get("full") == "1"
        if not (given.isascii() and given.isdecimal() and len(given) <= _DIGITS):  # int() refuses thousands of digits
            raise ApiError(404, f"there is no input {given[:20]}")
        work = asyncio.get_running_loop().run_in_executor(
            self._images, self._session.image, int(given), None if is_full else _SIDE, request.query_params.get("key")
        )
        try:
            data, kind = await work
        except (ValueError, OSError, IndexError, MemoryError) as error:
            raise ApiError(404, "the image can no longer be read") from error
        return Response(data, media_type=kind, headers={"Cache-Control": "private, max-age=60"})

    async def find(self, request: Request) -> Response:
        """Numbers of the records that a filter lets through, and some of them as rows."""
        values = await self._values(request, FIND.read)
        start, count = values.pop("start", 0), values.pop("count", 50)

        def read() -> dict[str, Any]:
            numbers, rows = self._session.find(Filter(**values), start, count)
            return {"numbers": numbers, "rows": rows, "listing": self._session.listing}

        return _json(await self._run(read))

    async def rows(self, request: Request) -> Response:
        """Some records as they are now."""
        values = await self._values(request, ROWS.read)
        return _json({"rows": await self._run(lambda: self._session.rows(values["numbers"], values["listing"]))})

    async def change(self, request: Request) -> Response:
        """Make changes as one action."""
        values = await self._values(request, _read_changes)
        return await self._changed(lambda: self._session.change(**values))

    async def replace(self, request: Request) -> Response:
        """Replace a text in captions as one action."""
        values = await self._values(request, REPLACE.read)
        return await self._changed(lambda: self._session.replace(**values))

    async def undo(self, request: Request) -> Response:
        """Take back the last action of a reviewer, or of anybody if none is named."""
        values = await self._values(request, UNDO.read)
        return await self._changed(lambda: self._session.undo(**values))

    async def apply_style(self, request: Request) -> Response:
        """A caption that was generated again, as the job would have recorded it: by its rules and those of a style."""
        values = await self._values(request, APPLY_STYLE.read)
        return _json(await self._run(lambda: styled(values, self._session.rules(values.get("name", "")))))

    async def _values(self, request: Request, read: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        """Return what `read` makes of the JSON object of a body, in a thread."""
        async with self._bodies:
            body = await read_body(request.scope, request.receive, self._limits)
            return await asyncio.get_running_loop().run_in_executor(
                self._readers, lambda: read(loads(body, _MAX_VALUES))
            )

    async def _changed(self, action: Callable[[], list[dict[str, Any]]]) -> Response:
        rows = await self._run(action)
        self._schedule(asyncio.get_running_loop(), _PAUSE_SECONDS)
        return _json({"count": len(rows), "rows": rows[:_MAX_ROWS]})

    def _schedule(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        """Publish after some time without another change; again later, if the job is running."""

        async def run() -> None:
            await loop.run_in_executor(self._worker, self._publish)
            if self._is_running:
                self._schedule(loop, _RUNNING_SECONDS)

        def start() -> None:
            self._publishing = asyncio.ensure_future(run())  # kept, so that the task is not collected

        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(seconds, start)

    async def _run(self, action: Callable[[], Result]) -> Result:
        """Run an action on the session.

        Raises:
            ApiError: it was refused.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, action)
        except ConflictError as error:
            raise ApiError(409, str(error), code="conflict") from error
        except IndexError as error:
            raise ApiError(404, str(error)) from error
        except ValueError as error:
            raise invalid(str(error)) from error
        except OSError as error:
            _log.exception("the action failed")
            raise ApiError(500, f"nothing was changed: {error.strerror or error}") from error

    def _publish(self) -> None:
        """Write the outputs, in the session's thread; what prevents it is shown on the page."""
        if self._published == self._session.changed:
            return
        self._is_running = False
        try:
            left_out = publish(self.state)
        except JobRunningError:
            self._is_running = True
            self._problem = Problem("the job is running; it writes the outputs with your changes when it ends", False)
        except (ValueError, OSError, ImportError, JobError) as error:
            _log.exception("the outputs were not written")
            self._problem = Problem(f"the outputs were not written: {error}", True)
        else:
            if left_out is None:
                self._problem = Problem("the job is not finished: run it again to write the outputs", False)
            else:
                more = f" ({len(left_out) - 1} more)" if len(left_out) > 1 else ""
                self._problem = Problem(f"not in the outputs: {left_out[0]}{more}", True) if left_out else None
                self._published = self._session.changed


def _read_changes(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of CHANGES, with its changes as `Change`."""
    values = CHANGES.read(body)
    changes = []
    for index, one in enumerate(values["changes"]):
        if not isinstance(one, dict):
            raise invalid(f"changes[{index}] must be an object", "changes")
        changes.append(Change(**CHANGE.read(one, f"changes[{index}].")))
    return {**values, "changes": changes}


def _json(body: Mapping[str, Any]) -> Response:
    return Response(dumps(body), media_type="application/json")
