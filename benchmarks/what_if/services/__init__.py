"""Services as users write them, each limited by something else; the environment configures them."""
