"""`python -m mpeval` is the command `mpeval`."""

from mpeval.cli import main

if __name__ == "__main__":
    main()
