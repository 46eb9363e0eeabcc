"""A service with every way in which Django can answer, in one file, and code that speaks to the current span."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import django
import semantics_span
from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.core.wsgi import get_wsgi_application
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse, StreamingHttpResponse
from django.urls import include, path, re_path
from django.views.decorators.http import require_GET


@require_GET
def plain(_: HttpRequest, **__: Any) -> HttpResponse:
    return JsonResponse({"ok": True})


def item(_: HttpRequest, item_id: str) -> HttpResponse:
    return JsonResponse({"id": item_id})


def validated(request: HttpRequest) -> HttpResponse:
    import json

    number = json.loads(request.body)["number"]
    return JsonResponse({"number": number}, status=201 if isinstance(number, int) else 422)


def status(_: HttpRequest, code: int) -> HttpResponse:
    return JsonResponse({"as": "asked"}, status=code)


def raises(_: HttpRequest) -> HttpResponse:
    raise ValueError("the app's own error: ü")


def missing(_: HttpRequest) -> HttpResponse:
    raise Http404("not here")


def denied(_: HttpRequest) -> HttpResponse:
    raise PermissionDenied


def raise_in_stream(_: HttpRequest) -> StreamingHttpResponse:
    def body() -> Iterator[bytes]:
        yield b"one"
        raise ValueError("in the stream")

    return StreamingHttpResponse(body())


def stream(_: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(f"chunk {number}\n".encode() for number in range(3))


def redirects(_: HttpRequest) -> HttpResponse:
    return HttpResponseRedirect("/plain")


def by(answer: Callable[[], dict[str, Any]]) -> Callable[..., HttpResponse]:
    """Return a view that answers what a function returns."""
    return lambda _: JsonResponse(answer())


def headers(_: HttpRequest) -> HttpResponse:
    answer = JsonResponse({"ok": True})
    semantics_span.add_headers(answer)
    answer.set_cookie("session", "secret cookie")
    return answer


urlpatterns = [
    path("health", plain),
    path("plain", plain),
    path("items/<str:item_id>", item),
    path("validated", validated),
    path("status/<int:code>", status),
    path("raise", raises),
    path("missing", missing),
    path("denied", denied),
    path("raise-in-stream", raise_in_stream),
    path("stream", stream),
    path("redirect", redirects),
    path("slash/", plain),
    path("user", by(semantics_span.user)),
    path("override", by(semantics_span.override)),
    path("child", by(semantics_span.child)),
    path("context", by(semantics_span.context)),
    path("headers", headers),
    path("api/", include([path("things/<int:number>", plain), re_path(r"^old/(?P<number>[0-9]+)/$", plain)])),
    re_path(r"^regex/(?P<name>[a-z]+)/(?:more/)?$", plain),
]

settings.configure(
    DEBUG=False,
    SECRET_KEY="no secret",  # noqa: S106
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    LOGGING_CONFIG=None,
)
django.setup()
if os.environ.get("INSTRUMENTED"):
    from opentelemetry.instrumentation.django import DjangoInstrumentor
    from opentelemetry.sdk.trace import TracerProvider

    silent = os.environ["INSTRUMENTED"] == "without exporter"
    DjangoInstrumentor().instrument(tracer_provider=TracerProvider() if silent else None)
app = get_wsgi_application()
