"""What both programs need; must not know either of them, and no JAX: the gateway runs where there is none."""
