"""`python -m fedmedseg` is the `fedmedseg` command."""

from fedmedseg.cli.main import main

if __name__ == "__main__":
    main()
