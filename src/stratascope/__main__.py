"""`python -m stratascope` is the same as the command `stratascope`."""

from stratascope.command_line import main

if __name__ == "__main__":
    main()
