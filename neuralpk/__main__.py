"""``python -m neuralpk``, the command line."""

from neuralpk.cli import main

if __name__ == "__main__":
    main()
