"""Starts recording in each Python that an injected pod runs, and then what this hides.

The OpenTelemetry Operator, `stagetrace inject` and others like them copy the folder that this lies in into a pod, and
put it and its root on PYTHONPATH, which workers of the service need, too, and so stays as it is. On `sys.path` neither
stays: what the service has installed comes first, and nothing of ours looks like OpenTelemetry. This runs in whatever
Python the image has, so it is written for any.
"""

import importlib.machinery
import importlib.util
import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))
_root = os.path.dirname(os.path.dirname(os.path.dirname(_here)))


def _is_ours(entry):
    return os.path.abspath(entry or os.curdir) in (_here, _root)


def _start():
    sys.path[:] = [entry for entry in sys.path if not _is_ours(entry)] + [os.path.join(_root, "packages")]
    if sys.version_info < (3, 10):
        raise RuntimeError("Python %d.%d is older than 3.10" % sys.version_info[:2])
    os.environ.setdefault("STAGETRACE", "1")  # who injects it wants it, unless the pod says otherwise
    from stagetrace.activate import from_environment

    from_environment()


def _go_on():
    """Run the module of this name that is hidden by this one."""
    hidden = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if hidden is not None and hidden.loader is not None:
        module = importlib.util.module_from_spec(hidden)
        sys.modules["sitecustomize"] = module
        hidden.loader.exec_module(module)


try:
    _start()
except Exception as _error:
    sys.stderr.write(
        "stagetrace: the injected agent records nothing (%s: %s); the program runs as without it.\n"
        % (type(_error).__name__, _error)
    )
_go_on()
