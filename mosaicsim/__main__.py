"""``python -m mosaicsim``."""

from mosaicsim.cli import main

main()
