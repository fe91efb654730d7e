"""The API against its own description: whatever is sent, no 500, and every response is as it is described."""

from __future__ import annotations

from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import GenerationMode, openapi
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from fake_service import FakeService
from hneurons.live.server import create_app

NAME = "fake-135m"
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance, negative_data_rejection, unsupported_method,
]  # fmt: skip
app = create_app(FakeService(max_tokens=20, max_waiting=200))
schema = openapi.from_asgi("/openapi.json", app, headers={"host": "localhost"})
schema.config.generation.update(modes=list(GenerationMode))
seen: Counter[tuple[str, int]] = Counter()


@schema.parametrize()
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_response_is_as_described(case: schemathesis.Case):
    valid = case.meta is not None and case.meta.generation.mode is GenerationMode.POSITIVE
    if valid and isinstance(case.body, dict):
        # Made-up names come to nothing but 404, an empty prompt to nothing but 400.
        case.body["model"] = NAME
        if "prompt" in case.body and not (case.body["prompt"] and all(case.body["prompt"])):
            case.body["prompt"] = "text"
    response = case.call(base_url="http://localhost")
    seen[case.operation.label, response.status_code] += 1
    case.validate_response(response, checks=CHECKS)


def test_requests_came_through():
    """Or the test above would show little."""
    if not seen:
        pytest.skip("it was not run")
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert seen[f"POST {path}", 200] >= 10
        assert seen[f"POST {path}", 422] >= 10
