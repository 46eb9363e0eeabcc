"""The options of `stagetrace up` by which it evaluates the alerts of a policy, and posts them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stagetrace import config
from stagetrace.backend.notify import http_post
from stagetrace.backend.options import Alerting
from stagetrace.cli.arguments.listening import Flags
from stagetrace.cli.base import UsageError
from stagetrace.rules.alert_seen import watched
from stagetrace.sla.followed_file import FollowedFile
from stagetrace.sla.policy import Policy, file_named

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

ALERTING: Final[Flags] = {
    "--sla": (config.SLA_ALERTS, "TEXT|FILE"),
    "--webhook": (config.WEBHOOK, "URL"),
    "--alertmanager": (config.ALERTMANAGER, "URL"),
}


def alerting(args: argparse.Namespace) -> Alerting | None:
    """Return which objectives are watched; None without any. Raise UsageError, PolicyError or RulesError."""
    text: str = args.sla if args.sla is not None else config.SLA_ALERTS.read()
    webhook, alertmanager = args.webhook or config.WEBHOOK.read(), args.alertmanager or config.ALERTMANAGER.read()
    if not text.strip():
        if args.webhook or args.alertmanager:
            raise UsageError('alerts have a receiver, and no objectives\nadd --sla sla.yaml, or --sla "* within 1s"')
        return None
    policy, renewed = _policy(text)
    watched(policy)  # here is where an alert that could never fire is reported
    tokens = config.WEBHOOK_TOKEN.read(), config.ALERTMANAGER_TOKEN.read()
    return Alerting(
        policy,
        renewed,
        _checked("--webhook", webhook or policy.alerts.webhook, tokens[0]),
        tokens[0],
        config.WEBHOOK_SECRET.read(),
        _checked("--alertmanager", alertmanager or policy.alerts.alertmanager, tokens[1]),
        tokens[1],
    )


def _policy(text: str) -> tuple[Policy, Callable[[], Policy]]:
    """Return a policy, and a function for what its file has become. Raise PolicyError."""
    policy, path = Policy.load(text), file_named(text)
    if path is None:
        return policy, lambda: policy
    followed = FollowedFile(path)
    followed.read()

    def renewed() -> Policy:
        followed.look()
        return followed.policy or policy

    return followed.policy or policy, renewed


def _checked(flag: str, url: str, token: str) -> str:
    try:
        return http_post.checked(url, token) if url else ""
    except ValueError as error:
        raise UsageError(f"{flag}: {error}") from None


def posted_to(found: Alerting) -> list[str]:
    """Return where alerts go, without paths and secrets."""
    return [http_post.Target(url).shown for url in (found.webhook, found.alertmanager) if url]
