"""`python -m cortex_gateway` and the `cortex` script."""

from cortex_gateway.cli.app import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
