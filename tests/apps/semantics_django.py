"""A service with every way in which Django can answer, in one file, and code that speaks to the current span."""

import os
from collections.abc import Iterator
from typing import Any

import django
from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.core.wsgi import get_wsgi_application
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse, StreamingHttpResponse
from django.urls import include, path, re_path
from django.views.decorators.http import require_GET
from opentelemetry import baggage, trace
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceFlags

if os.environ.get("RESPONSE_PROPAGATOR"):
    from opentelemetry.instrumentation.propagators import TraceResponsePropagator, set_global_response_propagator

    set_global_response_propagator(TraceResponsePropagator())


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


def user(_: HttpRequest) -> HttpResponse:
    span: Any = trace.get_current_span()
    span.set_attribute("text", "ü")
    span.set_attributes({"list": ["a", "b"], "number": 7, "float": 0.5, "flag": True})
    span.add_event("an event", {"k": "v"}, timestamp=1_000_000_000)
    span.add_link(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1)), {"of": "link"})
    span.set_status(Status(StatusCode.ERROR, "says the user"))
    span.update_name("a name of the user's")
    return JsonResponse({"name": span.name, "recording": span.is_recording(), "seen": span.attributes["text"]})


def override(_: HttpRequest) -> HttpResponse:
    trace.get_current_span().set_attributes({"http.route": "/mine", "url.path": "/mine", "server.port": 1})
    return JsonResponse({"ok": True})


def child(_: HttpRequest) -> HttpResponse:
    with trace.get_tracer("app").start_as_current_span(
        "child", attributes={"k": "v"}, links=[Link(SpanContext(3, 4, is_remote=True))]
    ):
        trace.get_current_span().add_event("inside")
    return JsonResponse({"ok": True})


def context(_: HttpRequest) -> HttpResponse:
    here = trace.get_current_span().get_span_context()
    return JsonResponse(
        {
            "sampled": here.trace_flags.sampled,
            "state": dict(here.trace_state),
            "baggage": dict(baggage.get_all()),
        }
    )


def headers(_: HttpRequest) -> HttpResponse:
    answer = JsonResponse({"ok": True})
    answer["x-answer"] = "shown"
    answer["x-answer-token"] = "secret of the answer"
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
    path("user", user),
    path("override", override),
    path("child", child),
    path("context", context),
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
