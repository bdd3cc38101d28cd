"""`python -m scope.cli COMMAND`, for torchrun and where no `scope` is on the path."""

from scope.cli.main import main

if __name__ == "__main__":
    main()
