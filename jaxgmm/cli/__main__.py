"""Entry point of ``python -m jaxgmm.cli``."""

from jaxgmm.cli import main

if __name__ == "__main__":
    main()
