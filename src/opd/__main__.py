"""``python -m opd``."""

from opd.cli.main import main

main()
