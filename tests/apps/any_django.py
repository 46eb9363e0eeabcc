"""Django over ASGI, in one file."""

import django
from any_parts import pieces, preprocess
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse
from django.urls import include, path, re_path
from django.views.decorators.http import require_POST

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x" * 50, DEBUG=False)
django.setup()


async def health(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"ok": True})


async def item(request: HttpRequest, item: int) -> JsonResponse:
    return JsonResponse({"item": item})


@require_POST
async def tree(request: HttpRequest) -> JsonResponse:
    len(request.body)
    await preprocess()
    return JsonResponse({"ok": True})


async def broken(request: HttpRequest) -> None:
    raise ValueError("broken")


async def stream(request: HttpRequest) -> StreamingHttpResponse:
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
