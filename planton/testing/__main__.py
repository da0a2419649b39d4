"""`python -m planton.testing simulate --seeds 10000`."""

import sys

from planton.testing.simulation._many import main

sys.exit(main())
