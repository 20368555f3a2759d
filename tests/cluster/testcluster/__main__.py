"""See `testcluster.cli`."""

import sys

from testcluster.cli import main

sys.exit(main())
