"""Services with planted faults, and what the first sentence of each answer reports of them."""
