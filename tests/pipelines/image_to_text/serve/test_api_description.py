"""/openapi.json: schemathesis finds no error of the server and no response that the description lacks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from helpers.serving import Live, serving
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from mindone.pipelines.image_to_text.serve.api_description import description, description_page
from mindone.pipelines.image_to_text.serve.options import Limits

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
LIMITS = Limits(new_tokens=2)
schema = schemathesis.openapi.from_dict(description(LIMITS))


@pytest.fixture(scope="module")
def short(tiny: Any) -> Iterator[Live]:
    """A server of short answers."""
    with serving(tiny, limits=LIMITS) as running:
        yield running


@schema.parametrize()
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_response_is_described(case: Any, short: Live) -> None:
    case.call_and_validate(base_url=short.url, checks=CHECKS)


def test_the_page_shows_every_route_and_field() -> None:
    document = description(LIMITS)
    page = description_page(document)
    assert "<script" not in page and "http://" not in page and "https://" not in page
    for path, methods in document["paths"].items():
        assert path in page
        for operation in methods.values():
            body = operation.get("requestBody", {"content": {"application/json": {"schema": {"properties": {}}}}})
            for name in body["content"]["application/json"]["schema"]["properties"]:
                assert f"<code>{name}</code>" in page


def test_the_document_is_served(short: Live) -> None:
    assert short.get("/openapi.json").json() == description(LIMITS)
    assert short.get("/nothing").status_code == 404 and "/docs" in short.get("/nothing").json()["error"]["message"]
    assert short.get("/v1/chat/completions").status_code == 405
