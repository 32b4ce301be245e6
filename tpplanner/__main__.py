"""``python -m tpplanner``."""

from tpplanner.cli.main import main

main()
