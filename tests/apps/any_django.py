"""Django over ASGI, in one file."""

import asyncio
from typing import Any

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse
from django.urls import include, path, re_path
from django.views.decorators.http import require_POST
from opentelemetry import trace

import stagetrace

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x" * 50, DEBUG=False)
django.setup()


async def health(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"ok": True})


async def item(request: HttpRequest, item: int) -> JsonResponse:
    return JsonResponse({"item": item})


@require_POST
async def tree(request: HttpRequest) -> JsonResponse:
    len(request.body)
    with stagetrace.stage("preprocess"), trace.get_tracer("app").start_as_current_span("of the app"):
        await asyncio.sleep(0.002)
    return JsonResponse({"ok": True})


async def broken(request: HttpRequest) -> None:
    raise ValueError("broken")


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    async def pieces() -> Any:
        for _ in range(3):
            await asyncio.sleep(0.01)
            yield b"piece"

    return StreamingHttpResponse(pieces())


urlpatterns = [
    path("health", health),
    path("items/<int:item>", item),
    path("tree", tree),
    path("broken", broken),
    path("stream", stream),
    path("inner/", include([re_path(r"^items/(?P<item>\w+)$", item)])),
]
app = get_asgi_application()
