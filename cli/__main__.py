"""`python -m rustguard_py.cli`: runs the command where it isn't on the path."""

from rustguard_py.cli.app import main

main()
