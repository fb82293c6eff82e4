"""`python -m pcflax` is the `pcflax` command."""

from pcflax.cli.main import main

if __name__ == "__main__":
    main()
