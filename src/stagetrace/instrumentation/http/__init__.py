"""What HTTP requests of ASGI and WSGI share: attributes, metrics, headers of load balancers."""
