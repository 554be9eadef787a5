"""`python -m fatbin FILE… [--kernels] [--json]`: prints what device code files have, as people tabulate it by hand."""

from fatbin.cli import main

raise SystemExit(main())
