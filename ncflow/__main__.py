"""The command `ncflow`, also as `python -m ncflow`. Without the packages that it needs it says how to install them."""

from ncflow.exits import refuse
from ncflow.extras import MissingPackage


def main() -> None:
    """Run the command line."""
    try:
        from ncflow.cli import main as run
    except MissingPackage as error:
        refuse(error)
    run()


if __name__ == "__main__":
    main()
