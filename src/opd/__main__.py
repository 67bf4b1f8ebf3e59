import sys

from opd.cli import warm

if __name__ == "__main__":
    warm.start(sys.argv[1:])  # does not return if a warm process has done it
    from opd.cli.main import main

    main()
