"""Lets `python -m vlformer_cli` do what `vlformer` does."""

from vlformer_cli.app import main

if __name__ == "__main__":
    main()
