"""`python -m calotype` is the command `calotype`, for launchers such as torchrun."""

from .cli import main

if __name__ == "__main__":
    main()
