"""MLflow: a loaded model of any flavour, in its scoring server and elsewhere.

`PyFuncModel.predict` also checks the input against the model's schema: that is a part of the inference. What the
flavour calls inside, as scikit-learn's estimator, is not recorded besides.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from stagetrace.instrumentation.base import after
from stagetrace.instrumentation.models.base import Calls, Library, description

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

REGISTRY = "models:/"
REGISTERED = "registered_model_meta"  # a file in the folder of a model that was downloaded from the registry
ORIGIN = "_stagetrace_origin"  # on a model: the name and version that its URI gives


class _MLflow(Library):
    """Its framework is the model's flavour."""

    def describe(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
        """Return the attributes of one call, not to be changed."""
        name, version = vars(model).get(ORIGIN, ("", None))
        flavour = str(model.loader_module).rpartition(".")[2] or self.framework
        return description(
            name or type(model).__name__, flavour, self.rows(args, kwargs), version=version, is_flat=True
        )


MLFLOW = _MLflow(
    __name__,
    "mlflow",
    recognised="in its scoring server (`mlflow models serve`), too; `ml.framework` is the model's flavour; name and "
    "version are those of the model registry, else the name is that of the model or of its folder",
)
_patch_methods = MLFLOW.patch(Calls("PyFuncModel", ("predict",)), Calls("PyFuncModel", ("predict_stream",), lazy=True))


def patch_pyfunc(module: ModuleType) -> None:
    """Wrap the methods of a loaded model, and what loads it."""
    load = module.load_model
    _patch_methods(module)
    module.load_model = _loading(load)  # type: ignore[attr-defined]


def _note_origin(model: Any, *args: Any, **kwargs: Any) -> None:
    vars(model)[ORIGIN] = origin(str(args[0] if args else kwargs["model_uri"]), model.metadata)


_loading = after(_note_origin)


def origin(uri: str, metadata: Any) -> tuple[str, str | None]:
    """Return name and version of a model: those of `models:/NAME/VERSION`, `models:/NAME@ALIAS` or a downloaded one."""
    if uri.startswith(REGISTRY):
        path = uri[len(REGISTRY) :].strip("/")
        for separator in "/@":
            name, found, version = path.rpartition(separator)
            if found:
                return name, version
        return path, None
    folder = Path(unquote(urlsplit(uri).path))
    if (folder / REGISTERED).is_file():
        import yaml

        known = yaml.safe_load((folder / REGISTERED).read_text())
        return str(known["model_name"]), str(known["model_version"])
    name = getattr(metadata, "name", None) or getattr(metadata, "artifact_path", None) or folder.name
    return str(name), None
