"""Receivers of alerts: a webhook, an Alertmanager."""
