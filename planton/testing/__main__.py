"""`python -m planton.testing simulate --seeds 10000`."""

import sys

from planton.testing._simulate_many import main

sys.exit(main())
