"""The paths of the API."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from hneurons.live import api
from hneurons.live.answering import answer
from hneurons.live.asking import alpha_of, chat_jobs, completion_jobs
from hneurons.live.bodies import body_of
from hneurons.live.described import ERRORS, described
from hneurons.live.record import record_of
from hneurons.live.replies import worth
from hneurons.live.serving import Serving, serving_of
from hneurons.live.shapes import CardReply, ChatChunk, ChatCompletion, Completion, Health, Model, Models
from hneurons.live.telling import ChatForm, Teller, TextForm
from hneurons.settings import LARGEST_ALPHA

router = APIRouter()
"""The API."""


@router.post("/v1/chat/completions", response_model=ChatCompletion, **described(api.ChatRequest, ChatChunk))
async def chat(request: Request, asked: Annotated[api.ChatRequest, Depends(body_of(api.ChatRequest))]) -> Response:
    """Respond to a conversation."""
    serving, record = serving_of(request), record_of(request.scope)
    if serving.settings.log_text:
        record.told["prompt"] = [{"role": turn.role, "content": turn.text} for turn in asked.messages]
    return await answer(request, Teller(ChatForm(), chat_jobs(asked, serving)))


@router.post("/v1/completions", response_model=Completion, **described(api.CompletionRequest, Completion))
async def complete(
    request: Request, asked: Annotated[api.CompletionRequest, Depends(body_of(api.CompletionRequest))]
) -> Response:
    """Go on from a text."""
    serving, record = serving_of(request), record_of(request.scope)
    if serving.settings.log_text:
        record.told["prompt"] = asked.prompt
    return await answer(request, Teller(TextForm(), completion_jobs(asked, serving)))


# -- what there is ------------------------------------------------------------------------------------


@router.get("/v1/models", responses={401: ERRORS[401]})
async def models(request: Request) -> Models:
    """The names that requests may give: the plain one, and two positions of the dial."""
    serving = serving_of(request)
    name = serving.service.name
    return {"object": "list", "data": [_model(id, serving) for id in (name, f"{name}@0", f"{name}@2")]}


@router.get("/v1/models/{model:path}", responses={code: ERRORS[code] for code in (401, 404)})
async def model(request: Request, model: str) -> Model:
    """One name; any position of the dial has one."""
    serving = serving_of(request)
    alpha_of(model, serving)
    return _model(model, serving)


def _model(id: str, serving: Serving) -> Model:
    return {"id": id, "object": "model", "created": serving.started, "owned_by": "hneurons"}


@router.get("/hneurons/card", responses={401: ERRORS[401]})
async def card(request: Request) -> CardReply:
    """The H-Neurons and what they were worth."""
    serving = serving_of(request)
    service, settings, card = serving.service, serving.settings, serving.service.card
    guarantee = card.probe.guarantee
    starts = card.model.layout.starts
    return {
        "name": service.name,
        "alpha": settings.alpha,
        "layers": card.model.layers,
        "widths": card.model.widths,
        "neurons": [
            {
                "layer": each.layer,
                "expert": each.expert,
                "index": each.index,
                "column": int(column - starts[each.layer]),
                "weight": each.weight,
            }
            for each, column in zip(card.neurons, card.columns, strict=True)
        ],
        "h_neurons": len(card.h_neurons),
        "total": card.model.neurons,
        "threshold": card.probe.threshold,
        "verdict": settings.verdict or worth(card),
        "metrics": card.metrics,
        "guarantee": guarantee.sentence if guarantee else None,
        "limits": {
            "context": service.context,
            "max_prompt_tokens": settings.max_prompt_tokens,
            "max_output_tokens": settings.max_output_tokens,
            "max_choices": settings.max_choices,
            "max_body": settings.max_body,
            "max_alpha": LARGEST_ALPHA,
        },
    }


@router.get("/health", responses={503: {"model": Health, "description": "The server is shutting down"}})
async def health(request: Request, response: Response) -> Health:
    """Whether requests are taken; needs no token."""
    if serving_of(request).draining:
        response.status_code = 503
        return {"status": "draining"}
    return {"status": "ok"}


@router.get("/metrics", response_class=Response, responses={401: ERRORS[401]})
async def metrics(request: Request) -> Response:
    """The numbers of this server, for Prometheus."""
    return Response(serving_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)
