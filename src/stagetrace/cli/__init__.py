"""Commands: parse arguments, ask a store, print. Only this room prints or exits."""
