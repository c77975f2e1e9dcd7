"""``python -m invbench``."""

from invbench.cli import main

if __name__ == "__main__":
    main()
