#!/usr/bin/env python
"""Django's command line, with the stand-alone service's settings unless others are named."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gobii_email.settings")
    from django.core.management import execute_from_command_line

    from gobii_email.tracing import flush, start_exporting

    start_exporting()
    try:
        execute_from_command_line(sys.argv)
    finally:
        flush()


if __name__ == "__main__":
    main()
